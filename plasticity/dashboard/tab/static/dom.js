// Small helpers: elements, numbers as text, one tooltip.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "g", "path", "line", "rect", "text", "polyline", "polygon", "title"]);

/** Make an element; `on...` properties are listeners, the rest attributes; null and false leave an attribute out. */
export function h(tag, properties = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return element;
}

/** A step as text: 1,500 or, on an axis, 1.5k. */
export const step = (value) => Math.round(value).toLocaleString("en-GB");

export function brief(value) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)}${letter}`;
  }
  return `${+value.toPrecision(3)}`;
}

/** A value with three digits; a dash where there is none. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(1);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size >= 1 ? value.toFixed(2) : value.toFixed(3);
}

/** About `count` round numbers from `low` to `high`. */
export function ticks(low, high, count) {
  const raw = (high - low) / count;
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-9; i++) found.push(i * size);
  return found;
}

/** Numbers inside names compare as numbers: q.2 before q.10. */
export const natural = (a, b) => a.localeCompare(b, "en", { numeric: true });

let bubble = null;

/** Show `lines` beside a point of the window; the first is the heading. */
export function showTip(x, y, lines) {
  bubble ??= document.body.appendChild(h("div", { class: "tip", role: "tooltip" }));
  bubble.replaceChildren(...lines.map((line, i) => h(i ? "div" : "strong", {}, line)));
  bubble.style.display = "block";
  const { width, height } = bubble.getBoundingClientRect();
  bubble.style.left = `${Math.max(4, x + 14 + width > innerWidth ? x - width - 10 : x + 14)}px`;
  bubble.style.top = `${Math.max(4, y + 14 + height > innerHeight ? y - height - 10 : y + 14)}px`;
}

export function hideTip() {
  if (bubble) bubble.style.display = "none";
}

/** Let an element tell `lines()` on hover and on keyboard focus. */
export function tells(element, lines) {
  element.addEventListener("mousemove", (event) => showTip(event.clientX, event.clientY, lines()));
  element.addEventListener("mouseleave", hideTip);
  element.addEventListener("focus", () => {
    const box = element.getBoundingClientRect();
    if (element.matches(":focus-visible")) showTip(box.right, box.bottom, lines());
  });
  element.addEventListener("blur", hideTip);
  return element;
}

/** Give the page's charts a common time cursor: a line at a share of the axis, hidden for null. */
export function cursor(share) {
  document.body.style.setProperty("--cursor", share === null ? "-1" : `${share}`);
}

/** Redraw without losing the keyboard focus, the caret or the scroll positions; `panel` keeps its own. */
export function keepingPlace(panel, redraw) {
  const active = document.activeElement, key = active?.dataset?.key, column = active?.closest?.(".column")?.dataset.group;
  const caret = active?.selectionStart, inPanel = panel.contains(active);
  const places = ["#columns", ".groups", ".layers"].map((path) => [path, document.querySelector(path)]).map(([path, e]) => [path, e?.scrollLeft, e?.scrollTop]);
  redraw();
  for (const [path, left, top] of places) document.querySelector(path)?.scrollTo(left ?? 0, top ?? 0);
  if (!key || inPanel) return;
  const scope = [...document.querySelectorAll(".column")].find((e) => e.dataset.group === column) ?? document;
  const again = scope.querySelector(`[data-key="${CSS.escape(key)}"]`) ?? document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  again?.focus({ preventScroll: true });
  if (again?.type === "search") again.setSelectionRange(caret, caret);
}
