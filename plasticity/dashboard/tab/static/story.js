// "What happened": the few lines that tell a stranger where and when a layer collapsed, what was done about it, and what
// became of it, seed by seed.

import { happened, spread } from "./happened.js";
import { h, number, step } from "./dom.js";

const SHOWN = 4, CASES = 4;

/** The list for one group of runs; `open(network, layer)` shows a layer's neurons. */
export function story(runs, expanded, { open, expand }) {
  const lines = happened(runs);
  if (!lines.length) return h("p", { class: "story quiet" }, "No intervention so far; no layer lost a third of its neurons, four fifths of its effective rank, or effective rank of a third of its width.");
  const worst = [...lines].sort((a, b) => (b.kind === "collapse") - (a.kind === "collapse") || (b.size ?? 0) - (a.size ?? 0));
  const chosen = expanded ? lines : lines.filter((line) => worst.indexOf(line) < SHOWN);
  const rest = lines.length - chosen.length, isCut = rest > 0 || lines.some((line) => line.cases?.length > CASES);
  return h("ol", { class: "story", "aria-label": "What happened" },
    chosen.map((line) => h("li", { class: line.kind }, entry(line, runs.length, open, expanded))),
    isCut || expanded
      ? h("li", {}, h("button", { class: "link", onclick: expand }, expanded ? "show less" : rest ? `${rest} more` : "all seeds"))
      : null);
}

function entry(line, seeds, open, expanded) {
  const numbers = line.differ ? `; the numbers are those of ${line.seed}` : "";
  const of = seeds > 1 ? h("span", { class: "of" }, ` ${line.seeds.size} of ${seeds} seeds${numbers}`) : null;
  const when = h("span", { class: "when" }, `step ${step(line.step)}`);
  const site = line.kind === "collapse" ? [line.network, line.layer] : line.sites.find(([, layer]) => layer !== "all");
  const text = line.kind === "collapse" ? collapse(line) : application(line);
  const body = site ? h("button", { class: "link", onclick: () => open(site[0], site[1]) }, text) : h("span", {}, text);
  const cases = line.cases?.slice(0, expanded ? undefined : CASES).map((one) => fate(one, line.cases.length > 1));
  return [
    h("i", { "aria-hidden": "true" }, line.kind === "collapse" ? "▼" : "◆"), when,
    h("span", { class: "what" }, body, of, cases && h("ul", { class: "fates" }, cases)),
  ];
}

const changeOf = ({ metric, before, after }) => `${metric.replaceAll("_", " ")} ${number(before)} → ${number(after)}`;

function collapse({ network, layer, cases }) {
  const [first] = cases, alike = cases.every((one) => one.start === first.start && one.stop === first.stop && one.metric === first.metric);
  if (!alike) return `${network}/${layer} collapsed between steps ${step(Math.min(...cases.map((one) => one.start)))} and ${step(Math.max(...cases.map((one) => one.stop)))}`;
  const change = cases.length === 1 ? changeOf(first)
    : `${first.metric.replaceAll("_", " ")} ${spread(cases.map((one) => one.before), number)} → ${spread(cases.map((one) => one.after), number)}`;
  return `${network}/${layer} collapsed: ${change} between steps ${step(first.start)} and ${step(first.stop)}`;
}

/** What became of one collapse: what was done, what came then, how it stands now. */
function fate({ seed, aftermath, ...one }, several) {
  const { act, step: at, then, now, fate: end } = aftermath;
  const done = act ? `${act} at step ${step(at)}${then ? `: ${number(then[1])} at step ${step(then[0])}` : ""}` : "no intervention since";
  const which = several ? `${seed}, step ${step(one.stop)}: ${changeOf(one)}; ` : "";
  return h("li", {}, h("b", { class: end.split(" ")[0] }, end), `${which}${done}; ${number(now[1])} at step ${step(now[0])}`);
}

/** What a method did; more than a few times, so many times in a seed: sums over seeds would say nothing. */
function application({ name, perSeed, seeds, title, effects }) {
  if (!perSeed) return title + (effects.length ? `; then ${effects.slice(0, 2).join(", ")}` : "");
  const each = [...perSeed.values()];
  const neurons = each.map((events) => events.flatMap((event) => event.sites.map((site) => site[2] ?? 0)).reduce((a, b) => a + b, 0));
  const what = neurons.some(Boolean) ? `, ${spread(neurons, step)} neurons` : "";
  const last = Math.max(...each.flat().map((event) => event.step));
  return `${name} acted ${spread(each.map((events) => events.length))} times${what}${seeds.size > 1 ? " in each seed" : ""}, last at step ${step(last)}`;
}
