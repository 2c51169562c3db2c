// The return of a group of runs over time, with its band, and the lane of event marks below it.

import { binned, summarised } from "./data.js";
import { brief, cursor, h, hideTip, number, showTip, step, tells, ticks } from "./dom.js";

export const BINS = 160;
const HEIGHT = 96, LANE = 18, MARK = 9;

/** Mean and band of the curve over the seeds, on the common bins; null where no run has it. */
export function curveOf(datas, end) {
  const rows = datas.filter((data) => data.curve).map((data) => binned(data.curve, BINS, end));
  return rows.length ? { ...summarised(rows), runs: rows.length } : null;
}

/** Range of several curves, a little wider than the data. */
export function rangeOf(curves) {
  const values = curves.filter(Boolean).flatMap((c) => [...c.low, ...c.high]).filter((v) => !Number.isNaN(v));
  if (!values.length) return [0, 1];
  const low = Math.min(...values), high = Math.max(...values);
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - pad, high + pad];
}

/** The chart: `width` is that of the plot in pixels, `end` the last step of the axis. */
export function curveChart(curve, { title, range, width, end, colour, marks, tasks }) {
  const x = (bin) => ((bin + 0.5) / BINS) * width;
  const y = (value) => HEIGHT - ((value - range[0]) / (range[1] - range[0])) * HEIGHT;
  const grid = ticks(range[0], range[1], 3).map((value) => h("line", { class: "grid", x1: 0, x2: width, y1: y(value), y2: y(value) }));
  const known = curve ? [...curve.mean.keys()].filter((bin) => !Number.isNaN(curve.mean[bin])) : [];
  const line = known.map((bin) => `${x(bin).toFixed(1)},${y(curve.mean[bin]).toFixed(1)}`).join(" ");
  const band = curve && curve.runs > 1
    ? [...known.map((bin) => [bin, curve.high[bin]]), ...known.reverse().map((bin) => [bin, curve.low[bin]])]
        .map(([bin, value]) => `${x(bin).toFixed(1)},${y(value).toFixed(1)}`).join(" ")
    : null;
  const last = known.length ? curve.mean[Math.max(...known)] : NaN;
  const label = curve ? `${title}, ${number(last)} at the end of what is known` : `${title}: not logged`;
  const svg = h("svg", { width, height: HEIGHT, role: "img", "aria-label": label },
    tasks.map(({ from, to, name }) => h("rect", { class: "task", x: from, y: 0, width: to - from, height: HEIGHT }, h("title", {}, name))),
    grid,
    marks.map((mark) => h("line", { class: "mark", x1: mark.x, x2: mark.x, y1: 0, y2: HEIGHT })),
    band && h("polygon", { points: band, fill: colour, opacity: 0.18 }),
    h("polyline", { points: line, fill: "none", stroke: colour, "stroke-width": 1.6, "stroke-linejoin": "round" }),
  );
  const plot = h("div", { class: "plot" }, svg, curve ? null : h("span", { class: "nothing" }, `no ${title} in these runs`));
  follow(plot, (share, event) => {
    const bin = Math.min(BINS - 1, Math.floor(share * BINS));
    if (!curve || Number.isNaN(curve.mean[bin])) return hideTip();
    const spread = curve.runs > 1 ? `${number(curve.low[bin])} to ${number(curve.high[bin])}, n = ${curve.seeds[bin]}` : null;
    showTip(event.clientX, event.clientY, [`${title} ${number(curve.mean[bin])}`, spread, `step ${step(share * end)}`].filter(Boolean));
  });
  const labels = ticks(range[0], range[1], 3).map((value) => h("span", { style: `top:${y(value)}px` }, brief(value)));
  return h("div", { class: "chart" }, h("div", { class: "gutter" }, labels), plot, h("div", {}));
}

/** Call `move(share of the axis, event)` as the pointer moves over a plot, with the common time cursor. */
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

/** Every second task of a stream as a band: [{from, to, name}] in pixels, as the first run has them that has tasks. */
export function tasksOf(runs, width, end) {
  const starts = runs.map(({ data }) => data.events.filter((event) => event.name === "task")).find((events) => events.length > 1) ?? [];
  const x = (event) => Math.min(width, ((event?.step ?? end) / end) * width);
  return starts.map((event, i) => ({ from: x(event), to: x(starts[i + 1]), name: event.title })).filter((_, i) => i % 2 === 1);
}

/** Marks of all events, those closer than a mark is wide as one: [{x, events, note}]. */
export function marksOf(runs, width, end) {
  const places = new Map();
  for (const { seed, data } of runs) {
    for (const event of data.events) {
      const x = Math.min(width - 1, (event.step / end) * width), key = Math.round(x / MARK);
      if (!places.has(key)) places.set(key, { x, events: [] });
      places.get(key).events.push({ seed, ...event });
    }
  }
  return [...places.values()].map((mark) => ({ ...mark, note: mark.events.every((event) => event.note) }));
}

/** The lane of marks: each tells on hover and on focus what was done. */
export function lane(marks, several, width) {
  const buttons = marks.map((mark) => {
    const lines = markLines(mark, several);
    const style = `left:${mark.x}px`;
    const name = { "aria-label": lines.join(". "), "data-key": `mark/${lines[0]}` };
    return tells(h("button", { class: mark.note ? "event note" : "event", style, ...name }), () => lines);
  });
  return h("div", { class: "chart lane", style: `height:${LANE}px` },
    h("div", { class: "gutter" }, h("span", {}, "events")), h("div", { class: "plot", style: `width:${width}px` }, buttons), h("div", {}));
}

function markLines({ events }, several) {
  const name = (event) => (several ? `${event.seed}: ${event.title}` : event.title);
  if (events.length === 1) return [`step ${step(events[0].step)} ${name(events[0])}`, ...events[0].effects, ...events[0].details];
  const shown = events.slice(0, 6).map((event) => [`step ${step(event.step)} ${name(event)}`, ...event.effects.slice(0, 1)]);
  const more = events.length > 6 ? [`and ${events.length - 6} more`] : [];
  const steps = events.map((event) => event.step), first = Math.min(...steps), last = Math.max(...steps);
  const when = first === last ? `at step ${step(first)}` : `at steps ${step(first)} to ${step(last)}`;
  return [`${events.length} events ${when}`, ...shown.flat(), ...more];
}

/** The axis of steps. */
export function axis(width, end, name = "step") {
  const labels = ticks(0, end, Math.max(2, Math.round(width / 90))).map((value) => {
    const edge = value / end > 0.97 ? "transform:translateX(-100%)" : value ? "transform:translateX(-50%)" : "";
    return h("span", { style: `left:${(value / end) * 100}%;${edge}` }, brief(value));
  });
  const gutter = h("div", { class: "gutter" }, h("span", {}, name));
  return h("div", { class: "chart axis" }, gutter, h("div", { class: "plot" }, labels), h("div", {}));
}
