// Ask the backend; put series of several seeds on one time axis. No drawing here.

import { natural } from "./dom.js";

const PLUGIN = new URL("../", import.meta.url);

async function get(path, query = {}) {
  const url = new URL(path, PLUGIN);
  url.search = new URLSearchParams(query);
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

export const getRuns = () => get("runs");
export const getNeurons = (run, network, layer, probe) => get("neurons", { run, network, layer, probe });

/** Bring `store` (run -> series) up to date for `runs`, `maps` in full; return whether anything is new. */
export async function updateSeries(store, runs, curve, maps) {
  let changed = false;
  // A few runs a request: what has arrived is drawn by then, and an address has a longest length.
  for (let i = 0; i < runs.length; i += 20) {
    const asked = Object.fromEntries(runs.slice(i, i + 20).map((run) => [run, store.get(run)?.stamp ?? ""]));
    const found = await get("series", { runs: JSON.stringify(asked), curve, maps: maps.join() });
    for (const [run, data] of Object.entries(found)) {
      if (data === null) continue;
      store.set(run, data);
      changed = true;
    }
  }
  return changed;
}

/**
 * Put a series on `count` equal bins of [0, end]: the mean of the values inside; an empty bin goes on with the value
 * before it, up to the last measurement. NaN where there is none.
 */
export function binned([steps, values], count, end) {
  const sums = new Float64Array(count), hits = new Uint32Array(count);
  let last = -1;
  steps.forEach((step, i) => {
    const bin = Math.min(count - 1, Math.max(0, Math.ceil((step / end) * count) - 1));
    last = Math.max(last, bin);
    if (values[i] === null) return;
    sums[bin] += values[i];
    hits[bin] += 1;
  });
  const out = new Float64Array(count).fill(NaN);
  let held = NaN;
  for (let bin = 0; bin <= last; bin++) out[bin] = held = hits[bin] ? sums[bin] / hits[bin] : held;
  return out;
}

/** Mean, least and greatest of several binned series, bin by bin, over those that have a value; and how many have. */
export function summarised(rows) {
  const count = rows[0]?.length ?? 0;
  const make = () => new Float64Array(count).fill(NaN);
  const out = { mean: make(), low: make(), high: make(), seeds: new Uint16Array(count) };
  for (let bin = 0; bin < count; bin++) {
    const values = rows.map((row) => row[bin]).filter((value) => !Number.isNaN(value));
    if (!values.length) continue;
    out.mean[bin] = values.reduce((a, b) => a + b) / values.length;
    out.low[bin] = Math.min(...values);
    out.high[bin] = Math.max(...values);
    out.seeds[bin] = values.length;
  }
  return out;
}

/** The last value of a binned series, NaN if there is none. */
export function latest(row) {
  for (let bin = row.length - 1; bin >= 0; bin--) if (!Number.isNaN(row[bin])) return row[bin];
  return NaN;
}

/** The layers of some runs, [{network, layer}], network by network, the whole network first. */
export function layersOf(datas) {
  const found = new Map();
  for (const data of datas) {
    for (const { network, layer } of data.series) found.set(`${network}/${layer}`, { network, layer });
  }
  const whole = ({ layer }) => (layer === "all" ? 0 : 1);
  return [...found.values()].sort(
    (a, b) => natural(a.network, b.network) || whole(a) - whole(b) || natural(a.layer, b.layer),
  );
}

export function metricsOf(datas) {
  return new Set(datas.flatMap((data) => data.series.map((series) => series.metric)));
}

/** A layer's width; of a whole network the mean over its layers; undefined if it is not known. */
export function widthOf(datas, network, layer) {
  const widths = Object.assign({}, ...datas.map((data) => data.widths));
  if (layer !== "all") return widths[`${network}/${layer}`];
  const all = Object.entries(widths).filter(([key]) => key.startsWith(`${network}/`));
  return all.length ? all.reduce((sum, [, width]) => sum + width, 0) / all.length : undefined;
}

/**
 * What happened in a group of runs, in the order of the steps: collapses and applications, alike ones of several seeds
 * as one line. `runs`: [{seed, data}]. A method that acted more than `most` times is one line too.
 */
export function happened(runs, most = 4) {
  const lines = new Map();
  const add = (key, seed, line) => {
    const known = lines.get(key);
    if (!known) return lines.set(key, { ...line, seed, seeds: new Set([seed]), differ: false });
    known.seeds.add(seed);
    known.differ ||= !line.many && ["title", "before", "after", "effects"].some((name) => String(known[name]) !== String(line[name]));
  };
  const acts = runs.flatMap(({ seed, data }) => data.events.filter((e) => !e.note).map((event) => ({ seed, event })));
  const times = new Map();
  for (const { event } of acts) times.set(event.name, (times.get(event.name) ?? new Set()).add(event.step));
  for (const { seed, data } of runs) {
    for (const c of data.collapses) add(`collapse/${c.network}/${c.layer}/${c.stop}`, seed, { kind: "collapse", ...c, step: c.stop });
  }
  for (const { seed, event } of acts) {
    const many = times.get(event.name).size > most;
    const all = acts.filter((other) => other.event.name === event.name);
    const key = many ? event.name : `${event.name}/${event.step}/${event.sites.map((site) => site.slice(0, 2))}`;
    add(key, seed, { kind: "act", ...event, many: many ? all.map((other) => other.event) : null });
  }
  return [...lines.values()].sort((a, b) => a.step - b.step);
}
