// A chart as a file: SVG with its styles inside, PNG at twice the size, CSV of its numbers.

import { h } from "./dom.js";

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-size", "font-family", "font-weight", "text-anchor"];
const HEAD = 26, EDGE = 10, KEY = 18;

/**
 * Three buttons; `draw()` returns the chart's SVG element, which is on the page, `rows()` its numbers, heads first.
 * `lines`, [{label, colour, dash}], are named below a picture.
 */
export function exportTools(title, draw, rows, lines = []) {
  const name = title.replace(/[^\w.-]+/g, "-");
  const kinds = {
    SVG: () => save(`${name}.svg`, new Blob([standalone(title, draw(), lines).text], { type: "image/svg+xml" })),
    PNG: async () => save(`${name}.png`, await bitmap(standalone(title, draw(), lines))),
    CSV: () => save(`${name}.csv`, new Blob([csv(rows())], { type: "text/csv" })),
  };
  return h("div", { class: "tools", role: "group", "aria-label": `Save ${title}` }, Object.entries(kinds).map(([kind, write]) =>
    h("button", { onclick: write, title: `Save ${title} as ${kind}`, "data-key": `save/${title}/${kind}` }, kind)));
}

/** An SVG as a document of its own: {text, width, height}. What the page's style sheet says is written into it. */
export function standalone(title, svg, lines = []) {
  const copy = svg.cloneNode(true), width = +svg.getAttribute("width") + 2 * EDGE, foot = +svg.getAttribute("height") + HEAD;
  const height = foot + lines.length * KEY + EDGE;
  const made = [copy, ...copy.querySelectorAll("*")];
  [svg, ...svg.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const property of STYLES) made[i].setAttribute(property, style.getPropertyValue(property));
  });
  const page = getComputedStyle(document.body);
  copy.setAttribute("x", EDGE);
  copy.setAttribute("y", HEAD);
  const heading = h("text", { x: EDGE, y: 17, fill: page.color, "font-family": page.fontFamily, "font-size": 13, "font-weight": 600 }, title);
  const whole = h("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` },
    h("rect", { width, height, fill: page.backgroundColor }), heading, copy, lines.map((line, i) => keyLine(line, foot + i * KEY + 12, page)));
  return { text: new XMLSerializer().serializeToString(whole), width, height };
}

/** One line of the legend: a stroke as it is drawn, and whose it is. */
function keyLine({ label, colour, dash }, y, page) {
  return h("g", {},
    h("line", { x1: EDGE, x2: EDGE + 26, y1: y, y2: y, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash }),
    h("text", { x: EDGE + 34, y: y + 4, fill: page.color, "font-family": page.fontFamily, "font-size": 11 }, label));
}

async function bitmap({ text, width, height }, scale = 2) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = h("canvas", { width: width * scale, height: height * scale });
  canvas.getContext("2d").drawImage(image, 0, 0, width * scale, height * scale);
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

export function csv(rows) {
  const quoted = (cell) => (/[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
  return rows.map((row) => row.map((cell) => (Number.isNaN(cell) ? "" : quoted(cell))).join(",") + "\n").join("");
}

function save(name, blob) {
  const link = h("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
