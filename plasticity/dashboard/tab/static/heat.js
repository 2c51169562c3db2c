// The heat maps, layer by time, one per metric; and the table of the latest values with their trends.

import { binned, latest, layersOf, metricsOf, summarised, widthOf } from "./data.js";
import { BINS, follow } from "./curve.js";
import { h, hideTip, number, showTip, step } from "./dom.js";
import { colour, css, gradient, isRank, ordered, scaleFor } from "./scale.js";

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

/** Everything the maps and the table need of a group: metric -> rows, one per layer, over the seeds. */
export function rowsOf(runs, networks, end, range) {
  const datas = runs.map((run) => run.data);
  const layers = layersOf(datas).filter((at) => !networks.size || networks.has(at.network));
  const key = (network, metric, layer) => JSON.stringify([network, metric, layer]);
  const index = datas.map((data) => new Map(data.series.map((s) => [key(s.network, s.metric, s.layer), s.points])));
  const table = {};
  for (const metric of ordered(metricsOf(datas))) {
    const scale = scaleFor(metric, range[metric]);
    table[metric] = layers.flatMap(({ network, layer }) => {
      const found = index.map((points) => points.get(key(network, metric, layer))).filter(Boolean);
      if (!found.length) return [];
      const series = summarised(found.map((points) => binned(points, BINS, end)));
      return [{ network, layer, metric, series, scale, width: widthOf(datas, network, layer), seeds: found.length }];
    });
  }
  return { layers, table };
}

/** One heat map. `acts`: network/layer -> steps at which an intervention changed the layer. */
export function heatMap(metric, rows, { width, end, acts, open, selected }) {
  if (!rows.length) return h("section", { class: "map" }, title(metric), h("p", { class: "nothing" }, "not logged in these runs"));
  const body = [];
  let network = null;
  for (const row of rows) {
    if (row.network !== network) body.push(h("div", { class: "network" }, (network = row.network)));
    body.push(heatRow(row, { width, end, acts, open, selected }));
  }
  return h("section", { class: "map", "aria-label": `${metric} by layer and time` }, title(metric, rows[0].scale), body);
}

function title(metric, scale) {
  const legend = scale && h("span", { class: "legend" }, scale.low, h("i", { style: `background:${gradient(scale.kind)}` }), scale.high);
  return h("h3", {}, metric.replaceAll("_", " "), legend);
}

function heatRow(row, { width, end, acts, open, selected }) {
  const { network, layer, metric, series } = row;
  const key = `${network}/${layer}`, last = latest(series.mean);
  const plot = h("div", { class: "plot" }, paint(row), dots(acts.get(key) ?? [], width, end));
  const button = h("button", {
    class: `row${layer === "all" ? " whole" : ""}${selected === key ? " selected" : ""}`,
    "aria-label": spoken(row, end),
    "data-key": `${metric}/${key}`,
    onclick: () => open(network, layer),
    onkeydown: (event) => walk(event, row, end),
    onblur: hideTip,
  },
    h("span", { class: "gutter", title: layer }, layer === "all" ? "all layers" : layer),
    plot,
    h("span", { class: "value" }, number(last)));
  follow(plot, (share, event) => showTip(event.clientX, event.clientY, cell(row, share, end)));
  return button;
}

/** A row in words: the latest value, the worst, and when that was. */
function spoken({ network, layer, metric, series, scale, width }, end) {
  const shown = [...series.mean.keys()].filter((bin) => !Number.isNaN(series.mean[bin]));
  if (!shown.length) return `${network}/${layer} ${metric}: no value`;
  const t = (bin) => scale.t(series.mean[bin], width);
  const worst = shown.reduce((a, b) => (t(b) > t(a) ? b : a));
  const word = scale.kind === "worse" ? "worst" : "highest";
  const at = step(((worst + 1) / BINS) * end);
  return `${network}/${layer} ${metric} ${number(latest(series.mean))}, ${word} ${number(series.mean[worst])} near step ${at}`;
}

/** What the tooltip says of the row at a share of the axis. */
function cell({ network, layer, metric, series, width, seeds }, share, end) {
  const bin = Math.min(BINS - 1, Math.floor(share * BINS));
  const value = series.mean[bin], name = layer === "all" ? `${network}, all layers` : `${network}/${layer}`;
  const of = isRank(metric) && width ? ` of ${Math.round(width)}` : "";
  const spread = seeds > 1 && !Number.isNaN(value) ? `${number(series.low[bin])} to ${number(series.high[bin])}, n = ${series.seeds[bin]}` : null;
  const text = Number.isNaN(value) ? "no value" : `${metric.replaceAll("_", " ")} ${number(value)}${of}`;
  return [name, text, spread, `step ${step(share * end)}`].filter(Boolean);
}

/** Left and right move along the time axis, up and down from layer to layer. */
function walk(event, row, end) {
  const button = event.currentTarget;
  if (["ArrowUp", "ArrowDown"].includes(event.key)) {
    const all = [...button.closest(".column").querySelectorAll("button.row")];
    all[all.indexOf(button) + (event.key === "ArrowUp" ? -1 : 1)]?.focus();
  } else if (["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const start = button.dataset.bin ?? row.series.mean.findLastIndex((value) => !Number.isNaN(value));
    const bin = Number(start) + (event.key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 10 : 1);
    button.dataset.bin = Math.min(Math.max(bin, 0), BINS - 1);
    const share = (Number(button.dataset.bin) + 0.5) / BINS, box = button.querySelector(".plot").getBoundingClientRect();
    document.body.style.setProperty("--cursor", share);
    const lines = cell(row, share, end);
    showTip(box.left + share * box.width, box.bottom, lines);
    document.getElementById("spoken").textContent = lines.join(", ");
  } else return;
  event.preventDefault();
}

function paint({ series, scale, width }) {
  const canvas = h("canvas", { width: BINS, height: 1 });
  const context = canvas.getContext("2d"), image = context.createImageData(BINS, 1);
  series.mean.forEach((value, bin) => {
    if (!Number.isNaN(value)) image.data.set([...colour(scale.t(value, width), scale.kind), 255], bin * 4);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function dots(steps, width, end) {
  const places = [...new Set(steps.map((at) => Math.round(((at / end) * width) / 3) * 3))];
  return places.map((x) => h("i", { class: "dot", style: `left:${x}px` }));
}

/** The latest values, layer by metric, each with its trend. */
export function latestTable({ layers, table }, { open, selected }) {
  const metrics = Object.keys(table);
  const at = new Map(metrics.flatMap((metric) => table[metric].map((row) => [`${metric}/${row.network}/${row.layer}`, row])));
  const head = h("tr", {}, ["layer", ...metrics].map((name) => h("th", { scope: "col" }, name.replaceAll("_", " "))));
  const body = layers.map(({ network, layer }) => {
    const key = `${network}/${layer}`, name = layer === "all" ? network : layer;
    const button = h("button", { class: "link", onclick: () => open(network, layer), "data-key": `table/${key}` }, name);
    const cells = metrics.map((metric) => at.get(`${metric}/${key}`)).map((row) => h("td", {}, row ? trend(row) : "–"));
    const marked = `${layer === "all" ? "whole" : ""}${selected === key ? " selected" : ""}`;
    return h("tr", { class: marked }, h("th", { scope: "row" }, button), cells);
  });
  const caption = h("caption", {}, "Latest values, with the trend since the start");
  return h("div", { class: "scroll" }, h("table", {}, caption, h("thead", {}, head), h("tbody", {}, body)));
}

function trend({ series, scale, width }) {
  const W = 52, H = 14, bottom = scale.bottom ?? 0, top = scale.top(width) || 1;
  const y = (value) => H - 1 - Math.min(Math.max((value - bottom) / (top - bottom || 1), 0), 1) * (H - 2);
  const points = [...series.mean.keys()].filter((bin) => !Number.isNaN(series.mean[bin]))
    .map((bin) => `${((bin / (BINS - 1)) * W).toFixed(1)},${y(series.mean[bin]).toFixed(1)}`).join(" ");
  const last = latest(series.mean);
  const paint = css(Number.isNaN(last) ? 0 : scale.t(last, width), scale.kind);
  return [
    h("i", { class: "swatch", style: `background:${paint}` }),
    h("span", { class: "number" }, number(last)),
    h("svg", { width: W, height: H, "aria-hidden": "true" }, h("polyline", { points, class: "trend" })),
  ];
}
