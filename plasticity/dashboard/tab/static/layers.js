// The layers of some runs: which there are, which are shown, and the networks that count as one.

import { natural } from "./dom.js";
import { BINS, binned, firstOf, summarised } from "./series.js";
import { ordered, scaleFor } from "./scale.js";

export function metricsOf(datas) {
  return new Set(datas.flatMap((data) => data.series.map((series) => series.metric)));
}

/** network -> the name it is shown under: with `together`, critic_1 and critic_2 are critic. */
export function familiesOf(datas, together) {
  const networks = [...new Set(datas.flatMap((data) => data.series.map((series) => series.network)))];
  const stem = (network) => network.replace(/[_.-]?\d+$/, "") || network;
  const shared = (network) => networks.filter((other) => stem(other) === stem(network)).length > 1;
  return new Map(networks.map((network) => [network, together && shared(network) ? stem(network) : network]));
}

/** The layers, [{network, layer, members}], network by network, the whole network first. */
export function layersOf(datas, families = familiesOf(datas, false)) {
  const found = new Map();
  for (const data of datas) {
    for (const { network, layer } of data.series) {
      const name = families.get(network) ?? network, key = `${name}/${layer}`;
      if (!found.has(key)) found.set(key, { network: name, layer, members: new Set() });
      found.get(key).members.add(network);
    }
  }
  const whole = ({ layer }) => (layer === "all" ? 0 : 1);
  return [...found.values()].map((at) => ({ ...at, members: [...at.members].sort(natural) })).sort(
    (a, b) => natural(a.network, b.network) || whole(a) - whole(b) || natural(a.layer, b.layer),
  );
}

export const keyOf = ({ network, layer }) => `${network}/${layer}`;

/** A layer's width; of a whole network the mean over its layers; undefined if it is not known. */
function widthOf(datas, network, layer) {
  const widths = Object.assign({}, ...datas.map((data) => data.widths));
  if (layer !== "all") return widths[`${network}/${layer}`];
  const all = Object.entries(widths).filter(([key]) => key.startsWith(`${network}/`));
  return all.length ? all.reduce((sum, [, width]) => sum + width, 0) / all.length : undefined;
}

/**
 * Everything the charts, the maps and the table need of a group: metric -> rows, one per chosen layer, over its seeds
 * and over the networks that count as one. `chosen`: keys of layers, null for all.
 */
export function rowsOf(runs, { chosen, families, axis, range, byLevel, count = BINS }) {
  const datas = runs.map((run) => run.data);
  const layers = layersOf(datas, families).filter((at) => !chosen || chosen.has(keyOf(at)));
  const name = (network, metric, layer) => JSON.stringify([network, metric, layer]);
  const index = datas.map((data) => new Map(data.series.map((s) => [name(s.network, s.metric, s.layer), s.points])));
  const table = {};
  for (const metric of ordered(metricsOf(datas))) {
    const scale = scaleFor(metric, range[metric], byLevel);
    table[metric] = layers.flatMap((at) => {
      const found = datas.map((data, i) => ({ data, twins: at.members.map((member) => index[i].get(name(member, metric, at.layer))).filter(Boolean) }))
        .filter(({ twins }) => twins.length);
      if (!found.length) return [];
      // The mean of twins first: a run counts once, however many critics it has.
      const series = summarised(found.map(({ data, twins }) => summarised(twins.map((points) => binned(points, axis, data, count))).mean));
      const firsts = found.flatMap(({ twins }) => twins.map(firstOf)).filter((value) => !Number.isNaN(value));
      const first = firsts.length ? firsts.reduce((a, b) => a + b) / firsts.length : NaN;
      return [{ ...at, metric, series, scale, first, width: widthOf(datas, at.members[0], at.layer), seeds: found.length }];
    });
  }
  return { layers, table };
}
