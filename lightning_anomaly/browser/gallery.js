// The browser of the images that belong least: a gallery to tick some, and one image.

import { verdictColour } from "./colours.js";
import { address, bars, imageOf, pages, stepper, swatch } from "./components.js";
import { csvText, download, exportButton } from "./csv.js";
import { choice, finder, make } from "./dom.js";
import { Ranking } from "./ranking.js";
import { run } from "./shell.js";
import { count, layerText, number, ordinaryText, percent, scoreText } from "./wording.js";

const AT_ONCE = 48;
const EMPTY = {
  found: "No image is significant at this rate of false discoveries. Look at the largest scores.",
  ticked: "No image is ticked.",
  other: "No image is like that. Show others, choose another layer, or find another name.",
};

const tickedText = (amount) => `ticked (${amount})`;
let opened = null; // the row whose page was last shown

const imageAddress = (row, query) => address(["image", row.position], query);

const picture = (ranking, row) =>
  row.rank < ranking.pictured
    ? imageOf(ranking, row.rank, `image ${row.position}`)
    : make("span", { class: "no-image" }, "no picture");

const chance = (row) => Number(row.p_value.toPrecision(2)).toString();
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** What is said of an image beside its rank. */
function badge(row) {
  if (row.found) return make("span", { class: "badge" }, swatch(verdictColour("anomaly")), "significant");
  const title = "Its score is larger than that of every image of the reference.";
  return row.beyond ? make("span", { class: "badge", title }, "beyond the reference") : null;
}

/** A box to tick; `changed` is called when it was. */
function tickBox(ranking, row, text, changed) {
  const box = make("input", {
    type: "checkbox",
    checked: ranking.ticked.has(row.position),
    "data-position": row.position,
    change: () => {
      ranking.tick([row], box.checked);
      changed();
    },
  });
  return make("label", { class: "tick" }, box, text);
}

/** What can be done with what is ticked; `update()` after a change. */
function tickedBar(ranking) {
  const status = make("span", { role: "status" });
  const save = make(
    "button",
    { type: "button", class: "main-button", click: () => saveTicked(ranking) },
    "Save as CSV",
  );
  const none = make("button", { type: "button", click: () => untick() }, "Untick all");
  const bar = make("div", { class: "ticked-bar" }, status, none, save);
  const update = () => {
    const amount = ranking.ticked.size;
    status.textContent = `${count(amount, "image")} ticked`;
    bar.hidden = amount === 0;
    for (const option of document.querySelectorAll("option[value='ticked']")) option.textContent = tickedText(amount);
    for (const box of document.querySelectorAll("[data-position]"))
      box.checked = ranking.ticked.has(Number(box.dataset.position));
  };
  const untick = () => {
    ranking.tick(ranking.rows, false);
    update();
  };
  update();
  return { bar, update };
}

function card(ranking, row, query, changed) {
  return make(
    "div",
    { class: "card outlier" },
    make(
      "a",
      { class: "outlier-picture", href: imageAddress(row, query), title: `image ${row.position}` },
      picture(ranking, row),
    ),
    make(
      "div",
      { class: "outlier-head" },
      tickBox(ranking, row, make("strong", {}, `${row.rank + 1}`), changed),
      badge(row),
    ),
    make("span", {}, `image ${row.position}`),
    row.label === undefined ? null : make("span", { class: "outlier-label", title: row.label }, row.label),
    make("span", {}, `score ${scoreText(row.score)}`),
    make("span", {}, `p-value ${chance(row)}`),
    make("span", { class: "quiet" }, Object.values(row.told)[0] ?? layerText(row.layer)),
  );
}

function gallery(ranking, query) {
  const change = (name) => (value) => {
    const { [name]: _, ...others } = query;
    window.location.hash = address(["gallery"], value === "all" ? others : { ...others, [name]: value });
  };
  const found = ranking.chosen(query);
  const { bar, update } = tickedBar(ranking);
  const layers = ranking.amounts().map(([name, amount]) => [`=${name}`, `${layerText(name)} (${amount})`]);
  const amountOf = (show) => ranking.chosen({ show }).length;
  const all = make(
    "button",
    {
      type: "button",
      click: () => {
        ranking.tick(found, true);
        update();
      },
    },
    `Tick ${found.length === 1 ? "this one" : `all ${number(found.length)}`}`,
  );
  const content = [
    make("h1", {}, "Images by score"),
    ranking.sentences.map((text) => make("p", {}, sentence(text))),
    make(
      "p",
      { class: "quiet" },
      `The larger its score, the less an image is like the reference: ${ordinaryText(ranking, "images")}. ` +
        "A p-value is the share of reference images with a score as large. Tick images to save them as a list.",
    ),
    make(
      "div",
      { class: "choices" },
      choice(
        "Show",
        [
          ["all", `largest ${number(ranking.rows.length)}`],
          ["found", `significant (${amountOf("found")})`],
          ["ticked", tickedText(amountOf("ticked"))],
        ],
        query.show ?? "all",
        change("show"),
      ),
      choice("Strongest layer", [["all", "any"], ...layers], query.layer ?? "all", change("layer")),
      finder("number or name", query.find ?? "", (text) => change("find")(text || "all")),
      query.show === "ticked" || !found.length ? null : all,
      found.length ? exportButton("images.csv", ranking.columns, found) : null,
      make("span", { class: "quiet", role: "status" }, `${count(found.length, "image")} of ${number(ranking.total)}`),
    ),
    found.length
      ? pages(found, AT_ONCE, (row) => card(ranking, row, query, update), "cards outliers")
      : make("p", { class: "empty-state" }, EMPTY[query.layer || query.find ? "other" : query.show]),
    bar,
  ];
  return { content: content.flat(), section: "gallery", keys: galleryKeys(ranking, update) };
}

/** Arrows go from picture to picture, and a letter ticks the one that has the focus. */
function galleryKeys(ranking, update) {
  const step = (by) => {
    const links = () => [...document.querySelectorAll(".outlier-picture")];
    const place = (is) => links().findIndex((link) => is(link.parentElement));
    const at = place((card) => card.contains(document.activeElement));
    if (at >= 0 && at + by === links().length) document.querySelector(".more:not([hidden])")?.click();
    const first = () =>
      Math.max(
        0,
        place((card) => card.querySelector(`[data-position='${opened?.position}']`)),
      );
    (links()[at < 0 ? first() : at + by] ?? links()[at])?.focus();
  };
  const tick = () => {
    const box = document.activeElement.closest(".outlier")?.querySelector("[data-position]");
    const row = box && ranking.rows.find(({ position }) => position === Number(box.dataset.position));
    if (!row) return;
    ranking.tick([row], !box.checked);
    update();
  };
  return { ArrowRight: () => step(1), ArrowLeft: () => step(-1), x: tick, s: () => saveTicked(ranking) };
}

function saveTicked(ranking) {
  const rows = ranking.chosen({ show: "ticked" });
  if (rows.length) download("ticked.csv", csvText(ranking.columns, rows));
}

function imagePage(ranking, row, query) {
  opened = row;
  const chosen = ranking.chosen(query);
  const list = chosen.includes(row) ? chosen : ranking.rows;
  const { bar, update } = tickedBar(ranking);
  const { element, step } = stepper(list, row, "image", (next) => {
    window.location.hash = imageAddress(next, query);
  });
  const facts = [
    ["Rank", `${number(row.rank + 1)} of ${number(ranking.total)}, by its score`],
    ["Score", `${scoreText(row.score)}; ${ordinaryText(ranking, "images")}`],
    ["p-value", `${chance(row)}: ${percent(Number(chance(row)))} of reference images have a score as large`],
    ["Significant", `${row.found ? "yes" : "no"}, at a false discovery rate of ${percent(ranking.rate)}`],
    ["Strongest layer", make("a", { href: address(["gallery"], { layer: `=${row.layer}` }) }, layerText(row.layer))],
    ["Its filters", row.filters.length ? `${row.filters.join(", ")}, the most extreme first` : "none"],
    ...(row.label === undefined ? [] : [["Label", row.label]]),
  ];
  const toggle = () => {
    ranking.tick([row], !ranking.ticked.has(row.position));
    update();
  };
  return {
    content: [
      make("div", { class: "title-row" }, make("h1", {}, `Image ${row.position}`), element),
      make(
        "div",
        { class: "sample" },
        make("div", { class: "big-image" }, picture(ranking, row)),
        make(
          "div",
          {},
          make("p", { class: "outlier-head" }, tickBox(ranking, row, "Tick this image", update), badge(row)),
          bars(
            Object.entries(row.views).map(([view, value]) => ({
              name: view,
              value: value ?? Infinity,
              usual: ranking.views[view],
              told: row.told[view],
            })),
          ),
          make(
            "dl",
            { class: "facts" },
            facts.flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]),
          ),
        ),
      ),
      bar,
    ],
    section: "gallery",
    keys: {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      x: toggle,
      s: () => saveTicked(ranking),
      Escape: () => {
        window.location.hash = address(["gallery"], query);
      },
    },
  };
}

run({
  open: Ranking.open,
  sections: [["gallery", "Gallery"]],
  help: [
    ["←  →", "previous, next image"],
    ["Enter", "open the image"],
    ["x", "tick it, or untick it"],
    ["s", "save what is ticked as CSV"],
    ["Esc", "back to the gallery; close this"],
    ["?", "these keys"],
  ],
  pageOf(ranking, page, rest, query) {
    if (page === "gallery") return gallery(ranking, query);
    const row = page === "image" && ranking.rows.find(({ position }) => String(position) === rest[0]);
    return row ? imagePage(ranking, row, query) : null;
  },
});
