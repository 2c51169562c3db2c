// The latest values, layer by metric, each with its trend.

import { h, number } from "./dom.js";
import { networkName, titleOf } from "./heat.js";
import { css } from "./palette.js";
import { latest } from "./series.js";

export function latestTable({ layers, table }, { open, selected }) {
  const metrics = Object.keys(table);
  const at = new Map(metrics.flatMap((metric) => table[metric].map((row) => [`${metric}/${row.network}/${row.layer}`, row])));
  const head = h("tr", {}, ["layer", ...metrics].map((name) => h("th", { scope: "col" }, titleOf(name))));
  const body = layers.map(({ network, layer, members }) => {
    const key = `${network}/${layer}`, name = layer === "all" ? network : layer;
    const title = layer === "all" ? networkName({ network, members }) : null;
    const button = h("button", { class: "link", title, onclick: () => open(members[0], layer), "data-key": `table/${key}` }, name);
    const cells = metrics.map((metric) => at.get(`${metric}/${key}`)).map((row) => h("td", {}, row ? trend(row) : "–"));
    const isSelected = selected !== null && layer === selected.layer && members.includes(selected.network);
    return h("tr", { class: `${layer === "all" ? "whole" : ""}${isSelected ? " selected" : ""}` }, h("th", { scope: "row" }, button), cells);
  });
  const caption = h("caption", {}, "Latest values, with the trend over what is shown");
  return h("div", { class: "scroll" }, h("table", {}, caption, h("thead", {}, head), h("tbody", {}, body)));
}

function trend(row) {
  const { series, scale } = row, W = 52, H = 14, bottom = scale.bottom, top = scale.top(row) || 1;
  const y = (value) => H - 1 - Math.min(Math.max((value - bottom) / (top - bottom || 1), 0), 1) * (H - 2);
  const points = [...series.mean.keys()].filter((bin) => !Number.isNaN(series.mean[bin]))
    .map((bin) => `${((bin / (series.mean.length - 1)) * W).toFixed(1)},${y(series.mean[bin]).toFixed(1)}`).join(" ");
  const last = latest(series.mean);
  const paint = css(Number.isNaN(last) ? 0 : scale.t(last, row), scale.kind);
  return [
    h("i", { class: "swatch", style: `background:${paint}` }),
    h("span", { class: "number" }, number(last)),
    h("svg", { width: W, height: H, "aria-hidden": "true" }, h("polyline", { points, class: "trend" })),
  ];
}
