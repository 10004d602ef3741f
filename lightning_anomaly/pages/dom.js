// Elements. Text from a report is never parsed as HTML.

/**
 * An element. Attributes that are functions become listeners; `style` is an object of properties. Children are texts and
 * elements, in lists of any depth; null and undefined are left out.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (typeof child === "string" || child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined) throw new TypeError(`Found ${child} in <${tag}>.`);
  }
  return element;
}

export const div = (className, ...children) => make("div", { class: className }, ...children);

/** A sentence from Python as text, with names in backticks as code. */
export const prose = (text) => text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));

/** A list of terms and their descriptions. */
export const termList = (className, pairs) =>
  make(
    "dl",
    { class: className },
    pairs.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]),
  );

export const quiet = (text) => make("span", { class: "quiet" }, text);

export const remark = (text) => make("p", { class: "quiet" }, text);

/** What a click on its title unfolds. */
export const folded = (title, content) => make("details", {}, make("summary", {}, title), content);

/** A heading with a quiet remark. */
export const headingOf = (title, about) => make("h2", {}, `${title} `, quiet(about));

/** A button with a symbol, which its title explains. */
export const symbolButton = (symbol, title, attributes) =>
  make("button", { title, "aria-label": title, ...attributes }, symbol);

/** A button that copies a text, or else selects what stands before it. */
export function copyButton(text) {
  const said = (word) => () => (button.textContent = word);
  const button = make("button", { click: () => copy().then(said("Copied"), said("Selected")) }, "Copy");
  const copy = async () => {
    window.getSelection().selectAllChildren(button.previousElementSibling);
    await navigator.clipboard.writeText(text);
  };
  return button;
}

/** What is shown instead of an empty list. */
export const emptyState = (...text) => make("p", { class: "empty-state" }, text);

/** A count that a screen reader announces when it changes. */
export const statusLine = (text) => make("span", { class: "quiet", role: "status" }, text);

/** A text cut to one line, a path at its left. */
export function cutLine(text, className = "") {
  return /[/\\]/.test(text)
    ? make("span", { class: `cut cut-left ${className}`, title: text }, make("bdi", {}, text))
    : make("span", { class: `cut ${className}`, title: text }, text);
}

/** A labeled select; `options` are pairs of a value and its text. */
export function choice(label, options, chosen, change) {
  const list = make(
    "select",
    { change: () => change(list.value) },
    options.map(([value, text]) => make("option", { value, selected: value === chosen }, text)),
  );
  return make("label", { class: "choice" }, make("span", {}, label), list);
}

/** A search field that reacts while one types. */
export function finder(hint, text, change) {
  const field = make("input", { type: "search", value: text, placeholder: hint, input: () => change(field.value) });
  return make("label", { class: "choice" }, make("span", {}, "Find"), field);
}

/** Sizes a canvas in CSS pixels, sharp on any screen, and returns its context. */
export function sharpCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}
