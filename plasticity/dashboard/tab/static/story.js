// "What happened": the few lines that tell a stranger where and when a layer collapsed, and what was done about it.

import { h, number, step } from "./dom.js";
import { happened } from "./data.js";

const SHOWN = 4;

/** The list for one group of runs; `open(network, layer)` shows a layer's neurons. */
export function story(runs, expanded, { open, expand }) {
  const lines = happened(runs);
  if (!lines.length) return h("p", { class: "story quiet" }, "No collapse, and no intervention so far.");
  const worst = [...lines].sort((a, b) => (b.kind === "collapse") - (a.kind === "collapse") || (b.size ?? 0) - (a.size ?? 0));
  const chosen = expanded ? lines : lines.filter((line) => worst.indexOf(line) < SHOWN);
  const rest = lines.length - chosen.length;
  return h(
    "ol",
    { class: "story", "aria-label": "What happened" },
    chosen.map((line) => h("li", { class: line.kind }, entry(line, runs.length, open))),
    (rest > 0 || expanded) && lines.length > SHOWN
      ? h("li", {}, h("button", { class: "link", onclick: expand }, expanded ? "show less" : `${rest} more`))
      : null,
  );
}

function entry(line, seeds, open) {
  const numbers = line.differ ? `; the numbers are those of ${line.seed}` : "";
  const of = seeds > 1 ? h("span", { class: "of" }, ` ${line.seeds.size} of ${seeds} seeds${numbers}`) : null;
  const when = h("span", { class: "when" }, `step ${step(line.step)}`);
  const site = line.kind === "collapse" ? [line.network, line.layer] : line.sites.find(([, layer]) => layer !== "all");
  const text = line.kind === "collapse" ? collapse(line) : application(line);
  const body = site ? h("button", { class: "link", onclick: () => open(site[0], site[1]) }, text) : h("span", {}, text);
  return [h("i", { "aria-hidden": "true" }, line.kind === "collapse" ? "▼" : "◆"), when, h("span", { class: "what" }, body, of)];
}

function collapse({ network, layer, metric, start, stop, before, after }) {
  const change = `${metric.replaceAll("_", " ")} ${number(before)} → ${number(after)}`;
  return `${network}/${layer} collapsed: ${change} between steps ${step(start)} and ${step(stop)}`;
}

function application(line) {
  if (line.many) {
    const steps = line.many.map((event) => event.step);
    const neurons = line.many.flatMap((event) => event.sites.map((site) => site[2] ?? 0)).reduce((a, b) => a + b, 0);
    const what = neurons ? `, ${step(neurons)} neurons in all` : "";
    return `${line.name} acted ${line.many.length} times up to step ${step(Math.max(...steps))}${what}`;
  }
  return line.title + (line.effects.length ? `; then ${line.effects.slice(0, 2).join(", ")}` : "");
}
