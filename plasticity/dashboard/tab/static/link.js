// What is shown, as part of an address: a permalink. And what stays until the next visit.

const KEY = "plasticity-tab", PARAMETER = "p.plasticity.view"; // TensorBoard keeps "p.<plugin>." in its address

/** Name -> how a part of the state is written; what is as at first is left out. */
const SETS = ["shown", "hidden", "maps", "layers"];
const PLAIN = ["curve", "layout", "x", "log", "smooth", "zoom", "together", "byLevel"];
const KEPT = ["maps", "curve", "layout", "x", "log", "smooth", "together", "byLevel"];

function parts(state, names, usual) {
  const found = {};
  for (const name of names) {
    const value = SETS.includes(name) && state[name] ? [...state[name]].sort() : state[name];
    if (JSON.stringify(value) !== JSON.stringify(SETS.includes(name) && usual[name] ? [...usual[name]] : usual[name])) found[name] = value;
  }
  return found;
}

function take(state, found) {
  for (const name of [...SETS, ...PLAIN].filter((name) => name in found)) {
    state[name] = SETS.includes(name) ? found[name] && new Set(found[name]) : found[name];
  }
}

/** The page around this frame, where there is one that may be asked. */
export function outerPage() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null; // a page of another origin
  }
}

/** The address that shows what `state` shows; `usual` is the state at first. */
export function linkTo(state, usual) {
  const view = encodeURIComponent(JSON.stringify(parts(state, [...SETS, ...PLAIN], usual)));
  const outer = outerPage(), page = new URL((outer ?? window).location.href);
  page.hash = `${outer ? "plasticity&" : ""}${PARAMETER}=${view}`;
  return String(page);
}

/** Take over what the address says, and of what it does not, what was kept from the last visit. */
export function recall(state) {
  try {
    take(state, JSON.parse(localStorage.getItem(KEY)) ?? {});
  } catch { /* nothing was kept */ }
  try {
    const hash = (outerPage() ?? window).location.hash.slice(1);
    const part = hash.split("&").find((one) => one.startsWith(`${PARAMETER}=`));
    if (part) take(state, JSON.parse(decodeURIComponent(part.slice(PARAMETER.length + 1))));
  } catch { /* no address of ours */ }
}

export function remember(state, usual) {
  try {
    localStorage.setItem(KEY, JSON.stringify(parts(state, KEPT, usual)));
  } catch { /* no storage: nothing is kept */ }
}
