// Colours: of configurations, and of values. One rule for values: the further from the background, the worse.
// Lightness rises or falls steadily along each scale, so it reads in grey and with any colour vision.

const SCALES = {
  light: {
    worse: ["#eef1f4", "#f7d79a", "#ec9a45", "#b4441f", "#4f1014"],
    plain: ["#eef1f4", "#b5cde0", "#6d9dc5", "#2f6a9e", "#0f2f52"],
  },
  dark: {
    worse: ["#1c222b", "#57300f", "#a8501a", "#ee9a3f", "#ffedbd"],
    plain: ["#1c222b", "#1f4766", "#3477a5", "#6fb3dd", "#d6eeff"],
  },
};
/** The first six are Okabe and Ito's, told apart with any colour vision; the other six are dashed besides. */
const SERIES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9", "#7a3db8", "#8c5a2b", "#d11d5b", "#4d7c0f", "#475569", "#0f8b8d"],
  dark: ["#56b4e9", "#ff8a3d", "#2fc79a", "#e6a3c8", "#f0c94a", "#8f9bff", "#c58cff", "#c9a27a", "#ff6f91", "#a3d65c", "#aab4c0", "#4fd6d6"],
};
export const NUM_COLOURS = SERIES.light.length;

let theme = "light";
export const setTheme = (name) => (theme = name);

const places = new Map();

/** label -> {colour, dash}: no colour twice, and a configuration keeps its own as long as it is shown. */
export function coloursOf(labels) {
  for (const label of [...places.keys()]) if (!labels.includes(label)) places.delete(label);
  const taken = new Set(places.values());
  for (const label of labels.filter((label) => !places.has(label))) {
    const free = SERIES.light.findIndex((_, i) => !taken.has(i));
    places.set(label, free);
    taken.add(free);
  }
  return new Map(labels.map((label) => [label, { colour: SERIES[theme][places.get(label)], dash: places.get(label) < 6 ? null : "6 3" }]));
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** The colour of t as [r, g, b]; t in [0, 1], for `change` in [-1, 1] with gains below 0. */
export function colour(t, kind = "worse") {
  if (kind === "change") return colour(Math.abs(t), t < 0 ? "plain" : "worse");
  const stops = SCALES[theme][kind];
  const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [rgb(stops[i]), rgb(stops[i + 1])];
  return from.map((value, k) => Math.round(value + (to[k] - value) * (place - i)));
}

export const css = (t, kind) => `rgb(${colour(t, kind).join(" ")})`;

/** The colours of a scale from its low to its high end. */
export function stopsOf(kind) {
  const { plain, worse } = SCALES[theme];
  return kind === "change" ? [...plain.slice(1).reverse(), ...worse] : SCALES[theme][kind];
}

export const gradient = (kind) => `linear-gradient(90deg, ${stopsOf(kind).join(", ")})`;
