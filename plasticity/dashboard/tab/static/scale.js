// What a metric's value looks like: its colour, its ends, and what the server knows of it.

const metrics = new Map();

/** Take over the server's list of metrics, [{name, kind, shown, about}], in the order in which they are shown. */
export function setMetrics(list) {
  metrics.clear();
  list.forEach((metric, place) => metrics.set(metric.name, { ...metric, place }));
}

/** The metrics that are drawn as maps if nobody chose any. */
export const usualMaps = () => [...metrics.values()].filter((metric) => metric.shown).map((metric) => metric.name);

/** What a metric means and what is bad, a line; empty for one of somebody's own. */
export const aboutOf = (metric) => metrics.get(metric)?.about ?? "";

export const isShare = (metric) => metrics.get(metric)?.kind === "share";
export const isRank = (metric) => metrics.get(metric)?.kind === "rank";

/** Metrics in the order in which they are shown. */
export function ordered(names) {
  const place = (name) => metrics.get(name)?.place ?? metrics.size;
  return [...names].sort((a, b) => place(a) - place(b) || a.localeCompare(b));
}

/** metric -> [least, greatest] over all layers of all runs: one scale for what stands side by side. */
export function ranges(datas) {
  const found = {};
  for (const data of datas) {
    for (const { metric, points: [, values] } of data.series) {
      const range = (found[metric] ??= [Infinity, -Infinity]);
      for (const value of values) if (value !== null) [range[0], range[1]] = [Math.min(range[0], value), Math.max(range[1], value)];
    }
  }
  for (const metric of Object.keys(found)) if (found[metric][0] > found[metric][1]) found[metric] = [0, 1];
  return found;
}

/**
 * How a metric is coloured: `kind`, `t(value, {width, first})`, the texts at the ends of its legend, and its axis,
 * `bottom` to `top(row)`. A share is its own t. A rank says nothing by its level, so it is compared with the first
 * measurement, or, with `byLevel`, with the layer's width. Of anything else only the range is known.
 */
export function scaleFor(metric, range, byLevel = false) {
  if (isShare(metric)) {
    return { kind: "worse", t: (value) => value, low: "0", high: "1 (all neurons)", bottom: 0, top: () => 1 };
  }
  if (isRank(metric)) return byLevel ? rankByWidth(range) : rankByChange(range);
  const [low, high] = range[0] >= 0 && range[1] <= 1 ? [0, 1] : range;
  const text = (value) => String(+value.toPrecision(3));
  const t = (value) => (high > low ? (value - low) / (high - low) : 0);
  return { kind: "plain", t, low: text(low), high: text(high), bottom: low, top: () => high };
}

function rankByWidth(range) {
  const top = ({ width }) => width || range[1] || 1;
  return { kind: "worse", t: (value, row) => 1 - value / top(row), low: "full width", high: "rank 0", bottom: 0, top };
}

function rankByChange(range) {
  const t = (value, { first }) => (first > 0 ? Math.max(-1, 1 - value / first) : 0);
  return {
    kind: "change", t, low: "twice its first measurement", high: "none left", bottom: 0, top: () => range[1] || 1,
    says: "coloured by change against the run's first measurement",
  };
}
