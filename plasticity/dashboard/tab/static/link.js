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

/** Whether a value is of the sort that its name has: an address may be cut, or written by hand. */
function fits(name, value) {
  if (SETS.includes(name)) return value === null || Array.isArray(value);
  if (name === "zoom") return value === null || (Array.isArray(value) && value.length === 2 && value.every(Number.isFinite) && value[0] < value[1]);
  if (name === "smooth") return value >= 0 && value < 1;
  return typeof value === (["log", "together", "byLevel"].includes(name) ? "boolean" : "string");
}

function take(state, found) {
  for (const name of [...SETS, ...PLAIN].filter((name) => name in found && fits(name, found[name]))) {
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

/** What the address says; null if it says nothing that can be read. */
function addressed() {
  try {
    const hash = (outerPage() ?? window).location.hash.slice(1);
    const part = hash.split("&").find((one) => one.startsWith(`${PARAMETER}=`));
    return part ? JSON.parse(decodeURIComponent(part.slice(PARAMETER.length + 1))) : null;
  } catch {
    return null;
  }
}

/** Take over what the address says, or else what was kept from the last visit: a link shows the same to everyone. */
export function recall(state) {
  try {
    take(state, addressed() ?? JSON.parse(localStorage.getItem(KEY)) ?? {});
  } catch { /* nothing was kept, or no object */ }
}

export function remember(state, usual) {
  try {
    localStorage.setItem(KEY, JSON.stringify(parts(state, KEPT, usual)));
  } catch { /* no storage: nothing is kept */ }
}
