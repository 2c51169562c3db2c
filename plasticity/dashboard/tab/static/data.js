// Ask the backend.

const PLUGIN = new URL("../", import.meta.url);

async function get(path, query = {}) {
  const url = new URL(path, PLUGIN);
  url.search = new URLSearchParams(query);
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

export const getRuns = () => get("runs");
export const getNeurons = (run, network, layer, probe) => get("neurons", { run, network, layer, probe });

/** The address of the page on a metric. */
export const pageOf = (metric) => String(new URL(`page?metric=${encodeURIComponent(metric)}`, PLUGIN));

/** Bring `store` (run -> series) up to date for `runs`, `maps` in full, `detail` times as fine; return if any is new. */
export async function updateSeries(store, runs, { curve, maps, detail }) {
  let changed = false;
  // A few runs a request: what has arrived is drawn by then, and an address has a longest length.
  for (let i = 0; i < runs.length; i += 20) {
    const asked = Object.fromEntries(runs.slice(i, i + 20).map((run) => [run, store.get(run)?.stamp ?? ""]));
    const found = await get("series", { runs: JSON.stringify(asked), curve, maps: maps.join(), detail });
    for (const [run, data] of Object.entries(found)) {
      if (data === null) continue;
      store.set(run, data);
      changed = true;
    }
  }
  return changed;
}
