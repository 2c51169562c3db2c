// A part of the axis, chosen on any chart or map: drag, double click, or keys.

import { h } from "./dom.js";

const LEAST = 6; // pixels that are a drag and not a click

/** Let a plot choose a part of `axis`: `zoom([from, to])`, `zoom(null)` for all of it. */
export function zoomable(plot, axis, zoom) {
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const box = plot.getBoundingClientRect(), start = event.clientX;
    const share = (x) => Math.min(Math.max((x - box.left) / box.width, 0), 1);
    const frame = h("div", { class: "frame" });
    const move = ({ clientX: x }) => {
      if (Math.abs(x - start) < LEAST && !frame.isConnected) return;
      if (!frame.isConnected) plot.append(frame);
      const [left, right] = [share(start), share(x)].sort((a, b) => a - b);
      frame.style.cssText = `left:${left * 100}%;width:${(right - left) * 100}%`;
    };
    const stop = ({ clientX: x, type }) => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", stop);
      removeEventListener("pointercancel", stop);
      if (!frame.isConnected) return;
      frame.remove();
      addEventListener("click", swallow, { capture: true, once: true }); // the drag ends on a button
      setTimeout(() => removeEventListener("click", swallow, { capture: true }));
      const [left, right] = [share(start), share(x)].sort((a, b) => a - b);
      if (type === "pointerup" && (right - left) * box.width >= LEAST) zoom([axis.at(left), axis.at(right)]);
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", stop);
    addEventListener("pointercancel", stop);
  });
  plot.addEventListener("dblclick", () => zoom(null));
}

const swallow = (event) => {
  event.stopPropagation();
  event.preventDefault();
};

/** What a key means on a chart whose cursor is at `share`: the new part of the axis, undefined for another key. */
export function zoomByKey({ key, shiftKey }, axis, share) {
  const span = axis.to - axis.from, middle = axis.at(share);
  const part = (from, width) => {
    const left = Math.min(Math.max(0, from), Math.max(0, axis.end - width));
    return width >= axis.end ? null : [left, left + width];
  };
  if (key === "+" || key === "=") return part(middle - span / 4, span / 2);
  if (key === "-") return part(middle - span, span * 2);
  if (key === "0") return null;
  if (shiftKey && key === "ArrowLeft") return part(axis.from - span / 4, span);
  if (shiftKey && key === "ArrowRight") return part(axis.from + span / 4, span);
}
