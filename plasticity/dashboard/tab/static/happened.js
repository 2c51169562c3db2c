// What happened in a group of runs, in the order of the steps. No drawing here.

const SEPARATE = 4; // applications of one method that are told one by one

/**
 * Lines of two kinds. A layer that collapsed: {kind: "collapse", network, layer, cases: [{seed, ...collapse}]}, the cases
 * in the order of the seeds. A method that acted: {kind: "act", ...event, seeds, perSeed}; `perSeed` where it acted more
 * than a few times: seed -> its events. `runs`: [{seed, data}].
 */
export function happened(runs) {
  return [...collapsesOf(runs), ...actsOf(runs)].sort((a, b) => a.step - b.step);
}

function collapsesOf(runs) {
  const lines = new Map();
  for (const { seed, data } of runs) {
    for (const collapse of [...data.collapses].sort((a, b) => a.stop - b.stop)) {
      const key = `${collapse.network}/${collapse.layer}`;
      if (!lines.has(key)) lines.set(key, { kind: "collapse", network: collapse.network, layer: collapse.layer, size: 0, cases: [] });
      const line = lines.get(key);
      line.cases.push({ seed, ...collapse });
      line.size = Math.max(line.size, collapse.size);
    }
  }
  return [...lines.values()].map((line) => ({
    ...line, step: Math.min(...line.cases.map((one) => one.stop)), seeds: new Set(line.cases.map((one) => one.seed)),
  }));
}

function actsOf(runs) {
  const acts = runs.flatMap(({ seed, data }) => data.events.filter((event) => !event.note).map((event) => ({ seed, event })));
  const steps = new Map();
  for (const { event } of acts) steps.set(event.name, (steps.get(event.name) ?? new Set()).add(event.step));
  const lines = new Map();
  for (const { seed, event } of acts) {
    const often = steps.get(event.name).size > SEPARATE;
    const key = often ? event.name : `${event.name}/${event.step}/${event.sites.map((site) => site.slice(0, 2))}`;
    if (!lines.has(key)) lines.set(key, { kind: "act", ...event, seed, seeds: new Set(), differ: false, perSeed: often ? new Map() : null });
    const line = lines.get(key);
    line.seeds.add(seed);
    line.perSeed?.set(seed, [...(line.perSeed.get(seed) ?? []), event]);
    line.differ ||= !often && (line.title !== event.title || String(line.effects) !== String(event.effects));
  }
  return [...lines.values()];
}

/** "14", or "13 to 15" where numbers differ. */
export function spread(numbers, text = String) {
  const low = Math.min(...numbers), high = Math.max(...numbers);
  return low === high ? text(low) : `${text(low)} to ${text(high)}`;
}
