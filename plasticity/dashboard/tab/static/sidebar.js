// The list of runs: configurations with their seeds, a filter, what is shown and what is live.

import { brief, h, natural } from "./dom.js";

/** Runs by group, the latest first: [{label, runs}]. */
export function groupsOf(runs) {
  const groups = new Map();
  for (const run of runs) groups.set(run.group, [...(groups.get(run.group) ?? []), run]);
  const time = (group) => Math.max(...group.runs.map((run) => run.time));
  return [...groups].map(([label, members]) => ({ label, runs: members.sort((a, b) => natural(a.seed, b.seed)) }))
    .sort((a, b) => time(b) - time(a) || natural(a.label, b.label));
}

/** The sidebar; `state` holds `runs`, `faults`, `hidden` (run names left out), `shown` (group labels), `filter`. */
export function sidebar(state, colours, numChosen, { toggleGroup, toggleRun, showOnly, setFilter }) {
  const needle = state.filter.toLowerCase();
  const names = (group) => [group.label, ...group.runs.map((run) => run.name)];
  const fits = (group) => names(group).some((name) => name.toLowerCase().includes(needle));
  const groups = groupsOf(state.runs);
  const listed = groups.filter(fits);
  const filter = h("input", {
    type: "search", placeholder: "filter runs  ( / )", "aria-label": "Filter runs", "data-key": "filter",
    value: state.filter, oninput: (event) => setFilter(event.target.value),
  });
  const several = (list, word) => `${list.length} ${word}${list.length === 1 ? "" : "s"}`;
  const count = `${several(state.runs, "run")}, ${several(groups, "configuration")}`;
  return [
    h("h2", {}, "Runs", h("small", {}, count)),
    filter,
    h("div", { class: "bulk" },
      h("button", { class: "link", onclick: () => showOnly(listed.map((group) => group.label)) }, needle ? "show these" : "show all"),
      h("button", { class: "link", onclick: () => showOnly([]) }, "none")),
    numChosen > colours.size ? h("p", { class: "few" }, `the first ${colours.size} of ${numChosen} chosen are drawn`) : null,
    h("ul", { class: "groups" }, listed.map((group) => item(group, state, colours, { toggleGroup, toggleRun }))),
    state.faults.length ? faults(state.faults) : null,
  ].filter(Boolean);
}

/** Runs that something is wrong with, by name: they must not be missed for being left out. */
function faults(list) {
  const byRun = new Map();
  for (const { run, reason } of list) byRun.set(run, [...(byRun.get(run) ?? []), reason]);
  return h("section", { class: "faults", "aria-label": "Runs with faults" },
    h("h2", {}, `${byRun.size} run${byRun.size === 1 ? "" : "s"} with faults`),
    h("dl", {}, [...byRun].map(([run, reasons]) => [h("dt", {}, run), reasons.map((reason) => h("dd", {}, reason))])));
}

function item({ label, runs }, state, colours, { toggleGroup, toggleRun }) {
  const shown = state.shown.has(label);
  const statuses = new Set(runs.map((run) => run.status));
  const status = ["live", "failed", "silent", "interrupted", "finished"].find((name) => statuses.has(name)) ?? "";
  const last = Math.max(...runs.map((run) => run.step));
  const box = h("input", { type: "checkbox", checked: shown, "data-key": `group/${label}`, onchange: () => toggleGroup(label) });
  const swatch = h("i", { class: "swatch", style: shown && colours.has(label) ? `background:${colours.get(label).colour}` : "" });
  const title = runs.map((run) => run.name).join("\n");
  const seed = (run) => h("button", {
    "aria-pressed": String(!state.hidden.has(run.name)), title: run.name, "data-key": `run/${run.name}`,
    onclick: () => toggleRun(run.name),
  }, run.seed.replace(/^seed /, ""));
  const probed = runs.some((run) => run.probed);
  const about = [`step ${brief(last)}`, runs.length > 1 && `${runs.length} seeds`, !probed && "no probes"].filter(Boolean);
  return h("li", {},
    h("label", { title }, box, swatch, h("span", {}, label)),
    h("div", { class: "about" }, status && h("span", { class: `status ${status}` }, status), about.join(" · ")),
    runs.length > 1 && shown && h("div", { class: "seeds" }, runs.map(seed)));
}
