// What was done and when, on the axis: marks of events, the lane they stand in, and the tasks of a stream.

import { h, step, tells } from "./dom.js";

const LANE = 18, MARK = 9;

/** Marks of all events, those closer than a mark is wide as one: [{x, events, note}]; x in pixels. */
export function marksOf(runs, axis, width) {
  const places = new Map();
  for (const { seed, data } of runs) {
    for (const event of data.events) {
      const share = axis.share(axis.of(data, event.step));
      if (!(share >= 0 && share <= 1)) continue;
      const x = Math.min(width - 1, share * width), key = Math.round(x / MARK);
      if (!places.has(key)) places.set(key, { x, events: [] });
      places.get(key).events.push({ seed, ...event });
    }
  }
  return [...places.values()].map((mark) => ({ ...mark, note: mark.events.every((event) => event.note) }));
}

/** Every second task of a stream as a band: [{from, to, name}] in pixels, as the first run has them that has tasks. */
export function tasksOf(runs, axis, width) {
  const run = runs.find(({ data }) => data.events.filter((event) => event.name === "task").length > 1);
  const starts = run?.data.events.filter((event) => event.name === "task") ?? [];
  const x = (event) => Math.min(Math.max(0, (event ? axis.share(axis.of(run.data, event.step)) : 1) * width), width);
  return starts.map((event, i) => ({ from: x(event), to: x(starts[i + 1]), name: event.title }))
    .filter(({ from, to }, i) => i % 2 === 1 && to > from);
}

/** network/layer -> [{data, step}] at which an intervention changed it. */
export function actsOf(runs) {
  const found = new Map();
  for (const { data } of runs) {
    for (const event of data.events.filter((event) => !event.note)) {
      for (const [network, layer] of event.sites) {
        const key = `${network}/${layer}`;
        found.set(key, [...(found.get(key) ?? []), { data, step: event.step }]);
      }
    }
  }
  return found;
}

/** The lane of marks: each tells on hover and on focus what was done. `colour`: that of the configuration, or none. */
export function lane(marks, several, width, { name = "events", colour } = {}) {
  const buttons = marks.map((mark) => {
    const lines = markLines(mark, several);
    const style = `left:${mark.x}px;${colour ? `--mark:${colour}` : ""}`;
    return tells(h("button", {
      class: mark.note ? "event note" : "event", style, "aria-label": lines.join(". "), "data-key": `mark/${lines[0]}`,
    }), () => lines);
  });
  return h("div", { class: "strip lane", style: `height:${LANE}px` },
    h("div", { class: "gutter" }, h("span", { title: name }, name)), h("div", { class: "plot", style: `width:${width}px` }, buttons), h("div", {}));
}

function markLines({ events }, several) {
  const name = (event) => (several ? `${event.seed}: ${event.title}` : event.title);
  if (events.length === 1) return [`step ${step(events[0].step)} ${name(events[0])}`, ...events[0].effects, ...events[0].details];
  const shown = events.slice(0, 6).map((event) => [`step ${step(event.step)} ${name(event)}`, ...event.effects.slice(0, 1)]);
  const more = events.length > 6 ? [`and ${events.length - 6} more`] : [];
  const steps = events.map((event) => event.step), first = Math.min(...steps), last = Math.max(...steps);
  const when = first === last ? `at step ${step(first)}` : `at steps ${step(first)} to ${step(last)}`;
  return [`${events.length} events ${when}`, ...shown.flat(), ...more];
}
