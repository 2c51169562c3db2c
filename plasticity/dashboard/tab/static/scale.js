// What a metric's value looks like. One rule for every map: the further from the background, the worse.
// Lightness rises or falls steadily along each scale, so it reads in grey and with any colour vision.

const SCALES = {
  light: {
    worse: ["#eef1f4", "#f7d79a", "#ec9a45", "#b4441f", "#4f1014"],
    plain: ["#eef1f4", "#b5cde0", "#6d9dc5", "#2f6a9e", "#0f2f52"],
  },
  dark: {
    worse: ["#1c222b", "#57300f", "#a8501a", "#ee9a3f", "#ffedbd"],
    plain: ["#1c222b", "#1f4766", "#3477a5", "#6fb3dd", "#d6eeff"],
  },
};
/** Okabe and Ito's colours, told apart with any colour vision; the order is that of the columns. */
const SERIES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"],
  dark: ["#56b4e9", "#ff8a3d", "#2fc79a", "#e6a3c8", "#e6b422", "#9fd3f5"],
};
export const seriesColour = (i) => SERIES[theme][i % SERIES[theme].length];

// What the server knows of each metric: name -> {kind, shown, place}.
const metrics = new Map();

/** Take over the server's list of metrics, [{name, kind, shown}], in the order in which they are shown. */
export function setMetrics(list) {
  metrics.clear();
  list.forEach((metric, place) => metrics.set(metric.name, { ...metric, place }));
}

/** The metrics that are drawn as maps if nobody chose any. */
export const usualMaps = () => [...metrics.values()].filter((metric) => metric.shown).map((metric) => metric.name);

let theme = "light";
export const setTheme = (name) => (theme = name);

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** The colour of t in [0, 1] as [r, g, b]. */
export function colour(t, kind = "worse") {
  const stops = SCALES[theme][kind];
  const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [rgb(stops[i]), rgb(stops[i + 1])];
  return from.map((value, k) => Math.round(value + (to[k] - value) * (place - i)));
}

export const css = (t, kind) => `rgb(${colour(t, kind).join(" ")})`;
export const gradient = (kind) => `linear-gradient(90deg, ${SCALES[theme][kind].join(", ")})`;

const isShare = (metric) => metrics.get(metric)?.kind === "share";
export const isRank = (metric) => metrics.get(metric)?.kind === "rank";

/** Metrics in the order in which they are shown. */
export function ordered(names) {
  const place = (name) => metrics.get(name)?.place ?? metrics.size;
  return [...names].sort((a, b) => place(a) - place(b) || a.localeCompare(b));
}

/**
 * How a metric is coloured: `kind`, `t(value, width)` in [0, 1], and the texts at the two ends of its legend.
 * A share is its own t; a rank is what is lost of the layer's width; of anything else only the range is known.
 */
export function scaleFor(metric, range) {
  if (isShare(metric)) return { kind: "worse", t: (value) => value, low: "0", high: "1 (all neurons)", top: () => 1 };
  if (isRank(metric)) {
    const top = (width) => width || range[1] || 1;
    return { kind: "worse", t: (value, width) => 1 - value / top(width), low: "full width", high: "rank 0", top };
  }
  const [low, high] = range[0] >= 0 && range[1] <= 1 ? [0, 1] : range;
  const text = (value) => String(+value.toPrecision(3));
  const t = (value) => (high > low ? (value - low) / (high - low) : 0);
  return { kind: "plain", t, low: text(low), high: text(high), top: () => high, bottom: low };
}
