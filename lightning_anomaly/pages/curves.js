// Curves over the validations of a run, on one axis, with a line at the validation whose values are written.
import { ticks } from "./canvas.js";
import { groupColor } from "./colors.js";
import { swatch } from "./components.js";
import { div, make, quiet, statusLine } from "./dom.js";
import { number, percent } from "./wording.js";

const MARKS = 2; // the first color of marks, after those of lines

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The curves as an element, and `step(by)`, which goes to another validation. */
export function curves({ axis, times, panels, marks }) {
  const last = times.length - 1;
  const across = (at) => (last ? (100 * at) / last : 50);
  const upright = (at, attributes) =>
    svg("line", {
      x1: across(at),
      x2: across(at),
      y1: 0,
      y2: 100,
      "vector-effect": "non-scaling-stroke",
      ...attributes,
    });
  const when = (at) => `${axis} ${number(times[at])}`;
  const drawn = panels.map((panel) => drawPanel(panel, across, upright, marks, when));
  const time = statusLine("");
  let shown = null;
  const show = (at) => {
    if (at === shown) return;
    shown = at;
    time.textContent = when(at);
    for (const panel of drawn) panel.show(at);
  };
  const axisTicks = ticks(0, Math.max(1, last))
    .map(([at]) => at)
    .filter((at) => Number.isInteger(at) && at <= last)
    .map((at) => make("span", { style: { left: `${across(at)}%` } }, String(times[at])));
  const element = div(
    "curves panel",
    div(
      "legend",
      marks.map(([name, at], place) =>
        make("span", { class: "badge" }, swatch(groupColor(MARKS + place)), `${name}: ${when(at)}`),
      ),
      time,
    ),
    drawn.map((panel) => panel.element),
    div("curve-axis quiet", axisTicks),
  );
  element.addEventListener("pointermove", (event) => {
    const { left, width } = drawn[0].area.getBoundingClientRect();
    show(Math.max(0, Math.min(last, Math.round(((event.clientX - left) / width) * last))));
  });
  element.addEventListener("pointerleave", () => show(last));
  show(last);
  return { element, step: (by) => show(Math.max(0, Math.min(last, shown + by))) };
}

/** The next larger of 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, ... */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value > 0 ? value : 1));
  return power * [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((factor) => factor * power >= value * 0.999);
}

/** Curves of one scale: their element, its area, and `show(at)`, which writes the values of a validation. */
function drawPanel({ title, percent: shares, threshold, lines }, across, upright, marks, when) {
  const text = shares ? percent : number;
  const known = [threshold, ...lines.flatMap(([, values]) => values)].filter((value) => value !== null);
  const low = Math.min(0, ...known);
  const high = roundedUp(Math.max(...known)); // so that similar runs have the same axis
  const down = (value) => 100 - (100 * (value - low)) / (high - low || 1);
  const stroke = { fill: "none", "stroke-width": 2, "stroke-linecap": "round", "vector-effect": "non-scaling-stroke" };
  const paths = lines.map(([, values], place) => {
    const places = values.flatMap((value, at) => (value === null ? [] : [`${across(at)} ${down(value)}`]));
    return svg("path", { d: `M${places.join("L")}h0`, stroke: groupColor(place), ...stroke });
  });
  const limit = { x1: 0, x2: 100, y1: down(threshold), y2: down(threshold), class: "limit" };
  const cursor = upright(0, { class: "cursor" });
  const area = div(
    "curve-area",
    svg(
      "svg",
      {
        viewBox: "0 0 100 100",
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `${title} over the validations`,
      },
      ...(threshold === null ? [] : [svg("line", { "vector-effect": "non-scaling-stroke", ...limit })]),
      ...marks.map(([, at], place) => upright(at, { stroke: groupColor(MARKS + place), class: "moment" })),
      cursor,
      ...paths,
    ),
    make("span", { class: "curve-high quiet" }, text(high)),
    make("span", { class: "curve-low quiet" }, text(low)),
  );
  const values = lines.map(() => make("b", {}));
  const legend = lines.map(([name, known, best], place) =>
    make(
      "span",
      { class: "badge" },
      swatch(groupColor(place)),
      quiet(name),
      values[place],
      best === null ? null : quiet(`best ${text(known[best])}, ${when(best)}`),
    ),
  );
  const show = (at) => {
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, across(at));
    lines.forEach(([, known], place) => {
      values[place].textContent = known[at] === null ? "–" : text(known[at]);
    });
  };
  return {
    element: make("figure", {}, make("figcaption", { class: "legend" }, make("strong", {}, title), legend), area),
    area,
    show,
  };
}
