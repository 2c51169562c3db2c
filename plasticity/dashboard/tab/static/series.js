// Series on common bins of an axis, and what is said of several of them. No drawing here.

/** Bins of a map, and of a chart that is not wide. */
export const BINS = 160;

/**
 * Put the series of a run on `count` equal bins of an axis: the mean of the values inside; an empty bin goes on with
 * the value before it, up to the last measurement. NaN where there is none.
 */
export function binned([steps, values], axis, data, count = BINS) {
  const sums = new Float64Array(count), hits = new Uint32Array(count);
  let last = -1, held = NaN;
  steps.forEach((step, i) => {
    const share = axis.share(axis.of(data, step));
    if (Number.isNaN(share)) return;
    const bin = Math.ceil(share * count - 1e-9) - 1;
    if (share > 0 || axis.from === 0) last = Math.min(count - 1, Math.max(last, bin, 0));
    if (values[i] === null || bin >= count) return;
    if (bin < 0 && axis.from > 0) return void (held = values[i]);
    sums[Math.max(bin, 0)] += values[i];
    hits[Math.max(bin, 0)] += 1;
  });
  const out = new Float64Array(count).fill(NaN);
  for (let bin = 0; bin <= last; bin++) out[bin] = held = hits[bin] ? sums[bin] / hits[bin] : held;
  return out;
}

/** Mean, least and greatest of several binned series, bin by bin, over those that have a value; and how many have. */
export function summarised(rows) {
  const count = rows[0]?.length ?? 0;
  const make = () => new Float64Array(count).fill(NaN);
  const out = { mean: make(), low: make(), high: make(), seeds: new Uint16Array(count) };
  for (let bin = 0; bin < count; bin++) {
    const values = rows.map((row) => row[bin]).filter((value) => !Number.isNaN(value));
    if (!values.length) continue;
    out.mean[bin] = values.reduce((a, b) => a + b) / values.length;
    out.low[bin] = Math.min(...values);
    out.high[bin] = Math.max(...values);
    out.seeds[bin] = values.length;
  }
  return out;
}

/** An exponential moving average with a weight in [0, 1), as TensorBoard smooths: its start is not drawn to 0. */
export function smoothed(row, weight) {
  if (!weight) return row;
  const out = new Float64Array(row.length).fill(NaN);
  let sum = 0, total = 0;
  row.forEach((value, i) => {
    if (Number.isNaN(value)) return;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    out[i] = sum / total;
  });
  return out;
}

/** The last value of a binned series, NaN if there is none. */
export function latest(row) {
  for (let bin = row.length - 1; bin >= 0; bin--) if (!Number.isNaN(row[bin])) return row[bin];
  return NaN;
}

/** The first value of a series that is a number, NaN if there is none. */
export const firstOf = ([, values]) => values.find((value) => value !== null) ?? NaN;
