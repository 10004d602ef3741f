// Colors and shapes of drawings; page.css has those of the page.

// Okabe and Ito's colors, distinct for color-blind readers; on dark ground the light blue comes first.
const LIGHT = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800"];
const DARK = ["#56B4E9", "#E69F00", "#00B886", "#CC79A7", "#4A90D9", "#F0743C", "#F0E442"];
const SHAPES = ["circle", "square", "diamond", "triangle", "cross"];
const VERDICT_LIGHT = {
  normal: "#BCD3E8",
  isolated: "#0072B2",
  anomaly: "#D55E00",
  "anomaly and isolated": "#CC79A7",
  dead: "#4D4D4D",
  nonfinite: "#E8D820",
};
const VERDICT_DARK = {
  normal: "#35506B",
  isolated: "#56B4E9",
  anomaly: "#F0743C",
  "anomaly and isolated": "#E7A3C6",
  dead: "#7A756C",
  nonfinite: "#F0E442",
};
// Viridis, whose lightness rises evenly.
export const VIRIDIS =
  "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
    .split(" ")
    .map((color) => [0, 2, 4].map((place) => Number.parseInt(color.slice(place, place + 2), 16)));

const darkness = window.matchMedia("(prefers-color-scheme: dark)");
export const onThemeChange = (redraw) => darkness.addEventListener("change", redraw);
export const groupColor = (group) => (darkness.matches ? DARK : LIGHT)[group % LIGHT.length];
export const groupShape = (group) => SHAPES[Math.floor(group / LIGHT.length) % SHAPES.length];
export const verdictColor = (verdict) => (darkness.matches ? VERDICT_DARK : VERDICT_LIGHT)[verdict] ?? "#808080";
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
