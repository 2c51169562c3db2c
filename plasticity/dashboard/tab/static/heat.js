// The heat maps, layer by time, one per metric.

import { follow } from "./chart.js";
import { pageOf } from "./data.js";
import { cursor, h, hideTip, number, showTip } from "./dom.js";
import { exportTools } from "./export.js";
import { mapPicture, mapRows } from "./mapfile.js";
import { colour, gradient } from "./palette.js";
import { aboutOf, isRank } from "./scale.js";
import { latest } from "./series.js";
import { zoomable } from "./zoom.js";

/** What a metric is called on the page. */
export const titleOf = (metric) => metric.replaceAll("_", " ");

/** One heat map. `acts`: network/layer -> [{data, step}] at which an intervention changed the layer. */
export function heatMap(metric, rows, shared) {
  if (!rows.length) return h("section", { class: "map" }, heading(metric), h("p", { class: "nothing" }, "not logged in these runs"));
  const body = [];
  let network = null;
  for (const row of rows) {
    if (row.network !== network) body.push(h("div", { class: "network" }, networkName(row), (network = row.network) && ""));
    body.push(heatRow(row, shared));
  }
  const tools = exportTools(`${titleOf(metric)} ${shared.label}`, () => onPage(mapPicture(rows, shared)), () => mapRows(rows, shared));
  return h("section", { class: "map", "aria-label": `${metric} by layer and time` }, heading(metric, rows[0].scale), body, tools);
}

/** A metric's name, what it means, what is bad, its page, and the legend of its colours. */
export function heading(metric, scale) {
  const legend = scale && h("span", { class: "legend" }, scale.low, h("i", { style: `background:${gradient(scale.kind)}` }), scale.high);
  const page = aboutOf(metric) && h("a", { href: pageOf(metric), target: "_blank", rel: "noopener" }, "more");
  return h("header", { class: "metric" },
    h("h3", {}, titleOf(metric), legend),
    h("p", { class: "meaning" }, [aboutOf(metric), scale?.says && `Here ${scale.says}.`].filter(Boolean).join(" "), page && [" ", page]));
}

export const networkName = ({ network, members }) => (members.length > 1 ? `${network} (mean of ${members.join(", ")})` : network);

/** Styles are computed for what is on the page only: a picture stands there while it is being saved. */
function onPage(svg) {
  const place = h("div", { class: "offscreen", "aria-hidden": "true" }, svg);
  document.body.append(place);
  setTimeout(() => place.remove());
  return svg;
}

function heatRow(row, { axis, width, acts, open, selected, zoom }) {
  const { network, layer, metric, members, series } = row;
  const key = `${network}/${layer}`, last = latest(series.mean);
  const isSelected = selected !== null && layer === selected.layer && members.includes(selected.network);
  const done = members.flatMap((member) => acts.get(`${member}/${layer}`) ?? []);
  const plot = h("div", { class: "plot" }, paint(row), dots(done, axis, width));
  const button = h("button", {
    class: `row${layer === "all" ? " whole" : ""}${isSelected ? " selected" : ""}`,
    "aria-label": spoken(row, axis),
    "data-key": `${metric}/${key}`,
    onclick: () => open(members[0], layer),
    onkeydown: (event) => walk(event, row, axis),
    onblur: hideTip,
  },
    h("span", { class: "gutter", title: layer }, layer === "all" ? "all layers" : layer),
    plot,
    h("span", { class: "value" }, number(last)));
  follow(plot, (share, event) => showTip(event.clientX, event.clientY, cell(row, share, axis)));
  zoomable(plot, axis, zoom);
  return button;
}

/** A row in words: the latest value, the worst, and when that was. */
function spoken(row, axis) {
  const { network, layer, metric, series, scale } = row;
  const shown = [...series.mean.keys()].filter((bin) => !Number.isNaN(series.mean[bin]));
  if (!shown.length) return `${network}/${layer} ${metric}: no value`;
  const t = (bin) => scale.t(series.mean[bin], row);
  const worst = shown.reduce((a, b) => (t(b) > t(a) ? b : a));
  const word = scale.kind === "plain" ? "highest" : "worst";
  const at = axis.say(axis.at((worst + 1) / series.mean.length));
  return `${network}/${layer} ${metric} ${number(latest(series.mean))}, ${word} ${number(series.mean[worst])} near ${at}`;
}

/** What the tooltip says of the row at a share of the axis. */
function cell({ network, layer, metric, series, scale, width, first, seeds }, share, axis) {
  const bin = Math.min(series.mean.length - 1, Math.floor(share * series.mean.length));
  const value = series.mean[bin], name = layer === "all" ? `${network}, all layers` : `${network}/${layer}`;
  const of = isRank(metric) && width ? ` of ${Math.round(width)}` : "";
  const spread = seeds > 1 && !Number.isNaN(value) ? `${number(series.low[bin])} to ${number(series.high[bin])}, n = ${series.seeds[bin]}` : null;
  const text = Number.isNaN(value) ? "no value" : `${titleOf(metric)} ${number(value)}${of}`;
  const change = scale.kind === "change" && first > 0 && !Number.isNaN(value) ? `${Math.round((value / first) * 100)} % of the first measurement, ${number(first)}` : null;
  return [name, text, change, spread, axis.say(axis.at(share))].filter(Boolean);
}

/** Left and right move along the time axis, up and down from layer to layer. */
function walk(event, row, axis) {
  const button = event.currentTarget, count = row.series.mean.length;
  if (["ArrowUp", "ArrowDown"].includes(event.key)) {
    const all = [...button.closest(".column").querySelectorAll("button.row")];
    all[all.indexOf(button) + (event.key === "ArrowUp" ? -1 : 1)]?.focus();
  } else if (["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const start = button.dataset.bin ?? row.series.mean.findLastIndex((value) => !Number.isNaN(value));
    const bin = Number(start) + (event.key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? 10 : 1);
    button.dataset.bin = Math.min(Math.max(bin, 0), count - 1);
    const share = (Number(button.dataset.bin) + 0.5) / count, box = button.querySelector(".plot").getBoundingClientRect();
    cursor(share);
    const lines = cell(row, share, axis);
    showTip(box.left + share * box.width, box.bottom, lines);
    document.getElementById("spoken").textContent = lines.join(", ");
  } else return;
  event.preventDefault();
}

function paint(row) {
  const { series, scale } = row, count = series.mean.length;
  const canvas = h("canvas", { width: count, height: 1 });
  const context = canvas.getContext("2d"), image = context.createImageData(count, 1);
  series.mean.forEach((value, bin) => {
    if (!Number.isNaN(value)) image.data.set([...colour(scale.t(value, row), scale.kind), 255], bin * 4);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function dots(done, axis, width) {
  const shares = done.map(({ data, step }) => axis.share(axis.of(data, step))).filter((share) => share >= 0 && share <= 1);
  const places = [...new Set(shares.map((share) => Math.round((share * width) / 3) * 3))];
  return places.map((x) => h("i", { class: "dot", style: `left:${x}px` }));
}
