// The browser of the images that belong least: a gallery to tick some, and one image.

import { verdictColour } from "./colours.js";
import { choice, make } from "./dom.js";
import { address, imageOf, layerLine, pages, stepper, swatch } from "./parts.js";
import { Ranking } from "./ranking.js";
import { run } from "./shell.js";
import { count, layerText, number, percent, scoreText } from "./words.js";

const AT_ONCE = 48;
const EMPTY = {
  found: "No image is found at this rate of false discoveries. Look at the largest scores.",
  ticked: "No image is ticked.",
  layer: "No image is like that. Show others, or choose another layer.",
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

const foundBadge = () => make("span", { class: "badge" }, swatch(verdictColour("anomaly")), "found");

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
  const save = make("button", { type: "button", class: "main-button", click: () => download(ranking) }, "Save as CSV");
  const none = make("button", { type: "button", click: () => untick() }, "Untick all");
  const bar = make("div", { class: "ticked-bar" }, status, none, save);
  const update = () => {
    const amount = ranking.ticked.size;
    status.textContent = amount ? `${count(amount, "image")} ticked` : "Tick images to save them as a list.";
    save.hidden = none.hidden = amount === 0;
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

function download(ranking) {
  const link = make("a", {
    href: URL.createObjectURL(new Blob([ranking.csv()], { type: "text/csv" })),
    download: "ticked.csv",
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
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
      row.found ? foundBadge() : null,
    ),
    make("span", {}, `image ${row.position}`),
    row.label === undefined ? null : make("span", { class: "outlier-label", title: row.label }, row.label),
    make("span", {}, `score ${scoreText(row.score)}`),
    make("span", {}, `p-value ${chance(row)}`),
    layerLine(row.layer),
    row.filters.length
      ? make("span", { class: "quiet" }, `${row.filters.length > 1 ? "filters" : "filter"} ${row.filters.join(", ")}`)
      : null,
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
    make("h1", {}, "Images that belong least"),
    ranking.sentences.map((text) => make("p", {}, sentence(text))),
    make(
      "p",
      { class: "quiet" },
      "A score is how far an image is from the reference in the layer where it is farthest; an ordinary one has less " +
        "than about 5. A p-value is the share of ordinary images with a score as large.",
    ),
    make(
      "div",
      { class: "choices" },
      choice(
        "Show",
        [
          ["all", `the ${number(ranking.rows.length)} largest scores`],
          ["found", `found (${amountOf("found")})`],
          ["ticked", tickedText(amountOf("ticked"))],
        ],
        query.show ?? "all",
        change("show"),
      ),
      choice("Strongest layer", [["all", "any"], ...layers], query.layer ?? "all", change("layer")),
      query.show === "ticked" || !found.length ? null : all,
      make("span", { class: "quiet", role: "status" }, `${count(found.length, "image")} of ${number(ranking.total)}`),
    ),
    found.length
      ? pages(found, AT_ONCE, (row) => card(ranking, row, query, update), "cards outliers")
      : make("p", { class: "empty-state" }, EMPTY[query.layer ? "layer" : query.show]),
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

const saveTicked = (ranking) => ranking.ticked.size && download(ranking);

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
    [
      "Score",
      `${scoreText(row.score)}: how far it is from the reference in the layer where it is farthest; an ordinary image has less than about 5`,
    ],
    ["p-value", `${chance(row)}: ${percent(Number(chance(row)))} of ordinary images have a score as large`],
    [
      "Found",
      row.found
        ? `yes: it does not belong, at a false discovery rate of ${percent(ranking.rate)}`
        : `no: too many ordinary images would be found with it for a false discovery rate of ${percent(ranking.rate)}`,
    ],
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
          make(
            "p",
            { class: "outlier-head" },
            tickBox(ranking, row, "Tick this image", update),
            row.found ? foundBadge() : null,
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
