// The Plasticity tab: state, refresh, and the page put together. TensorBoard calls render().

import { Axis, isKnown } from "./axis.js";
import { bar } from "./bar.js";
import { columns, message, numRows } from "./columns.js";
import { getRuns, updateSeries } from "./data.js";
import { cursor, h, hideTip, keepingPlace, natural } from "./dom.js";
import { familiesOf, layersOf, metricsOf } from "./layers.js";
import { linkTo, recall, remember } from "./link.js";
import { NeuronPanel } from "./neurons.js";
import { overlay } from "./overlay.js";
import { NUM_COLOURS, coloursOf } from "./palette.js";
import { ordered, ranges, setMetrics, usualMaps } from "./scale.js";
import { groupsOf, sidebar } from "./sidebar.js";
import { followTheme } from "./theme.js";

const LIVE_MS = 3000, IDLE_MS = 10000, AT_FIRST = 2, FEW_MAPS = 3, COPIED_MS = 2500;

/** What can be chosen, as it is at first: `null` is for "as usual". The rest of the state belongs to the moment. */
const USUAL = {
  shown: null, hidden: new Set(), maps: null, layers: null,
  curve: null, layout: "beside", x: "step", log: false, smooth: 0, zoom: null, together: true, byLevel: false,
};
const state = {
  ...USUAL, hidden: new Set(),
  runs: [], curves: [], metrics: [], faults: [], filter: "", expanded: new Set(), menu: false,
  above: "", layer: null, error: "", updated: null, copied: "",
};
const store = new Map();
let panel, timer, asking = false, wanted = false;

/** TensorBoard's entry point. */
export async function render() {
  document.documentElement.lang = "en";
  document.title = "Plasticity";
  const sheet = h("link", { rel: "stylesheet", href: new URL("style.css", import.meta.url) });
  const styled = new Promise((resolve) => { sheet.onload = sheet.onerror = resolve; });
  document.head.append(sheet);
  recall(state);
  panel = new NeuronPanel(closeLayer);
  document.body.append(
    h("nav", { id: "runs", "aria-label": "Runs" }),
    h("main", {}, h("div", { id: "bar", role: "toolbar", "aria-label": "What is shown" }), h("div", { id: "columns" })),
    panel.element,
    h("div", { id: "spoken", class: "offscreen", "aria-live": "polite" }),
  );
  cursor(null);
  followTheme(() => {
    if (state.updated) draw();
    panel.refresh();
  });
  await styled;
  window.addEventListener("resize", draw);
  window.addEventListener("keydown", shortcut);
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  await refresh();
}

// -- data -------------------------------------------------------------------------------------------------------------

async function refresh() {
  if (asking) return void (wanted = true);
  asking = true;
  clearTimeout(timer);
  try {
    await ask();
  } catch (error) {
    failed(error);
  }
  asking = false;
  if (wanted) {
    wanted = false;
    return refresh();
  }
  const live = state.runs.some((run) => run.status === "live") || !state.runs.length;
  if (!document.hidden) timer = setTimeout(refresh, live ? LIVE_MS : IDLE_MS);
}

async function ask() {
  const found = await getRuns(), listed = () => JSON.stringify([state.runs, state.curves, state.metrics, state.faults, state.error]);
  const before = listed();
  state.error = "";
  setMetrics(found.metrics);
  Object.assign(state, { runs: found.runs, curves: found.curves, metrics: found.metrics, faults: found.faults });
  state.shown ??= found.runs.length ? firstShown(found.runs) : null;
  const shown = visible().flatMap((group) => group.runs), names = shown.map((run) => run.name);
  state.above = state.curve === "" || state.curves.includes(state.curve) ? state.curve : usualCurve(shown);
  const known = names.map((name) => store.get(name)).filter(Boolean);
  const maps = known.length ? chosenMaps(ordered(metricsOf(known))) : usualMaps();
  const news = await updateSeries(store, names, { curve: state.above, maps, detail: axisOf(known).detail });
  state.updated = new Date();
  if (news || before !== listed()) draw();
  else drawClock();
  if (news) await panel.refresh();
}

/** The latest configurations with probes. */
function firstShown(runs) {
  const groups = groupsOf(runs), probed = groups.filter((group) => group.runs.some((run) => run.probed));
  return new Set((probed.length ? probed : groups).slice(0, AT_FIRST).map((group) => group.label));
}

/** The curve above if nobody chose one: the first of the list that is a return of the runs shown, else a loss. */
const usualCurve = (runs) => state.curves.find((tag) => runs.some((run) => run.curve === tag)) ?? "";

/** The groups that are chosen, without hidden runs. */
function chosen() {
  return groupsOf(state.runs)
    .filter((group) => state.shown?.has(group.label))
    .map((group) => ({ ...group, runs: group.runs.filter((run) => !state.hidden.has(run.name)) }))
    .filter((group) => group.runs.length)
    .sort((a, b) => natural(a.label, b.label));
}

/** Those of them that there are colours for. */
const visible = () => chosen().slice(0, NUM_COLOURS);

/** Runs with what is known of them, without those that are still to come. */
const loaded = (runs) => runs.filter((run) => store.has(run.name)).map((run) => ({ ...run, data: store.get(run.name) }));

const axisOf = (datas) => new Axis(isKnown(state.x, datas) ? state.x : "step", datas, state.zoom);

// -- drawing ----------------------------------------------------------------------------------------------------------

function draw() {
  const groups = visible().map((group) => ({ ...group, runs: loaded(group.runs) }));
  const colours = coloursOf(groups.map((group) => group.label));
  const datas = groups.flatMap((group) => group.runs.map((run) => run.data));
  const metrics = ordered(metricsOf(datas)), maps = chosenMaps(metrics);
  const axis = axisOf(datas), families = familiesOf(datas, state.together);
  const place = document.getElementById("columns");
  const common = { state, maps, colours, axis, families, range: ranges(datas), actions };
  const shape = state.layout === "over" ? overlay : columns;
  keepingPlace(panel.element, () => {
    document.getElementById("runs").replaceChildren(...sidebar(state, colours, chosen().length, actions));
    document.getElementById("bar").replaceChildren(...bar(state, { datas, metrics, maps, axis, families }, actions));
    place.className = state.layout;
    place.style.setProperty("--rows", numRows(maps));
    place.replaceChildren(...(nothing(groups) ?? shape(groups, common, place.clientWidth || innerWidth)));
  });
  drawClock();
}

function nothing(groups) {
  if (!state.runs.length) return [message("No runs yet", "They appear as soon as TensorBoard has found the first numbers.")];
  return groups.length ? null : [message("Nothing chosen", "Tick a configuration on the left.")];
}

/** The metrics drawn as maps: those chosen, else the usual ones, else the first. */
function chosenMaps(metrics) {
  const usual = usualMaps();
  const wanted = metrics.filter((name) => (state.maps ? state.maps.has(name) : usual.includes(name)));
  if (wanted.length || state.maps?.size === 0) return wanted;
  const there = metrics.filter((name) => usual.includes(name)); // the choice was made for other runs
  return there.length ? there : metrics.slice(0, FEW_MAPS);
}

function drawClock() {
  const clock = document.getElementById("clock");
  if (!clock) return;
  const live = state.runs.some((run) => run.status === "live");
  clock.className = state.error ? "failed" : live ? "live" : "";
  const time = state.updated?.toLocaleTimeString("en-GB") ?? "";
  clock.textContent = state.error || (live ? `live, updated ${time}` : time && `up to date ${time}`);
}

// -- what the user does ------------------------------------------------------------------------------------------------

function flip(set, name) {
  if (set.has(name)) set.delete(name);
  else set.add(name);
}

/** Change the state, draw it, and ask for what is missing. */
function change(edit) {
  edit();
  remember(state, USUAL);
  draw();
  refresh();
}

const actions = {
  toggleGroup: (label) => change(() => flip((state.shown ??= new Set()), label)),
  toggleRun: (name) => change(() => flip(state.hidden, name)),
  showOnly: (labels) => change(() => (state.shown = new Set(labels))),
  setFilter: (text) => { state.filter = text; draw(); },
  setMaps: (names) => change(() => (state.maps = new Set(names))),
  set: (values) => change(() => Object.assign(state, values)),
  zoom: (part) => change(() => (state.zoom = part)),
  expand: (label) => { flip(state.expanded, label); draw(); },
  openLayer, copyLink,
};

/** Copy the permalink; where a page may not, show it in the address, from where it can be copied. */
async function copyLink() {
  const link = linkTo(state, USUAL);
  document.body.dataset.link = link;
  try {
    await navigator.clipboard.writeText(link);
    state.copied = "copied";
  } catch {
    prompt("The address of what is shown:", link);
  }
  draw();
  setTimeout(() => { state.copied = ""; draw(); }, COPIED_MS);
}

/** Show the neurons of a layer of a group; of a whole network those of its first layer. */
function openLayer(group, network, layer) {
  const runs = loaded(visible().find((other) => other.label === group)?.runs ?? []);
  const layers = layersOf(runs.map((run) => run.data)).filter((at) => at.network === network && at.layer !== "all");
  if (layer === "all") layer = layers[0]?.layer;
  if (layer === undefined) return;
  state.layer = { group, network, layer, from: document.activeElement?.dataset?.key };
  draw();
  const axis = new Axis("step", visible().flatMap((other) => loaded(other.runs)).map((run) => run.data));
  panel.show({ key: `${group}/${network}/${layer}`, network, layer }, runs, axis).catch(failed);
}

function failed(error) {
  state.error = `TensorBoard does not answer (${error.message}); trying again`;
  drawClock();
}

function closeLayer() {
  const from = state.layer?.from;
  state.layer = null;
  panel.hide();
  draw();
  if (from) document.querySelector(`[data-key="${CSS.escape(from)}"]`)?.focus();
}

function shortcut(event) {
  if (event.key === "Escape") {
    hideTip();
    if (state.menu) { state.menu = false; draw(); }
    else if (state.layer) closeLayer();
  } else if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement?.tagName)) {
    event.preventDefault();
    document.querySelector('[data-key="filter"]')?.focus();
  }
}
