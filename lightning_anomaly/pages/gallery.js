// Lists of images as tabs, in which a reader ticks what should go, and one image of a list.

import {
  address,
  bars,
  filterAddress,
  imageOf,
  pages,
  sampleAddress,
  stepKeys,
  stepper,
  titleRow,
  visit,
} from "./components.js";
import { csvText, download } from "./csv.js";
import { cutLine, div, finder, make, prose, quiet, statusLine, termList } from "./dom.js";
import { openIndex } from "./unpack.js";
import { count, isMeant, layerText, number, scoreText } from "./wording.js";

const AT_ONCE = 60;
const RESPONDING = 3; // filters on a card
const PIXELATED = 64; // images with shorter sides are enlarged pixel by pixel

/** What tells an image from the others, in all lists. */
const keyOf = (row) => row.key;

export class Gallery {
  static async open() {
    return new Gallery((await openIndex())[0]);
  }

  constructor(index) {
    Object.assign(this, index);
    const rows = this.tabs.flatMap((tab) => tab.rows);
    this.images = new Map(rows.reverse().map((row) => [keyOf(row), row])); // as the first list has them
    this.store = `lightning_anomaly.ticked.${this.key}`;
    this.ticked = new Set();
    try {
      const stored = JSON.parse(window.localStorage.getItem(this.store)) ?? [];
      this.ticked = new Set(stored.filter((key) => this.images.has(key)));
    } catch {} // a frame may have no storage
  }

  get sections() {
    return [
      ...this.tabs.map(({ name, title, rows }) => [name, `${title} ${number(rows.length)}`]),
      ["ticked", "Ticked"],
    ];
  }

  get terms() {
    return this.tabs.map(({ title, about }) => [title, about]);
  }

  /** A list by its name; that of the ticked images is made when it is shown. */
  tab(name) {
    const rows = [...this.ticked].map((key) => ({ ...this.images.get(key), group: null }));
    const ticked = { name: "ticked", title: "Ticked", about: "What you have ticked in all lists.", rows };
    return [...this.tabs, ticked].find((tab) => tab.name === name);
  }

  tick(rows, on) {
    for (const row of rows)
      if (on) this.ticked.add(keyOf(row));
      else this.ticked.delete(keyOf(row));
    try {
      window.localStorage.setItem(this.store, JSON.stringify([...this.ticked]));
    } catch {} // ticks last until the page is closed
    this.update();
  }

  /** Shows the ticks everywhere. */
  update() {
    for (const box of document.querySelectorAll("[data-key]")) box.checked = this.ticked.has(box.dataset.key);
    for (const line of document.querySelectorAll(".ticked-count"))
      line.textContent = `${count(this.ticked.size, "image")} ticked`;
    const link = document.querySelector("[data-page='ticked']");
    link.textContent = `Ticked ${number(this.ticked.size)}`;
    for (const part of [link, ...document.querySelectorAll("[data-ticked]")]) part.hidden = !this.ticked.size;
  }

  /** Saves all lists, as `OutlierReport.save_csv` does, with the verdicts. */
  save() {
    const verdict = this.columns.indexOf("verdict");
    const cell =
      (place) =>
      ([key, cells]) =>
        place === verdict && this.ticked.has(key) ? "ticked" : cells[place];
    download("verdicts.csv", csvText(Object.fromEntries(this.columns.map((name, i) => [name, cell(i)])), this.table));
  }
}

/** The rows of a list with a text in their name or class. */
const found = (tab, { find = "" }) =>
  tab.rows.filter((row) => !find || [row.name, row.label].some((name) => isMeant(row.position, name, find)));

/** The address of an image; that of a sample has its scores and filters too. */
const rowAddress = (tab, row, query) =>
  row.sample === null
    ? address([tab.name, tab.rows.indexOf(row)], query)
    : sampleAddress(row.sample, { list: tab.name });

/** Rows that belong together, as arrays; others alone. */
function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    const key = row.group ?? row;
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups.values()];
}

/** An image in its own shape: the first of the sources that can be shown. */
function picture(row, sources) {
  const [source, ...others] = sources.filter(Boolean);
  if (!source) return make("span", { class: "no-image" }, "no picture");
  const image = make("img", {
    src: source,
    alt: row.name,
    loading: "lazy",
    error: () => image.replaceWith(picture(row, others)),
    load: () => image.classList.toggle("pixelated", Math.max(image.naturalWidth, image.naturalHeight) < PIXELATED),
  });
  return image;
}

export function tickBox(gallery, row, text) {
  const box = make("input", {
    type: "checkbox",
    checked: gallery.ticked.has(keyOf(row)),
    "data-key": keyOf(row),
    change: () => gallery.tick([row], box.checked),
  });
  return make("label", { class: "tick" }, box, text);
}

/** The class of an image, and the one that it looks like. */
const classes = (row) =>
  row.label || row.looks_like
    ? make("span", {}, row.label, row.looks_like && row.looks_like !== row.label ? ` → ${row.looks_like}?` : null)
    : null;

function card(gallery, tab, row, query) {
  const small = gallery.pictures[row.picture];
  const drawn = row.sample !== null && gallery.report.images;
  const shown = drawn ? imageOf(gallery.report, row.sample, row.name) : picture(row, [small, row.link]);
  const about = row.score === null ? "" : `score ${scoreText(row.score)}`;
  return div(
    "card",
    make("a", { class: "frame", href: rowAddress(tab, row, query), title: row.name }, shown),
    tickBox(gallery, row, about ? make("strong", {}, about) : cutLine(row.name)),
    about ? cutLine(row.name) : null,
    classes(row),
    row.reason ? quiet(row.reason) : null,
    row.note ? quiet(row.note) : null,
    row.sample === null ? null : respond(gallery.report, row.sample),
  );
}

/** Links to the filters that respond to a sample and to few others. */
function respond(report, sample) {
  const links = report
    .reactionsTo(sample)
    .slice(0, RESPONDING)
    .map(({ place }) => {
      const name = report.layers[place.layer].name;
      const title = `filter ${place.filter} of ${layerText(name)}`;
      const text = make("bdi", {}, `${name}, filter ${place.filter}`);
      return make("a", { class: "cut cut-left", href: filterAddress(report, place, { pin: sample }), title }, text);
    });
  return links.length ? div("respond", links) : null;
}

/** The bar that counts the ticks and saves the lists. */
export const tickedBar = (gallery) =>
  div(
    "ticked-bar",
    make("span", { class: "ticked-count", role: "status" }),
    make("button", { "data-ticked": true, click: () => gallery.tick(gallery.tab("ticked").rows, false) }, "Untick all"),
    make("a", { "data-ticked": true, href: address(["ticked"]) }, "Use the ticked"),
    make("button", { class: "main-button", title: "as CSV (key s)", click: () => gallery.save() }, "Save the lists"),
  );

const sentences = (texts) => texts.map((text) => make("p", {}, prose(text)));

function listPage(gallery, tab, query) {
  const rows = found(tab, query);
  const groups = grouped(rows);
  const copies = groups.length < rows.length;
  const offered = copies ? groups.flatMap((group) => group.slice(1)) : rows;
  const cards = (group) => group.map((row) => card(gallery, tab, row, query));
  const content = [
    div("lead", sentences(gallery.lead)),
    make("h1", {}, `${tab.title} `, quiet(tab.about)),
    tab.name === "ticked" ? make("pre", {}, gallery.move) : null,
    div(
      "choices",
      finder("number, name or class", query.find ?? "", (find) => visit(address([tab.name], { find }))),
      offered.length
        ? make(
            "button",
            { click: () => gallery.tick(offered, true) },
            copies ? "Tick all but the first of each" : `Tick all ${number(offered.length)}`,
          )
        : null,
      statusLine(count(rows.length, "image")),
    ),
    pages(
      groups,
      AT_ONCE,
      (group) => (copies ? div("copies", cards(group)) : cards(group)[0]),
      copies ? "sets" : "cards",
      "No image matches.",
    ),
    gallery.details.length
      ? make("details", {}, make("summary", {}, "About this search"), sentences(gallery.details))
      : null,
    tickedBar(gallery),
  ];
  const focused = () => document.activeElement.closest(".card")?.querySelector("[data-key]");
  return { content, section: tab.name, keys: { x: () => focused()?.click(), s: () => gallery.save() } };
}

/** One image, as large as the window allows, beside the others of its group. */
function imagePage(gallery, tab, row, query) {
  const rows = found(tab, query);
  const list = rows.includes(row) ? rows : tab.rows;
  const { element, step } = stepper(list, row, "image", (next) => visit(rowAddress(tab, next, query)));
  const group = tab.rows.filter((other) => other === row || (row.group !== null && other.group === row.group));
  const shown = group.length > 2 ? [group[0], row === group[0] ? group[1] : row] : group;
  const large = (other) =>
    make(
      "figure",
      {},
      make(
        "a",
        { class: "frame", href: other.link, target: "_blank", title: "open the file" },
        picture(other, [other.link, gallery.pictures[other.picture]]),
      ),
      shown.length > 1 ? make("figcaption", {}, tickBox(gallery, other, cutLine(other.name))) : null,
    );
  const facts = [
    ["Score", row.score === null || row.bars.length ? "" : scoreText(row.score)],
    ["Class", row.label],
    ["Looks like", row.looks_like],
    ["Reason", row.bars.some(([, , , reason]) => reason === row.reason) ? "" : row.reason],
    ["Note", row.note],
    ["File", row.path || row.name],
  ].filter(([, text]) => text);
  return {
    content: [
      titleRow(make("h1", {}, row.name), element),
      div(
        "opened",
        div("large", shown.map(large)),
        div(
          "about",
          tickBox(gallery, row, "Tick this image"),
          row.bars.length
            ? bars(row.bars.map(([name, value, usual, reason]) => ({ name, value: value ?? Infinity, usual, reason })))
            : null,
          termList("facts", facts),
        ),
      ),
      tickedBar(gallery),
    ],
    section: tab.name,
    keys: {
      ...stepKeys(step),
      x: () => gallery.tick([row], !gallery.ticked.has(keyOf(row))),
      s: () => gallery.save(),
      Escape: () => visit(address([tab.name], query)),
    },
  };
}

export const GALLERY_KEYS = [
  ["←  →", "previous, next image"],
  ["Enter", "open the image"],
  ["x", "tick it, or untick it"],
  ["s", "save the lists as CSV"],
  ["/", "find images of a list"],
  ["1  2 …", "first, second list"],
  ["Esc", "back to the list; close this"],
  ["?", "the lists and these keys"],
];

/** The page of an address, or null. */
export function galleryPage(gallery, page, rest, query) {
  const tab = gallery.tab(page);
  if (!tab) return null;
  if (!rest.length) return listPage(gallery, tab, query);
  const row = tab.rows[rest[0]];
  return row ? imagePage(gallery, tab, row, query) : null;
}
