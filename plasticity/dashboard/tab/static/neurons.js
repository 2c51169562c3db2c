// The neurons of one layer: a map (neurons x time, score as colour) and the distribution of the latest scores.

import { getNeurons } from "./data.js";
import { follow } from "./chart.js";
import { h, showTip, step, ticks } from "./dom.js";
import { colour, css, gradient } from "./palette.js";

// The codes of scores.jsonl: 0 is a score of 0, 255 is not finite, between them powers of 2 from -12 to 4.
const LOW = -12, HIGH = 4, BROKEN = 255;
const COLUMNS = 320, DORMANT = 0.025, FAINT = 0.01;

export function scoreOf(code) {
  if (code === 0) return 0;
  return code === BROKEN ? NaN : 2 ** (LOW + ((code - 1) * (HIGH - LOW)) / 253);
}

/** How bad a score is: 0 at the layer's mean and above, 1 at a hundredth of it and below; in between by ratio. */
export const badness = (score) => (score <= FAINT ? 1 : score >= 1 ? 0 : Math.log(score) / Math.log(FAINT));

const text = (score) => (Number.isNaN(score) ? "not finite" : score === 0 ? "0 (silent)" : score.toPrecision(2));

/** State of the panel that survives a refresh. */
export class NeuronPanel {
  constructor(close) {
    this.element = h("aside", { class: "neurons", role: "dialog", "aria-label": "Neurons of a layer", hidden: true });
    this.close = close;
    this.probe = "";
    this.sorted = false;
    this.at = null;
  }

  /** Show a layer of the first of `runs`, [{name, seed, data}], on an axis of steps. */
  async show(at, runs, axis) {
    const fresh = this.at === null || this.at.key !== at.key;
    this.at = at;
    this.runs = runs;
    this.axis = axis;
    this.end = axis.end;
    if (fresh || !runs.some((run) => run.name === this.run)) this.run = runs[0].name;
    await this.refresh();
    if (fresh) this.element.querySelector("button.close")?.focus();
  }

  async refresh() {
    if (this.at === null) return;
    const at = this.at, run = this.run;
    const data = await getNeurons(run, at.network, at.layer, this.probe);
    if (this.at === at && this.run === run) this.draw(data);
  }

  hide() {
    this.at = null;
    this.element.hidden = true;
  }

  draw(data) {
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.element.hidden = false;
    const codes = Uint8Array.from(atob(data.codes ?? ""), (letter) => letter.charCodeAt(0));
    this.element.replaceChildren(this.head(data), data.steps?.length ? this.body(data, codes) : empty(data));
    if (focused) this.element.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  head(data) {
    const again = (field) => (value) => { this[field] = value; this.refresh(); };
    const sort = { type: "checkbox", "data-key": "sort", checked: this.sorted, onchange: (event) => again("sorted")(event.target.checked) };
    return h("header", {},
      h("h2", {}, `${this.at.network}/${this.at.layer}`, h("small", {}, data.neurons ? ` ${data.neurons} neurons` : "")),
      this.runs.length > 1 ? pick("seed", this.runs.map((run) => [run.name, run.seed]), this.run, again("run")) : null,
      data.probes?.length > 1 ? pick("score", data.probes.map((name) => [name, name]), data.probe, again("probe")) : null,
      h("label", {}, h("input", sort), "lowest last score first"),
      h("button", {
        class: "close", "aria-label": "Close the neurons (Escape)", "data-key": "close", onclick: this.close,
      }, "✕"));
  }

  body(data, codes) {
    const rows = data.kept, last = codes.subarray(codes.length - rows);
    const order = [...Array(rows).keys()];
    if (this.sorted) order.sort((a, b) => scoreOf(last[a]) - scoreOf(last[b]) || a - b);
    const index = (row) => Math.round((order[row] * (data.neurons - 1)) / Math.max(1, rows - 1));
    // The measurement that holds at a column: the last one before its end.
    const column = (share) => data.steps.findLastIndex((at) => at <= share * this.end);
    const canvas = map(codes, rows, order, (x) => column((x + 1) / COLUMNS), (data.steps.at(-1) / this.end) * COLUMNS);
    const left = (event) => `left:${(event.step / this.end) * 100}%`;
    const marks = this.events().map((event) => h("i", { class: "line", title: event.title, style: left(event) }));
    const plot = h("div", { class: "plot", role: "img", "aria-label": this.summary(data, codes) }, canvas, marks);
    follow(plot, (share, event) => {
      const box = plot.getBoundingClientRect(), i = Math.max(0, column(share));
      const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
      const score = text(scoreOf(codes[i * rows + order[row]]));
      showTip(event.clientX, event.clientY, [`neuron ${index(row)}`, `score ${score}`, `measured at step ${step(data.steps[i])}`]);
    });
    const legend = h("span", { class: "legend" }, "score ≥ 1", h("i", { style: `background:${gradient("worse")}` }), `≤ ${FAINT}`);
    return h("div", { class: "panes" },
      h("div", { class: "pane" },
        h("div", { class: "strip tall" }, h("div", { class: "gutter" }, h("span", {}, "neurons")), plot, h("div", {})),
        stepLabels(this.axis)),
      h("div", { class: "pane side" }, h("p", { class: "summary" }, this.summary(data, codes)), distribution(last), legend));
  }

  events() {
    const run = this.runs.find((other) => other.name === this.run);
    const here = ([network, layer]) => network === this.at.network && [this.at.layer, "all"].includes(layer);
    return (run?.data.events ?? []).filter((event) => !event.note && event.sites.some(here)).slice(-100);
  }

  summary(data, codes) {
    const last = [...codes.subarray(codes.length - data.kept)].map(scoreOf);
    const silent = last.filter((score) => score === 0).length, low = last.filter((score) => score <= DORMANT).length;
    const of = data.kept < data.neurons ? ` (of ${data.neurons}, at equal distances)` : "";
    const when = `Step ${step(data.steps.at(-1))}, ${data.probe}`;
    return `${when}: ${low} of ${data.kept}${of} neurons score ${DORMANT} or less, ${silent} are silent.`;
  }
}

function stepLabels(axis) {
  const labels = ticks(0, axis.end, 7).map((value) => {
    const share = axis.share(value), move = share > 0.97 ? "-100%" : value ? "-50%" : "0";
    return h("span", { style: `left:${share * 100}%;transform:translateX(${move})` }, axis.brief(value));
  });
  return h("div", { class: "strip axis" }, h("div", { class: "gutter" }, h("span", {}, "step")), h("div", { class: "plot" }, labels), h("div", {}));
}

function empty(data) {
  const missing = "No scores of single neurons: runs keep them in scores.jsonl if a probe scores neurons (dormancy, GraMa).";
  return h("p", { class: "nothing" }, data.error ?? missing);
}

function pick(name, options, value, change) {
  const items = options.map(([key, label]) => h("option", { value: key, selected: key === value }, label));
  return h("label", {}, name, h("select", { "data-key": name, onchange: (event) => change(event.target.value) }, items));
}

function map(codes, rows, order, column, until) {
  const canvas = h("canvas", { width: COLUMNS, height: rows });
  const context = canvas.getContext("2d"), image = context.createImageData(COLUMNS, rows);
  const colours = [...Array(256).keys()].map((code) => (code === BROKEN ? [128, 0, 160] : colour(badness(scoreOf(code)))));
  for (let x = 0; x < Math.min(COLUMNS, Math.ceil(until)); x++) {
    const at = column(x);
    if (at < 0) continue;
    for (let row = 0; row < rows; row++) image.data.set([...colours[codes[at * rows + order[row]]], 255], (row * COLUMNS + x) * 4);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Bars: silent neurons, then scores by powers of 2, coloured as in the map. */
function distribution(last) {
  const edges = [0, ...Array.from({ length: 12 }, (_, i) => 2 ** (i - 8))], W = 230, H = 92;
  const counts = edges.map(() => 0);
  let broken = 0;
  for (const code of last) {
    const score = scoreOf(code);
    if (Number.isNaN(score)) broken += 1;
    else counts[score === 0 ? 0 : Math.max(1, edges.findLastIndex((edge) => edge <= score))] += 1;
  }
  const most = Math.max(...counts, 1), size = W / counts.length;
  const tall = (count) => (count / most) * (H - 14);
  const word = (i, y, name) => h("text", { x: (i + 0.5) * size, y, "text-anchor": "middle" }, name);
  const bars = counts.map((count, i) => h("rect", {
    x: i * size + 1, width: size - 2, y: H - tall(count), height: tall(count), class: "bar",
    fill: css(0.15 + 0.85 * badness(edges[i])),
  }));
  const numbers = counts.map((count, i) => (count ? word(i, H - tall(count) - 3, count) : null));
  const names = [[0, "0"], [2, "1/128"], [5, "1/16"], [9, "1"], [12, "8"]].map(([i, name]) => word(i, H + 12, name));
  const label = `Distribution of the latest scores: ${counts[0]} silent, ${broken} not finite`;
  return h("svg", { width: W, height: H + 16, role: "img", "aria-label": label, class: "bars" }, bars, numbers, names);
}
