// Lists of images as tabs, in which a reader ticks what should go, and one image of a list.

import { address, bars, pages, stepKeys, stepper, titleRow, visit } from "./components.js";
import { csvText, download, safe } from "./csv.js";
import {
  copyButton,
  cutLine,
  div,
  finder,
  folded,
  headingOf,
  make,
  prose,
  quiet,
  statusLine,
  termList,
} from "./dom.js";
import { card, nearest, otherBoxes, picture, rowAddress, tickBox } from "./gallery_cards.js";
import { openIndex } from "./unpack.js";
import { count, isMeant, number, scoreText, tally } from "./wording.js";

const AT_ONCE = 60;

export class Gallery {
  static async open() {
    return new Gallery((await openIndex())[0]);
  }

  constructor(index) {
    Object.assign(this, index);
    this.tabs = this.tabs.map((tab) => ({ ...tab, rows: tab.rows.map((entry) => this.row(entry)) }));
    const rows = this.tabs.flatMap((tab) => tab.rows);
    this.images = new Map(rows.reverse().map((row) => [row.key, row])); // as the first list has them
    this.verdicts = new Map(rows.filter((row) => row.verdict).map((row) => [row.key, row.verdict]));
    this.relabel = []; // what names the buttons of a list
    this.before = null; // the verdicts before many were changed at once
    this.store = `lightning_anomaly.verdicts.${this.key}`;
    try {
      const stored = JSON.parse(window.localStorage.getItem(this.store));
      if (stored) this.verdicts = new Map(stored.filter(([key]) => this.images.has(key)));
    } catch {} // a frame may have no storage
  }

  /** A row of the table of samples as a list has it. */
  row([number, score, reason, note, group, can_go, sure]) {
    return { ...this.table[number], score, reason, note, group, can_go, sure };
  }

  get sections() {
    return [...this.tabs.map((tab) => [tab.name, `${tab.title} ${number(tab.count)}`]), ["ticked", "Ticked"]];
  }

  get terms() {
    return this.tabs.map(({ title, about }) => [title, about]);
  }

  /** What is to be moved, aside or to another class. */
  get ticked() {
    const keys = [...this.verdicts.keys()].filter((key) => this.verdicts.get(key) !== "right");
    return keys.map((key) => ({ ...this.images.get(key), group: null, sure: false }));
  }

  /** A list by its name; that of the ticked images is made when it is shown. */
  tab(name) {
    const about = "What goes aside or to another class: save the lists, and run this where verdicts.csv is.";
    return name === "ticked"
      ? { name, title: "Ticked", about, rows: this.ticked }
      : this.tabs.find((tab) => tab.name === name);
  }

  /** Gives images a verdict, or takes it back; `many` at once can be undone. */
  judge(rows, verdict, many = false) {
    this.before = many ? new Map(this.verdicts) : null;
    for (const { key } of rows)
      if (verdict) this.verdicts.set(key, verdict);
      else this.verdicts.delete(key);
    this.keep();
  }

  toggle(rows, verdict) {
    this.judge(rows, this.verdicts.get(rows[0].key) === verdict ? null : verdict);
  }

  undo() {
    [this.verdicts, this.before] = [this.before, null];
    this.keep();
  }

  keep() {
    try {
      window.localStorage.setItem(this.store, JSON.stringify([...this.verdicts]));
    } catch {} // verdicts last until the page is closed
    this.update();
  }

  /** Shows the verdicts everywhere. */
  update() {
    for (const name of this.relabel) name();
    for (const box of document.querySelectorAll("[data-key]"))
      box.checked = this.verdicts.get(box.dataset.key) === box.dataset.verdict;
    const counts = tally(this.verdicts.values());
    const of = (verdict, text) => (counts.has(verdict) ? `, ${number(counts.get(verdict))} ${text}` : "");
    for (const line of document.querySelectorAll(".ticked-count"))
      line.textContent = `${count(counts.get("ticked") ?? 0, "image")} ticked${of("move", "to move")}${of("right", "right")}`;
    const link = document.querySelector("[data-page='ticked']");
    link.textContent = `Ticked ${number(this.ticked.length)}`;
    for (const part of [link, ...document.querySelectorAll("[data-ticked]")]) part.hidden = !this.ticked.length;
    for (const button of document.querySelectorAll("[data-undo]")) button.hidden = !this.before;
  }

  /** Saves all lists, as `OutlierReport.save_csv` does, with the verdicts. */
  save() {
    const columns = this.columns.map((name) => [name, (row) => safe(row[name])]);
    const verdict = (row) => this.verdicts.get(row.key);
    download("verdicts.csv", csvText({ ...Object.fromEntries(columns), verdict }, this.table));
  }
}

/** The rows of a list with a text in their name, class or reason. */
const found = (tab, { find = "" }) =>
  tab.rows.filter(
    (row) => !find || [row.name, row.class, row.reason].some((name) => isMeant(row.position, name, find)),
  );

/** Rows that belong together, as arrays; others alone. */
function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    const key = row.group ?? row;
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups.values()];
}

/** The bar that counts the verdicts and saves the lists. */
export const tickedBar = (gallery) =>
  div(
    "ticked-bar",
    make("span", { class: "ticked-count", role: "status" }),
    make("button", { "data-undo": true, click: () => gallery.undo() }, "Undo"),
    make("button", { "data-ticked": true, click: () => gallery.judge(gallery.ticked, null, true) }, "Untick all"),
    make("a", { "data-ticked": true, href: address(["ticked"]) }, "Use the ticked"),
    make("button", { class: "main-button", title: "as CSV (key s)", click: () => gallery.save() }, "Save the lists"),
  );

const sentences = (texts) => texts.map((text) => make("p", {}, prose(text)));

/** Rows of a list with the buttons that judge what is shown of them, or `all` of them. */
function listPart(gallery, tab, rows, query, all = false) {
  let shown = [];
  const cards = (group) => group.map((row) => card(gallery, tab, [row], query));
  const rest = () => (all ? rows : shown).filter(({ key }) => !gallery.verdicts.has(key));
  const acts = tab.copies ? (row) => row.can_go : tab.compares ? (row) => row.move_to : () => true;
  const meant = () => rest().filter(acts);
  const verdict = tab.compares ? "move" : "ticked";
  const act = make("button", { click: () => gallery.judge(meant(), verdict, true) });
  const findRight = make("button", { click: () => gallery.judge(rest(), "right", true) }, "The rest shown is right");
  const relabel = () => {
    const what = all ? "" : tab.copies ? " that can go" : " shown";
    act.textContent = `${tab.compares ? "Move" : "Tick"} the ${number(meant().length)}${what}`;
    act.hidden = !meant().length;
    findRight.hidden = all || !rest().length;
  };
  gallery.relabel.push(relabel);
  const list = pages(
    grouped(rows),
    AT_ONCE,
    (group) => (tab.copies ? div("copies", cards(group)) : card(gallery, tab, group, query)),
    tab.copies ? "sets" : "cards",
    "No image matches.",
    (groups) => {
      shown = groups.flat();
      relabel();
    },
  );
  return { buttons: [act, findRight], list };
}

function listPage(gallery, tab, query) {
  const rows = found(tab, query);
  const sure = rows.filter((row) => row.sure);
  const others = rows.filter((row) => !row.sure);
  gallery.relabel = [];
  const first = sure.length ? listPart(gallery, tab, sure, query, true) : null;
  const rest = others.length || !first ? listPart(gallery, tab, others, query) : null;
  const status = statusLine(
    tab.copies ? `${number(rows.filter((row) => row.can_go).length)} can go` : count(rows.length, "image"),
  );
  const content = [
    div("lead", sentences(gallery.lead)),
    make("h1", {}, `${tab.title} `, quiet(tab.about)),
    tab.name === "ticked" ? div("copied", make("pre", {}, gallery.move), copyButton(gallery.move)) : null,
    div(
      "choices",
      finder("name, class or reason", query.find ?? "", (find) => visit(address([tab.name], { find }))),
      first ? first.buttons : rest.buttons,
      status,
    ),
    first ? div("", headingOf(`${number(sure.length)} to begin with`, tab.about_sure), first.list) : null,
    first && rest ? div("choices", headingOf(`${number(others.length)} others`, ""), rest.buttons) : null,
    rest ? rest.list : null,
    gallery.details.length ? folded("About this search", sentences(gallery.details)) : null,
    tickedBar(gallery),
  ];
  const click = (verdict) =>
    document.activeElement.closest(".card")?.querySelector(`[data-verdict=${verdict}]`)?.click();
  const step = (by) => () => {
    const frames = [...document.querySelectorAll(".card .frame")];
    const place = frames.indexOf(document.activeElement.closest(".card")?.querySelector(".frame"));
    frames[place < 0 ? 0 : place + by]?.focus();
  };
  const keys = { ArrowLeft: step(-1), ArrowRight: step(1), ...verdictKeys(gallery, click) };
  return { content, section: tab.name, keys };
}

/** The keys that give verdicts, and save. */
export const verdictKeys = (gallery, judge) => ({
  x: () => judge("ticked"),
  m: () => judge("move"),
  r: () => judge("right"),
  u: () => gallery.before && gallery.undo(),
  s: () => gallery.save(),
});

/** One image, as large as the window allows, beside the one that it is a copy of. */
function imagePage(gallery, tab, row, query) {
  const rows = found(tab, query);
  const all = rows.includes(row) ? rows : tab.rows;
  const list = tab.copies ? all : grouped(all).map(([first]) => first);
  const { element, step } = stepper(list, row, "image", (next) => visit(rowAddress(tab, next, query)));
  const group = grouped(tab.rows).find((others) => others.includes(row));
  const others = tab.copies ? [] : group.filter((other) => other !== row);
  const shown = tab.copies ? [...new Set([group[0], row === group[0] ? (group[1] ?? row) : row])] : [row];
  const large = (other) => {
    const image = picture(other, [other.link, gallery.pictures[other.picture]]);
    const link = make("a", { class: "frame", href: other.link, target: "_blank", title: "open the file" }, image);
    const caption = make("figcaption", {}, tickBox(gallery, [other], cutLine(other.name)));
    return make("figure", {}, link, shown.length > 1 ? caption : null);
  };
  const facts = [
    ["Score", row.score === null || row.bars.length ? "" : scoreText(row.score)],
    ["Class", row.class],
    ["Looks like", row.looks_like],
    ["Reason", row.bars.some(([, , , reason]) => reason === row.reason) ? "" : row.reason],
    ["Note", row.note],
    ["File", row.path || row.name],
    ["Copies", others.map((other) => other.name).join(", ")],
  ].filter(([, text]) => text);
  return {
    content: [
      titleRow(make("h1", {}, row.name), element),
      div(
        "opened",
        div("large", shown.map(large)),
        div(
          "about",
          tickBox(gallery, [row], "Tick this image"),
          others.length ? tickBox(gallery, [...others, row], `Tick all ${others.length + 1} copies`) : null,
          otherBoxes(gallery, [row]),
          row.bars.length
            ? bars(row.bars.map(([name, value, usual, reason]) => ({ name, value: value ?? Infinity, usual, reason })))
            : null,
          termList("facts", facts),
          tab.compares ? nearest(gallery, row) : null,
        ),
      ),
      tickedBar(gallery),
    ],
    section: tab.name,
    keys: {
      ...stepKeys(step),
      ...verdictKeys(gallery, (verdict) => {
        if (verdict !== "move" || row.move_to) gallery.toggle([row], verdict);
      }),
      Escape: () => visit(address([tab.name], query)),
    },
  };
}

export const GALLERY_KEYS = [
  ["←  →", "previous, next image, also of a list"],
  ["Enter", "open the image"],
  ["x  m  r", "tick it, move it to the class that it looks like, or find it right; once more takes that back"],
  ["u", "undo what changed many at once"],
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
