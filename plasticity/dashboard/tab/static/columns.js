// Side by side: a column per configuration, all with the same axis and the same scales.

import { lineChart, valuesOf } from "./chart.js";
import { h } from "./dom.js";
import { heatMap } from "./heat.js";
import { metricsOf, rowsOf } from "./layers.js";
import { actsOf, lane, marksOf, tasksOf } from "./marks.js";
import { binned, summarised } from "./series.js";
import { story } from "./story.js";
import { latestTable } from "./table.js";

const GUTTER = 96, VALUE = 46, EDGE = 24, NARROWEST = 420, HEIGHT = 96;
const HEADING = 5; // rows of a column that are no maps

/** `groups`: [{label, runs: [{name, seed, data}]}]; `common`: what all of them share; `space`: pixels there are. */
export function columns(groups, common, space) {
  const share = Math.floor(space / groups.length) - 12;
  const width = Math.max(NARROWEST, share) - GUTTER - VALUE - EDGE;
  const curves = groups.map((group) => curveOf(group, common, Math.min(400, Math.round(width / 2))));
  const values = valuesOf(curves);
  const extent = values.length ? [Math.min(...values), Math.max(...values)] : null; // one vertical scale for all
  return groups.map((group, i) => column(group, { ...common, width, curve: curves[i], extent }));
}

/** How many rows a column has: they share them, so that what stands side by side is the same thing. */
export const numRows = (maps) => HEADING + maps.length;

export const message = (heading, body) => h("div", { class: "message" }, h("h2", {}, heading), h("p", {}, body));

/** The line of a group's curve, {label, colour, dash, series, runs}; `series` is null where no run has it. */
export function curveOf({ label, runs }, { axis, colours }, bins) {
  const rows = runs.filter(({ data }) => data.curve).map(({ data }) => binned(data.curve, axis, data, bins));
  return { label, ...colours.get(label), series: rows.length ? summarised(rows) : null, runs: rows.length };
}

function column({ label, runs }, common) {
  const { state, axis, width, curve, extent, actions, colours } = common;
  const open = (network, layer) => actions.openLayer(label, network, layer);
  const marks = marksOf(runs, axis, width);
  const frame = { axis, width, height: HEIGHT, gutter: GUTTER, edge: VALUE };
  const extras = { marks: marks.filter((mark) => !mark.note), tasks: tasksOf(runs, axis, width) };
  return h("article", {
    class: "column", "data-group": label, "aria-label": label,
    style: `--gutter:${GUTTER}px;--value:${VALUE}px;--plot:${width}px`,
  },
    heading(label, runs, colours.get(label).colour),
    runs.length ? story(runs, state.expanded.has(label), { open, expand: () => actions.expand(label) }) : h("p"),
    state.above && curve.series
      ? h("div", {}, h("h3", {}, state.above), lineChart(state.above, [curve], frame, { log: state.log, smooth: state.smooth, range: extent }, actions, extras))
      : h("p", { class: "quiet" }, state.above ? `These runs logged no ${state.above}.` : "These runs logged no return and no loss."),
    lane(marks, runs.length > 1, width),
    layers(runs, common, open, label));
}

function heading(label, runs, colour) {
  const about = runs.length > 1 ? `mean of ${runs.length} seeds; the band is their least to greatest` : (runs[0]?.name ?? "");
  return h("header", {}, h("h2", {}, h("i", { class: "swatch", style: `background:${colour}` }), label), h("small", {}, about));
}

function layers(runs, { state, maps, range, families, axis, width, actions }, open, label) {
  if (!runs.length) return message("Loading", "");
  if (!metricsOf(runs.map((run) => run.data)).size) {
    return message("No probes in these runs", "Train with --probes, or put plasticity.watch around your own loop.");
  }
  const rows = rowsOf(runs, { chosen: state.layers, families, axis, range, byLevel: state.byLevel });
  const selected = state.layer?.group === label ? state.layer : null;
  const shared = { axis, width, acts: actsOf(runs), open, selected, label, zoom: actions.zoom };
  return [...maps.map((metric) => heatMap(metric, rows.table[metric] ?? [], shared)), latestTable(rows, shared)];
}
