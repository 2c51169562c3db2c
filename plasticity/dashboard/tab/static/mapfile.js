// A heat map as a picture and as a table, for saving: on the page it is made of buttons.

import { h, number, ticks } from "./dom.js";
import { css, stopsOf } from "./palette.js";
import { latest } from "./series.js";

const NAMES = 150, VALUES = 56, ROW = 16, FOOT = 44;

/** The map as one SVG: names of layers, cells, latest values, the axis, the legend. */
export function mapPicture(rows, { axis, width }) {
  const height = rows.length * ROW;
  const lines = rows.map((row, i) => h("g", { transform: `translate(0 ${i * ROW})` },
    h("text", { class: "label", x: NAMES - 8, y: 12, "text-anchor": "end" }, `${row.network}/${row.layer}`),
    h("g", { transform: `translate(${NAMES} 1)` }, cells(row, width)),
    h("text", { class: "label", x: NAMES + width + VALUES - 6, y: 12, "text-anchor": "end" }, number(latest(row.series.mean)))));
  const labels = ticks(axis.from, axis.to, Math.max(2, Math.round(width / 90))).map((value) =>
    h("text", { class: "label", x: NAMES + axis.share(value) * width, y: height + 14, "text-anchor": "middle" }, axis.brief(value)));
  return h("svg", { width: NAMES + width + VALUES, height: height + FOOT }, lines, labels, legend(rows[0].scale, height + 28));
}

/** Neighbours of one colour are one rectangle. */
function cells(row, width) {
  const { series, scale } = row, size = width / series.mean.length, found = [];
  series.mean.forEach((value, bin) => {
    if (Number.isNaN(value)) return;
    const fill = css(scale.t(value, row), scale.kind), last = found.at(-1);
    if (last?.fill === fill && last.to === bin) last.to = bin + 1;
    else found.push({ fill, from: bin, to: bin + 1 });
  });
  return found.map(({ fill, from, to }) => h("rect", { x: from * size, width: (to - from) * size, y: 0, height: ROW - 2, fill }));
}

function legend(scale, y) {
  const stops = stopsOf(scale.kind), size = 90 / stops.length;
  return h("g", { transform: `translate(${NAMES} ${y})` },
    h("text", { class: "label", x: -6, y: 9, "text-anchor": "end" }, scale.low),
    stops.map((fill, i) => h("rect", { x: i * size, y: 0, width: size, height: 10, fill })),
    h("text", { class: "label", x: 96, y: 9 }, scale.high));
}

/** Its numbers, heads first. */
export function mapRows(rows, { axis, label }) {
  const found = [["configuration", "network", "layer", "metric", axis.kind === "time" ? "seconds" : axis.kind, "mean", "low", "high", "n"]];
  for (const { network, layer, metric, series } of rows) {
    series.mean.forEach((value, bin) => {
      if (Number.isNaN(value)) return;
      const end = +axis.at((bin + 1) / series.mean.length).toPrecision(8);
      found.push([label, network, layer, metric, end, value, series.low[bin], series.high[bin], series.seeds[bin]]);
    });
  }
  return found;
}
