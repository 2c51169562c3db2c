// The columns, one per configuration, all with the same axis of steps and the same scales.

import { axis, curveChart, curveOf, lane, marksOf, rangeOf, tasksOf } from "./curve.js";
import { metricsOf } from "./data.js";
import { h } from "./dom.js";
import { heatMap, latestTable, ranges, rowsOf } from "./heat.js";
import { story } from "./story.js";

const GUTTER = 96, VALUE = 46, EDGE = 24, NARROWEST = 420;
const HEADING = 7; // rows of a column that are no maps

/** `groups`: [{label, runs: [{name, seed, data}]}]; `maps`: metrics; `space`: pixels there are in all. */
export function columns(groups, { state, maps, colours, space, actions }) {
  const runs = groups.flatMap((group) => group.runs);
  const end = lastStep(runs), range = ranges(runs.map((run) => run.data));
  const curves = groups.map((group) => curveOf(group.runs.map((run) => run.data), end));
  const share = Math.floor(space / groups.length) - 12;
  const width = Math.max(NARROWEST, share) - GUTTER - VALUE - EDGE;
  const common = { state, maps, range, heights: rangeOf(curves), width, end, actions };
  return groups.map((group, i) => column(group, { ...common, curve: curves[i], colour: colours.get(group.label) }));
}

/** How many rows a column has: they share them, so that what stands side by side is the same thing. */
export const numRows = (maps) => HEADING + maps.length;

/** The last step that any of `runs` has logged, at least 1. */
export function lastStep(runs) {
  const ends = runs.flatMap(({ data }) => [
    data.curve?.[0].at(-1) ?? 0, data.events.at(-1)?.step ?? 0, ...data.series.map(({ points: [steps] }) => steps.at(-1) ?? 0),
  ]);
  return Math.max(1, ...ends);
}

export const message = (heading, body) => h("div", { class: "message" }, h("h2", {}, heading), h("p", {}, body));

function column({ label, runs }, { state, maps, range, heights, width, end, actions, curve, colour }) {
  const open = (network, layer) => actions.openLayer(label, network, layer);
  const marks = marksOf(runs, width, end), title = state.curve ?? "return";
  return h("article", {
    class: "column", "data-group": label, "aria-label": label,
    style: `--gutter:${GUTTER}px;--value:${VALUE}px;--plot:${width}px`,
  },
    heading(label, runs, colour),
    runs.length ? story(runs, state.expanded.has(label), { open, expand: () => actions.expand(label) }) : h("p"),
    h("h3", {}, title),
    curveChart(curve, { title, range: heights, width, end, colour, marks: marks.filter((mark) => !mark.note), tasks: tasksOf(runs, width, end) }),
    lane(marks, runs.length > 1, width),
    axis(width, end),
    layers(runs, { state, maps, range, width, end, open, label }));
}

function heading(label, runs, colour) {
  const about = runs.length > 1 ? `mean of ${runs.length} seeds; the band is their least to greatest` : (runs[0]?.name ?? "");
  return h("header", {},
    h("h2", {}, h("i", { class: "swatch", style: `background:${colour}` }), label), h("small", {}, about));
}

function layers(runs, { state, maps, range, width, end, open, label }) {
  if (!runs.length) return message("Loading", "");
  if (!metricsOf(runs.map((run) => run.data)).size) {
    return message("No probes in these runs", "Train with --probes, or put plasticity.watch around your own loop.");
  }
  const rows = rowsOf(runs, state.networks, end, range), acts = actsOf(runs);
  const selected = state.layer?.group === label ? `${state.layer.network}/${state.layer.layer}` : null;
  const shared = { width, end, acts, open, selected };
  return [...maps.map((metric) => heatMap(metric, rows.table[metric] ?? [], shared)), latestTable(rows, shared)];
}

/** network/layer -> steps at which an intervention changed it. */
function actsOf(runs) {
  const found = new Map();
  for (const { data } of runs) {
    for (const event of data.events.filter((event) => !event.note)) {
      for (const [network, layer] of event.sites) found.set(`${network}/${layer}`, [...(found.get(`${network}/${layer}`) ?? []), event.step]);
    }
  }
  return found;
}
