// All chosen configurations in one chart: the curve above, then a small chart for every chosen layer and metric.

import { curveOf } from "./columns.js";
import { lineChart } from "./chart.js";
import { h } from "./dom.js";
import { heading, networkName, titleOf } from "./heat.js";
import { keyOf, layersOf, rowsOf } from "./layers.js";
import { lane, marksOf, tasksOf } from "./marks.js";
import { isShare } from "./scale.js";
import { story } from "./story.js";

const GUTTER = 150, EDGE = 24, HEIGHT = 190, SMALL = { gutter: 44, edge: 10, height: 104 }, NARROWEST = 300;

/** The one column of the overlay. `groups`, `common` and `space` are those of `columns`. */
export function overlay(groups, common, space) {
  const { state, maps, actions, colours } = common;
  const width = Math.max(400, space - GUTTER - EDGE - 30);
  return [h("article", { class: "column overlay", "data-group": "overlay", "aria-label": "all in one chart", style: `--gutter:${GUTTER}px;--value:${EDGE}px;--plot:${width}px` },
    legend(groups, colours),
    state.above ? h("section", {}, h("h3", {}, state.above), curveChart(groups, common, width)) : null,
    groups.map(({ label, runs }) => lane(marksOf(runs, common.axis, width), runs.length > 1, width, { name: label, colour: colours.get(label).colour })),
    maps.map((metric) => smallCharts(metric, groups, common, space)),
    h("section", { class: "stories" }, h("h3", {}, "What happened"), groups.map(({ label, runs }) => h("div", {},
      h("h4", {}, swatch(colours.get(label)), label),
      story(runs, state.expanded.has(label), { open: (network, layer) => actions.openLayer(label, network, layer), expand: () => actions.expand(label) })))))];
}

const swatch = ({ colour, dash }) => h("i", { class: `swatch${dash ? " dashed" : ""}`, style: `--colour:${colour}` });

function legend(groups, colours) {
  return h("header", { class: "key" }, groups.map(({ label, runs }) =>
    h("span", {}, swatch(colours.get(label)), label, runs.length > 1 && h("small", {}, ` ${runs.length} seeds`))));
}

function curveChart(groups, common, width) {
  const { state, axis, actions } = common;
  const lines = groups.map((group) => curveOf(group, common, Math.min(400, Math.round(width / 3))));
  const tasks = tasksOf(groups.flatMap((group) => group.runs), axis, width);
  return lineChart(state.above, lines, { axis, width, height: HEIGHT, gutter: GUTTER, edge: EDGE }, { log: state.log, smooth: state.smooth }, actions, { tasks });
}

/** One metric: a chart per chosen layer, whole networks if nobody chose any. */
function smallCharts(metric, groups, { state, range, families, axis, colours, actions }, space) {
  const tables = groups.map((group) => ({ group, rows: rowsOf(group.runs, { chosen: state.layers, families, axis, range, byLevel: state.byLevel }).table[metric] ?? [] }));
  const all = layersOf(groups.flatMap((group) => group.runs.map((run) => run.data)), families)
    .filter((at) => tables.some(({ rows }) => rows.some((row) => keyOf(row) === keyOf(at))));
  const whole = all.filter(({ layer }) => layer === "all"), shown = state.layers || !whole.length ? all : whole;
  const abreast = Math.max(1, Math.min(shown.length, Math.floor(space / NARROWEST)));
  const width = Math.floor((space - 30) / abreast) - SMALL.gutter - SMALL.edge - 12;
  const charts = shown.map((at) => {
    const lines = tables.map(({ group, rows }) => {
      const row = rows.find((one) => keyOf(one) === keyOf(at));
      return { label: group.label, ...colours.get(group.label), series: row?.series ?? null, runs: row?.seeds ?? 0 };
    });
    const look = { log: state.log, smooth: state.smooth, fixed: isShare(metric) ? [0, 1] : null };
    const name = at.layer === "all" ? networkName(at) : `${at.network}/${at.layer}`;
    return h("div", {}, h("h4", {}, name), lineChart(`${titleOf(metric)} ${at.network}/${at.layer}`, lines, { axis, width: Math.max(180, width), ...SMALL }, look, actions));
  });
  return h("section", { class: "map", "aria-label": `${metric} by layer, all in one chart` }, heading(metric),
    charts.length ? h("div", { class: "small", style: `--abreast:${abreast}` }, charts) : h("p", { class: "nothing" }, "not logged in these runs"));
}
