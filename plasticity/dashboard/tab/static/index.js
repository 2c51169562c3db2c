// The Plasticity tab: state, refresh, and the page put together. TensorBoard calls render().

import { bar } from "./bar.js";
import { columns, lastStep, message, numRows } from "./columns.js";
import { getRuns, layersOf, metricsOf, updateSeries } from "./data.js";
import { cursor, h, hideTip, natural } from "./dom.js";
import { NeuronPanel } from "./neurons.js";
import { ordered, seriesColour, setMetrics, setTheme, usualMaps } from "./scale.js";
import { groupsOf, sidebar } from "./sidebar.js";

const LIVE_MS = 3000, IDLE_MS = 10000, MOST_COLUMNS = 12, AT_FIRST = 2, FEW_MAPS = 3;

const state = {
  runs: [], curves: [], curve: null, metrics: [],
  shown: null, hidden: new Set(), filter: "",
  maps: null, networks: new Set(), expanded: new Set(),
  layer: null, error: "", updated: null,
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
  recall();
  panel = new NeuronPanel(closeLayer);
  document.body.append(
    h("nav", { id: "runs", "aria-label": "Runs" }),
    h("main", {}, h("div", { id: "bar", role: "toolbar", "aria-label": "What is shown" }), h("div", { id: "columns" })),
    panel.element,
    h("div", { id: "spoken", class: "offscreen", "aria-live": "polite" }),
  );
  cursor(null);
  watchTheme();
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
    const found = await getRuns();
    const before = JSON.stringify([state.runs, state.curves, state.metrics, state.error]);
    state.error = "";
    setMetrics(found.metrics);
    Object.assign(state, { runs: found.runs, curves: found.curves, metrics: found.metrics });
    state.shown ??= found.runs.length ? firstShown(found.runs) : null;
    if (!state.curves.includes(state.curve)) state.curve = state.curves[0] ?? null;
    const names = visible().flatMap((group) => group.runs.map((run) => run.name));
    const known = names.map((name) => store.get(name)).filter(Boolean);
    const maps = known.length ? chosenMaps(ordered(metricsOf(known))) : usualMaps();
    const news = await updateSeries(store, names, state.curve ?? "", maps);
    state.updated = new Date();
    if (news || before !== JSON.stringify([state.runs, state.curves, state.metrics, state.error])) draw();
    else drawClock();
    if (news) await panel.refresh();
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

/** The latest configurations with probes. */
function firstShown(runs) {
  const groups = groupsOf(runs), probed = groups.filter((group) => group.runs.some((run) => run.probed));
  return new Set((probed.length ? probed : groups).slice(0, AT_FIRST).map((group) => group.label));
}

/** The groups that are shown, without hidden runs. */
function visible() {
  return groupsOf(state.runs)
    .filter((group) => state.shown?.has(group.label))
    .map((group) => ({ ...group, runs: group.runs.filter((run) => !state.hidden.has(run.name)) }))
    .filter((group) => group.runs.length)
    .sort((a, b) => natural(a.label, b.label))
    .slice(0, MOST_COLUMNS);
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function draw() {
  const groups = visible().map((group) => ({ ...group, runs: loaded(group.runs) }));
  const colours = new Map(groups.map((group, i) => [group.label, seriesColour(i)]));
  const datas = groups.flatMap((group) => group.runs.map((run) => run.data));
  const metrics = ordered(metricsOf(datas)), maps = chosenMaps(metrics);
  const place = document.getElementById("columns");
  const space = place.clientWidth || innerWidth;
  keepingPlace(() => {
    document.getElementById("runs").replaceChildren(...sidebar(state, colours, actions));
    document.getElementById("bar").replaceChildren(...bar(state, datas, metrics, maps, actions));
    place.style.setProperty("--rows", numRows(maps));
    place.replaceChildren(...(nothing(groups) ?? columns(groups, { state, maps, colours, space, actions })));
  });
  drawClock();
}

/** Runs with what is known of them, without those that are still to come. */
const loaded = (runs) => runs.filter((run) => store.has(run.name)).map((run) => ({ ...run, data: store.get(run.name) }));

function nothing(groups) {
  if (!state.runs.length) return [message("No runs yet", "They appear as soon as TensorBoard has found the first numbers.")];
  return groups.length ? null : [message("Nothing chosen", "Tick a configuration on the left.")];
}

/** Redraw without losing the keyboard focus, the caret or the scroll positions. */
function keepingPlace(redraw) {
  const active = document.activeElement, key = active?.dataset?.key, column = active?.closest?.(".column")?.dataset.group;
  const caret = active?.selectionStart, inPanel = panel.element.contains(active);
  const places = ["#columns", ".groups"].map((path) => [path, document.querySelector(path)]).map(([path, e]) => [path, e?.scrollLeft, e?.scrollTop]);
  redraw();
  for (const [path, left, top] of places) document.querySelector(path)?.scrollTo(left ?? 0, top ?? 0);
  if (!key || inPanel) return;
  const scope = [...document.querySelectorAll(".column")].find((e) => e.dataset.group === column) ?? document;
  const again = scope.querySelector(`[data-key="${CSS.escape(key)}"]`);
  again?.focus({ preventScroll: true });
  if (again?.type === "search") again.setSelectionRange(caret, caret);
}

/** The metrics drawn as maps: those chosen, else the usual ones, else the first. */
function chosenMaps(metrics) {
  const usual = usualMaps();
  const chosen = metrics.filter((name) => (state.maps ? state.maps.has(name) : usual.includes(name)));
  if (chosen.length || state.maps?.size === 0) return chosen;
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
  remember();
  draw();
  refresh();
}

const actions = {
  toggleGroup: (label) => change(() => flip((state.shown ??= new Set()), label)),
  toggleRun: (name) => change(() => flip(state.hidden, name)),
  showOnly: (labels) => change(() => (state.shown = new Set(labels))),
  setFilter: (text) => { state.filter = text; draw(); },
  setMaps: (names) => change(() => (state.maps = new Set(names))),
  toggleNetwork: (name) => change(() => flip(state.networks, name)),
  setCurve: (name) => change(() => (state.curve = name)),
  expand: (label) => { flip(state.expanded, label); draw(); },
  openLayer,
};

/** Show the neurons of a layer of a group; of a whole network those of its first layer. */
function openLayer(group, network, layer) {
  const runs = loaded(visible().find((other) => other.label === group)?.runs ?? []);
  const layers = layersOf(runs.map((run) => run.data)).filter((at) => at.network === network && at.layer !== "all");
  if (layer === "all") layer = layers[0]?.layer;
  if (layer === undefined) return;
  state.layer = { group, network, layer, from: document.activeElement?.dataset?.key };
  draw();
  const end = lastStep(visible().flatMap((other) => loaded(other.runs)));
  panel.show({ key: `${group}/${network}/${layer}`, network, layer }, runs, end).catch(failed);
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
    if (state.layer) closeLayer();
  } else if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement?.tagName)) {
    event.preventDefault();
    document.querySelector('[data-key="filter"]')?.focus();
  }
}

// -- what stays until the next visit, and the theme ----------------------------------------------------------------------

const KEY = "plasticity-tab";

function remember() {
  try {
    localStorage.setItem(KEY, JSON.stringify({ maps: state.maps && [...state.maps], curve: state.curve }));
  } catch { /* no storage: nothing is remembered */ }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    state.maps = kept.maps ? new Set(kept.maps) : null;
    state.curve = kept.curve ?? null;
  } catch { /* nothing was remembered */ }
}

/** Follow TensorBoard's dark mode, which is a class of the page around this frame; alone, follow the system. */
function watchTheme() {
  let outer = null;
  try {
    if (window.parent !== window) outer = window.parent.document.body;
  } catch { /* a page of another origin */ }
  const system = matchMedia("(prefers-color-scheme: dark)");
  const set = () => {
    const theme = (outer ? outer.classList.contains("dark-mode") : system.matches) ? "dark" : "light";
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    setTheme(theme);
    if (state.updated) draw();
    panel.refresh();
  };
  if (outer) new MutationObserver(set).observe(outer, { attributes: true, attributeFilter: ["class"] });
  else system.addEventListener("change", set);
  set();
}
