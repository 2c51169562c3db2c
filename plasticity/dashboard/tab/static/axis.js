// The axis that all charts and maps share: environment steps, updates, or wall-clock time; all of it or a part.

import { brief } from "./dom.js";

export const KINDS = { step: "steps", update: "updates", time: "wall time" };

/** Between two measurements the clock runs evenly; before the first and after the last it stands still. */
function interpolated([xs, ys], x) {
  if (!xs.length) return NaN;
  let low = 0, high = xs.length - 1;
  if (x <= xs[low]) return ys[low];
  if (x >= xs[high]) return ys[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  return ys[low] + ((ys[high] - ys[low]) * (x - xs[low])) / (xs[high] - xs[low]);
}

/** The last step that a run has logged. */
export function lastStep({ curve, events, series }) {
  return Math.max(0, curve?.[0].at(-1) ?? 0, events.at(-1)?.step ?? 0, ...series.map(({ points: [steps] }) => steps.at(-1) ?? 0));
}

/** Whether any of `datas` knows the positions of an axis. */
export const isKnown = (kind, datas) => kind === "step" || datas.some((data) => data.clock[kind]?.[0].length > 1);

export class Axis {
  /** `zoom`: the part that is shown, [from, to] in the axis' own units, null for all of it. */
  constructor(kind, datas, zoom = null) {
    this.kind = kind;
    this.end = Math.max(...datas.map((data) => this.of(data, lastStep(data))).filter(Number.isFinite), 0) || 1;
    const [from, to] = zoom ?? [0, this.end];
    this.from = Math.min(Math.max(0, from), this.end * 0.999);
    this.to = Math.max(Math.min(to, this.end), this.from + this.end / 1000);
  }

  /** Where a step of a run lies, in the axis' units; NaN where that was not logged. */
  of(data, step) {
    if (this.kind === "step") return step;
    return data.clock[this.kind] ? interpolated(data.clock[this.kind], step) : NaN;
  }

  share(position) {
    return (position - this.from) / (this.to - this.from);
  }

  at(share) {
    return this.from + share * (this.to - this.from);
  }

  get isZoomed() {
    return this.from > 0 || this.to < this.end;
  }

  /** How much finer than usual the server should answer. */
  get detail() {
    return 2 ** Math.min(4, Math.floor(Math.log2(this.end / (this.to - this.from))));
  }

  /** A position in words: "step 1,500", "update 40", "1 h 20 min". */
  say(position) {
    return this.kind === "time" ? duration(position) : `${this.kind} ${Math.round(position).toLocaleString("en-GB")}`;
  }

  /** A position as a label of the axis. */
  brief(position) {
    return this.kind === "time" ? clockTime(position, this.to) : brief(position);
  }
}

function duration(seconds) {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${Math.round(s)} s` : `${+s.toPrecision(3)} s`;
}

function clockTime(seconds, longest) {
  const [size, unit] = longest >= 7200 ? [3600, "h"] : longest >= 120 ? [60, "min"] : [1, "s"];
  return `${+(seconds / size).toPrecision(3)} ${unit}`;
}
