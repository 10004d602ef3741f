// Elements, made of text: nothing that comes out of a report is ever read as HTML.

/** An element with attributes; functions become listeners, an object `style` custom properties and the like. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

/** A sentence of Python's, in which names stand between backticks, as text and code. */
export const prose = (text) => text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));

/** Pairs of a term and what is said of it, as a list. */
export const termList = (className, pairs) =>
  make(
    "dl",
    { class: className },
    pairs.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]),
  );

/** A heading with something quieter behind it. */
export const headingOf = (title, about) => make("h2", {}, `${title} `, make("span", { class: "quiet" }, about));

/** What stands where a list is empty. */
export const emptyState = (...text) => make("p", { class: "empty-state" }, text);

/** How many there are, which a screen reader says when it changes. */
export const statusLine = (text) => make("span", { class: "quiet", role: "status" }, text);

/** A text in one line, which is cut; of a path the file's own name, cut at the left. */
export function cutLine(text, className = "") {
  const name = text.split(/[/\\]/).pop();
  return name === text
    ? make("span", { class: `cut ${className}`, title: text }, text)
    : make("span", { class: `cut cut-left ${className}`, title: text }, make("bdi", {}, name));
}

/** An element of a drawing. */
export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A labelled choice; `options` are pairs of a value and its text. */
export function choice(label, options, chosen, change) {
  const list = make(
    "select",
    { change: () => change(list.value) },
    options.map(([value, text]) => make("option", { value, selected: value === chosen }, text)),
  );
  return make("label", { class: "choice" }, make("span", {}, label), list);
}

/** A field that looks for something once Enter is pressed or the field is left. */
export function finder(hint, text, change) {
  const field = make("input", { type: "search", value: text, placeholder: hint, change: () => change(field.value) });
  return make("label", { class: "choice" }, make("span", {}, "Find"), field);
}

/** A canvas of so many CSS pixels, sharp on any screen. */
export function sharpCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}
