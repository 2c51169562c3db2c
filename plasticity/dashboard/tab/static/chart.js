// A chart: lines with bands over the common axis, its labels inside, so that what is exported is what is seen.

import { brief, cursor, h, hideTip, number, showTip, ticks } from "./dom.js";
import { exportTools } from "./export.js";
import { smoothed } from "./series.js";
import { zoomable, zoomByKey } from "./zoom.js";

const TOP = 6, FOOT = 18;

/**
 * `lines`: [{label, colour, dash, series, runs}], series as `summarised` gives them. `frame`: {axis, width, height,
 * gutter, edge}, in pixels. `look`: {log, smooth, fixed, range}; `fixed` is the range of
 * a share, `range` the least and greatest number of charts that have one scale. `extras`: marks and tasks.
 */
export function lineChart(title, lines, frame, look, actions, extras = {}) {
  const { axis, width, height, gutter, edge } = frame;
  const drawn = lines.filter((line) => line.series).map((line) => ({ ...line, mean: smoothed(line.series.mean, look.smooth) }));
  const vertical = verticalOf(drawn, look, height);
  const inner = h("g", { transform: `translate(${gutter} ${TOP})` },
    (extras.tasks ?? []).map(({ from, to, name }) => h("rect", { class: "task", x: from, y: 0, width: to - from, height }, h("title", {}, name))),
    vertical.ticks.map((value) => h("line", { class: "grid", x1: 0, x2: width, y1: vertical.y(value), y2: vertical.y(value) })),
    (extras.marks ?? []).map((mark) => h("line", { class: "mark", x1: mark.x, x2: mark.x, y1: 0, y2: height })),
    drawn.map((line) => paths(line, vertical, width, look.smooth)),
    vertical.ticks.map((value) => h("text", { class: "label", x: -8, y: vertical.y(value) + 4, "text-anchor": "end" }, brief(value))),
    axisLabels(axis, width, height));
  const svg = h("svg", { width: gutter + width + edge, height: TOP + height + FOOT, role: "img", "aria-label": spoken(title, drawn) }, inner);
  const plot = h("div", {
    class: "plot field", tabindex: 0, style: `left:${gutter}px;top:${TOP}px;width:${width}px;height:${height}px`,
    "aria-label": `${spoken(title, drawn)}; arrows read, + and - zoom, 0 shows all`, role: "application", "data-key": `chart/${title}`,
  }, drawn.length ? null : h("span", { class: "nothing" }, `no ${title} in these runs`));
  reading(plot, title, drawn, axis, actions);
  const tools = exportTools(title, () => svg, () => rowsOf(title, lines, axis), drawn);
  return h("figure", { class: "chart", "data-chart": title }, svg, plot, tools, vertical.note && h("small", { class: "remark" }, vertical.note));
}

/** The vertical axis: y(value), its ticks, and a note where a log scale was asked for and cannot be. */
function verticalOf(drawn, { log, fixed, range }, height) {
  const values = range ?? valuesOf(drawn);
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) [low, high] = [0, 1];
  const isLog = log && low > 0, isFixed = fixed && !isLog;
  if (isFixed) [low, high] = fixed;
  if (isLog) [low, high] = [Math.log10(low), Math.log10(high)];
  const pad = isFixed ? 0 : (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - pad, high + pad];
  const y = (value) => height - (((isLog ? Math.log10(value) : value) - low) / (high - low)) * height;
  const count = height > 130 ? 5 : 3, note = log && !isLog && values.length ? "linear: not all values are above 0" : "";
  return { y, ticks: isLog ? powers(low, high, count) : ticks(low, high, count), note };
}

/** All numbers that lines and bands are drawn at. */
export function valuesOf(lines) {
  return lines.flatMap(({ series, runs }) => (runs > 1 ? [...series.low, ...series.high] : [...(series?.mean ?? [])])).filter((v) => !Number.isNaN(v));
}

/** Powers of ten inside a range of exponents; where it is narrow, round numbers. */
function powers(low, high, count) {
  const whole = ticks(low, high, count).filter(Number.isInteger).map((power) => 10 ** power);
  return whole.length > 1 ? whole : ticks(10 ** low, 10 ** high, count).filter((value) => value > 0);
}

function paths({ series, mean, runs, colour, dash }, { y }, width, smooth) {
  const x = (bin) => ((bin + 0.5) / mean.length) * width;
  const at = (bin, value) => `${x(bin).toFixed(1)},${y(value).toFixed(1)}`;
  const known = [...mean.keys()].filter((bin) => !Number.isNaN(mean[bin]));
  const drawn = known.length === 1 ? [...known, ...known] : known; // of a line without length, round ends make a dot
  const line = (row) => drawn.map((bin) => at(bin, row[bin])).join(" ");
  const band = [...known.map((bin) => at(bin, series.high[bin])), ...known.toReversed().map((bin) => at(bin, series.low[bin]))].join(" ");
  const stroke = { fill: "none", stroke: colour, "stroke-width": drawn === known ? 1.6 : 6, "stroke-linejoin": "round",
    "stroke-linecap": drawn === known ? "butt" : "round", "stroke-dasharray": dash };
  return [
    runs > 1 && h("polygon", { points: band, fill: colour, opacity: 0.16 }),
    smooth > 0 && h("polyline", { ...stroke, points: line(series.mean), "stroke-width": 1, opacity: 0.35 }),
    h("polyline", { ...stroke, points: line(mean), class: "curve" }),
  ];
}

function axisLabels(axis, width, height) {
  return ticks(axis.from, axis.to, Math.max(2, Math.round(width / 90))).map((value) => {
    const share = axis.share(value);
    const anchor = share > 0.97 ? "end" : share > 0.03 ? "middle" : "start";
    return h("text", { class: "label", x: share * width, y: height + 14, "text-anchor": anchor }, axis.brief(value));
  });
}

function spoken(title, drawn) {
  const ends = drawn.map(({ label, mean }) => `${label} ${number(mean.findLast((value) => !Number.isNaN(value)) ?? NaN)}`);
  return drawn.length ? `${title}; latest: ${ends.join(", ")}` : `${title}: not logged`;
}

/** The pointer and the keys of a chart: read values, choose a part of the axis. */
function reading(plot, title, drawn, axis, { zoom }) {
  const lines = (share) => [`${title}, ${axis.say(axis.at(share))}`, ...drawn.map((line) => valueLine(line, share)).filter(Boolean)];
  follow(plot, (share, event) => showTip(event.clientX, event.clientY, lines(share)));
  zoomable(plot, axis, zoom);
  plot.addEventListener("keydown", (event) => {
    const share = Number(plot.dataset.share ?? 0.5), part = zoomByKey(event, axis, share);
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (part !== undefined) zoom(part);
    else if (way) {
      const next = Math.min(Math.max(share + way / 80, 0), 0.9999), box = plot.getBoundingClientRect();
      plot.dataset.share = next;
      cursor(next);
      showTip(box.left + next * box.width, box.top + 20, lines(next));
      document.getElementById("spoken").textContent = lines(next).join(", ");
    } else return;
    event.preventDefault();
  });
  plot.addEventListener("blur", () => { cursor(null); hideTip(); });
}

function valueLine({ label, series, mean, runs }, share) {
  const bin = Math.min(mean.length - 1, Math.floor(share * mean.length));
  if (Number.isNaN(mean[bin])) return null;
  const spread = runs > 1 ? `, ${number(series.low[bin])} to ${number(series.high[bin])}, n = ${series.seeds[bin]}` : "";
  return `${label} ${number(mean[bin])}${spread}`;
}

/** The points of a chart as rows of a table, for CSV: the means as they are, not smoothed. */
function rowsOf(title, lines, axis) {
  const found = [["configuration", "metric", axis.kind === "time" ? "seconds" : axis.kind, "mean", "low", "high", "n"]];
  for (const { label, series } of lines.filter((line) => line.series)) {
    series.mean.forEach((value, bin) => {
      if (Number.isNaN(value)) return;
      const end = axis.at((bin + 1) / series.mean.length);
      found.push([label, title, +end.toPrecision(8), value, series.low[bin], series.high[bin], series.seeds[bin]]);
    });
  }
  return found;
}

/** Call `move(share of the axis, event)` as the pointer moves over a plot, with the common cursor. */
export function follow(plot, move) {
  plot.addEventListener("mousemove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.9999);
    cursor(share);
    move(share, event);
  });
  plot.addEventListener("mouseleave", () => {
    cursor(null);
    hideTip();
  });
}
