// The bar above the columns: which maps, which networks, which curve.

import { layersOf } from "./data.js";
import { h } from "./dom.js";

/** The bar's parts. `metrics`: all there are, `maps`: those shown; `set` changes one choice of the state. */
export function bar(state, datas, metrics, maps, { setMaps, toggleNetwork, setCurve }) {
  const networks = [...new Set(layersOf(datas).map((at) => at.network))];
  const toggled = (name) => (maps.includes(name) ? maps.filter((other) => other !== name) : [...maps, name]);
  return [
    metrics.length
      ? choices("maps", "Heat maps", metrics, (name) => maps.includes(name), (name) => setMaps(toggled(name)))
      : null,
    networks.length > 1
      ? choices(state.networks.size ? "networks" : "networks (all)", "Networks", networks,
          (name) => state.networks.has(name), toggleNetwork)
      : null,
    state.curves.length ? curveChoice(state, setCurve) : null,
    h("span", { id: "clock", role: "status" }),
  ].filter(Boolean);
}

function choices(title, label, names, isOn, toggle) {
  const chips = names.map((name) => h("button", {
    class: "chip", "aria-pressed": String(isOn(name)), "data-key": `chip/${name}`, onclick: () => toggle(name),
  }, name.replaceAll("_", " ")));
  return h("div", { role: "group", "aria-label": label }, h("span", {}, title), chips);
}

function curveChoice(state, setCurve) {
  const options = state.curves.map((name) => h("option", { value: name, selected: name === state.curve }, name));
  return h("label", {}, "above",
    h("select", { "data-key": "curve", onchange: (event) => setCurve(event.target.value) }, options));
}
