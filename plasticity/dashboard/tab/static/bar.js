// The bar above the charts: how they stand, their axes, which maps and layers; a link to what is shown.

import { KINDS, isKnown } from "./axis.js";
import { h } from "./dom.js";
import { titleOf } from "./heat.js";
import { familiesOf, keyOf, layersOf } from "./layers.js";
import { isRank } from "./scale.js";

/** The bar's parts. `metrics`: all there are, `maps`: those shown; `actions` change the state. */
export function bar(state, { datas, metrics, maps, axis, families }, actions) {
  const toggled = (name) => (maps.includes(name) ? maps.filter((other) => other !== name) : [...maps, name]);
  return [
    choice("layout", "Layout", { beside: "side by side", over: "overlay" }, state.layout, (value) => actions.set({ layout: value })),
    choice("x", "Axis", Object.fromEntries(Object.entries(KINDS).filter(([kind]) => isKnown(kind, datas))), axis.kind, (value) => actions.set({ x: value, zoom: null })),
    state.curves.length ? curveChoice(state, actions) : null,
    smoothing(state, actions),
    tick("log", "log scale", state.log, (value) => actions.set({ log: value })),
    axis.isZoomed ? h("button", { class: "chip zoomed", "data-key": "unzoom", title: "Show all (0 on a chart)", onclick: () => actions.zoom(null) },
      `${axis.say(axis.from)} to ${axis.say(axis.to)} ✕`) : null,
    h("i", { class: "break" }),
    metrics.length ? h("div", { role: "group", "aria-label": "Metrics" }, h("span", {}, "metrics"), metrics.map((name) => h("button", {
      class: "chip", "aria-pressed": String(maps.includes(name)), "data-key": `chip/${name}`, onclick: () => actions.setMaps(toggled(name)),
    }, titleOf(name)))) : null,
    datas.length ? layerMenu(state, datas, families, actions) : null,
    maps.some(isRank) && state.layout === "beside" ? tick("byLevel", "ranks by width", state.byLevel, (value) => actions.set({ byLevel: value })) : null,
    h("span", { id: "clock", role: "status" }),
    h("button", { class: "chip", "data-key": "link", title: "Copy an address that shows what is shown now", onclick: actions.copyLink }, state.copied || "copy link"),
  ].filter(Boolean);
}

/** A few words of which one holds. */
function choice(name, label, options, value, change) {
  if (Object.keys(options).length < 2) return null;
  return h("div", { class: "choice", role: "radiogroup", "aria-label": label }, Object.entries(options).map(([key, text]) => h("button", {
    role: "radio", "aria-checked": String(key === value), "data-key": `${name}/${key}`, onclick: () => change(key),
  }, text)));
}

function tick(name, label, value, change) {
  return h("label", {}, h("input", { type: "checkbox", checked: value, "data-key": name, onchange: (event) => change(event.target.checked) }), label);
}

function curveChoice(state, actions) {
  const options = ["", ...state.curves].map((name) => h("option", { value: name, selected: name === state.above }, name || "no curve"));
  return h("label", {}, "above", h("select", { "data-key": "curve", onchange: (event) => actions.set({ curve: event.target.value }) }, options));
}

function smoothing(state, actions) {
  const change = (event) => actions.set({ smooth: Number(event.target.value) });
  const slider = { type: "range", min: 0, max: 0.99, step: 0.01, value: state.smooth, "data-key": "smooth", onchange: change };
  return h("label", { title: "Weight of the moving average; charts only, the line before is drawn faintly" }, "smoothing", h("input", slider), h("output", {}, state.smooth.toFixed(2)));
}

/** A menu of layers by network; twins such as critic_1 and critic_2 are one, or apart. */
function layerMenu(state, datas, families, actions) {
  const layers = layersOf(datas, families), keys = layers.map(keyOf);
  const isOn = (key) => !state.layers || state.layers.has(key);
  const set = (key, on) => actions.set({ layers: new Set(on ? [...keys.filter(isOn), key] : keys.filter((other) => isOn(other) && other !== key)) });
  const box = ({ network, layer }) => {
    const key = `${network}/${layer}`;
    return tick(`layer/${key}`, layer === "all" ? network : layer, isOn(key), (on) => set(key, on));
  };
  const twins = familiesOf(datas, true).size !== new Set(familiesOf(datas, true).values()).size;
  const bulk = (name, text, chosen) => h("button", { class: "link", "data-key": `layers/${name}`, onclick: () => actions.set({ layers: chosen }) }, text);
  const count = state.layers ? `${keys.filter(isOn).length} of ${keys.length}` : "all";
  return h("details", { class: "menu", open: state.menu, ontoggle: (event) => { state.menu = event.target.open; } },
    h("summary", { class: "chip", "data-key": "layers" }, `layers: ${count}`),
    h("div", { class: "sheet" },
      h("div", { class: "bulk" }, bulk("all", "all", null), bulk("whole", "whole networks", new Set(keys.filter((key) => key.endsWith("/all"))))),
      twins && tick("together", "twin networks as one", state.together, (value) => actions.set({ together: value, layers: null })),
      h("div", { class: "layers" }, layers.map((at) => h("div", { class: at.layer === "all" ? "whole" : "" }, box(at))))));
}
