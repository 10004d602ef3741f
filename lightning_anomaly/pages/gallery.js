// The page of `find_outliers`: a gallery in which a reader ticks images, and one image.

import { verdictColor } from "./colors.js";
import { address, bars, imageOf, pages, stepKeys, stepper, swatch, titleRow, visit } from "./components.js";
import { csvText, download, exportButton } from "./csv.js";
import { choice, cutLine, div, finder, make, prose, quiet, statusLine, termList } from "./dom.js";
import { Ranking } from "./ranking.js";
import { run } from "./shell.js";
import { count, number, ordinaryText, percent, SCORE_TERMS, scoreText } from "./wording.js";

const AT_ONCE = 48;
const EMPTY = {
  significant: "No image is significant at this rate of false discoveries. Look at the largest scores.",
  ticked: "No image is ticked.",
  all: "No image has a score.",
  other: "No image matches. Show others, or find another name.",
};

const tickedText = (amount) => `ticked (${amount})`;
let opened = null; // the row whose page was shown last

const imageAddress = (row, query) => address(["image", row.position], query);

const picture = (ranking, row) =>
  Number.isInteger(row.picture)
    ? imageOf(ranking, row.picture, `image ${row.position}`)
    : make("span", { class: "no-image" }, "no picture");

const chance = (row) => (row.p_value === null ? "none" : Number(row.p_value.toPrecision(2)).toString());
const sentence = (text) => prose(`${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`);

/** Whether an image is significant, beside its rank. */
function badge(row) {
  return row.significant ? make("span", { class: "badge" }, swatch(verdictColor("anomaly")), "significant") : null;
}

/** A checkbox; `changed` is called after a tick. */
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

/** The bar that saves and unticks images; call `update()` after a change. */
function tickedBar(ranking) {
  const status = make("span", { role: "status" });
  const save = make("button", {
    class: "main-button",
    title: "as CSV (key s)",
    click: () => saveTicked(ranking),
  });
  const none = make("button", { click: () => untick() }, "Untick all");
  const bar = div("ticked-bar", status, none, save);
  const update = () => {
    const amount = ranking.ticked.size;
    status.textContent = `${count(amount, "image")} ticked`;
    save.textContent = `Save the ${number(amount)} ticked`;
    bar.hidden = amount === 0;
    for (const option of document.querySelectorAll("option[value='ticked']")) option.textContent = tickedText(amount);
    for (const box of document.querySelectorAll("[data-position]"))
      box.checked = ranking.ticked.has(Number(box.dataset.position));
  };
  const untick = () => {
    ranking.tick(ranking.all, false);
    update();
  };
  update();
  return { bar, update };
}

function card(ranking, row, query, changed) {
  return div(
    "card outlier",
    make(
      "a",
      { class: "outlier-picture", href: imageAddress(row, query), title: `image ${row.position}` },
      picture(ranking, row),
    ),
    div(
      "outlier-head",
      tickBox(ranking, row, make("strong", {}, row.rank === undefined ? "" : `${row.rank + 1}`), changed),
      badge(row),
    ),
    make("span", {}, `image ${row.position}`),
    [row.label, row.name].filter(Boolean).map((text) => cutLine(text)),
    row.score === null ? null : make("span", {}, `score ${scoreText(row.score)}`),
    ranking.ranked || row.score === null ? null : make("span", {}, `p-value ${chance(row)}`),
    quiet(Object.values(row.view_reasons)[0]),
  );
}

/** Duplicates, images that cannot be used and skipped files, below the ranked images. */
function apart(ranking, update) {
  const cards = (rows) =>
    div(
      "cards",
      rows.map((row) => card(ranking, row, {}, update)),
    );
  const part = (title, items, draw) =>
    items.length
      ? [make("h2", {}, `${title} `, quiet(number(items.length))), pages(items, AT_ONCE, draw, "parts")]
      : [];
  const group = ({ positions, reference }) =>
    make(
      "section",
      {},
      cards(positions.slice(0, AT_ONCE).map((position) => ranking.row(position))),
      positions.length > AT_ONCE ? quiet(`and ${number(positions.length - AT_ONCE)} more`) : null,
      reference.length ? quiet(`and in the reference: ${reference.join(", ")}`) : null,
    );
  const file = (name, text) => make("p", {}, make("strong", {}, name), ` ${text}`);
  return [
    part(
      "Identical images",
      ranking.groups.filter(({ identical }) => identical),
      group,
    ),
    part(
      "Near duplicates",
      ranking.groups.filter(({ identical }) => !identical),
      group,
    ),
    part(
      "Images that cannot be used",
      ranking.all.filter((row) => row.score === null && (row.view_reasons.file || ranking.shown)),
      (row) => file(row.name ?? `image ${row.position}`, row.view_reasons.file ?? "gives NaN or infinite values"),
    ),
    part("Skipped files", ranking.skipped, ([name, reason]) => file(name, reason)),
  ].flat();
}

function gallery(ranking, query) {
  const change = (name) => (value) => {
    const { [name]: _, ...others } = query;
    visit(address(["gallery"], value === "all" ? others : { ...others, [name]: value }));
  };
  const rows = ranking.chosen(query);
  const { bar, update } = tickedBar(ranking);
  const amountOf = (show) => ranking.chosen({ show }).length;
  const all = make(
    "button",
    {
      click: () => {
        ranking.tick(rows, true);
        update();
      },
    },
    `Tick ${rows.length === 1 ? "this one" : `all ${number(rows.length)}`}`,
  );
  const content = [
    make("h1", {}, "Images by score"),
    ranking.sentences.map((text) => make("p", {}, sentence(text))),
    make(
      "p",
      { class: "quiet" },
      ranking.shown
        ? `The larger its score, the less an image is like ordinary ones: ${ordinaryText(ranking, "images")}. `
        : null,
      ranking.ranked ? null : "A p-value is the share of calibration images with a score as large. ",
      "Tick images to save them as a list.",
    ),
    div(
      "choices",
      choice(
        "Show",
        [
          ["all", `largest ${number(ranking.rows.length)}`],
          ranking.ranked ? null : ["significant", `significant (${amountOf("significant")})`],
          ["ticked", tickedText(amountOf("ticked"))],
        ].filter(Boolean),
        query.show ?? "all",
        change("show"),
      ),
      choice(
        "Order by",
        [
          ["all", "score"],
          ...Object.keys(ranking.views).map((view) => [view, view === "label" ? "filed elsewhere" : view]),
        ],
        query.by ?? "all",
        change("by"),
      ),
      finder("number or name", query.find ?? "", (text) => change("find")(text || "all")),
      query.show === "ticked" || !rows.length ? null : all,
      rows.length ? exportButton("images.csv", ranking.csvColumns, rows) : null,
      statusLine(`${count(rows.length, "image")} of ${number(ranking.total)}`),
    ),
    pages(
      rows,
      AT_ONCE,
      (row) => card(ranking, row, query, update),
      "cards",
      EMPTY[query.find ? "other" : (query.show ?? "all")],
    ),
    Object.keys(query).length ? null : apart(ranking, update),
    bar,
  ];
  return { content: content.flat(), section: "gallery", keys: galleryKeys(ranking, update) };
}

/** Arrows go from picture to picture, x ticks the one with the focus, and s saves the ticked ones. */
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
    const row = box && ranking.row(Number(box.dataset.position));
    if (!row) return;
    ranking.tick([row], !box.checked);
    update();
  };
  return { ArrowRight: () => step(1), ArrowLeft: () => step(-1), x: tick, s: () => saveTicked(ranking) };
}

function saveTicked(ranking) {
  const rows = ranking.chosen({ show: "ticked" });
  if (rows.length) download("ticked.csv", csvText(ranking.csvColumns, rows));
}

const significance = (ranking, row) => [
  ["p-value", `${chance(row)}: ${percent(Number(chance(row)))} of calibration images have a score as large`],
  ["Significant", `${row.significant ? "yes" : "no"}, at a false discovery rate of ${percent(ranking.rate)}`],
];

function imagePage(ranking, row, query) {
  opened = row;
  const chosen = ranking.chosen(query);
  const list = chosen.includes(row) ? chosen : ranking.rows;
  const { bar, update } = tickedBar(ranking);
  const { element, step } = stepper(list, row, "image", (next) => visit(imageAddress(next, query)));
  const facts = [
    ["Rank", row.rank === undefined ? undefined : `${number(row.rank + 1)} of ${number(ranking.total)}, by its score`],
    ["Score", row.score === null ? undefined : `${scoreText(row.score)}; ${ordinaryText(ranking, "images")}`],
    ["Duplicates", row.duplicates || undefined],
    ...(ranking.ranked ? [] : significance(ranking, row)),
    ["Label", row.label],
    ["File", row.name],
  ].filter(([, text]) => text !== undefined);
  const toggle = () => {
    ranking.tick([row], !ranking.ticked.has(row.position));
    update();
  };
  return {
    content: [
      titleRow(make("h1", {}, `Image ${row.position}`), element),
      div(
        "sample",
        div("big-image", picture(ranking, row)),
        make(
          "div",
          {},
          make("p", { class: "outlier-head" }, tickBox(ranking, row, "Tick this image", update), badge(row)),
          row.view_reasons.file
            ? make("p", {}, sentence(`this image ${row.view_reasons.file}`))
            : bars(
                Object.entries(row.views).map(([view, value]) => ({
                  name: view,
                  value: value ?? Infinity,
                  usual: ranking.views[view],
                  reason: row.view_reasons[view],
                })),
              ),
          termList("facts", facts),
        ),
      ),
      bar,
    ],
    section: "gallery",
    keys: {
      ...stepKeys(step),
      x: toggle,
      s: () => saveTicked(ranking),
      Escape: () => visit(address(["gallery"], query)),
    },
  };
}

run({
  open: Ranking.open,
  sections: [["gallery", "Gallery"]],
  terms: [
    ...SCORE_TERMS,
    ["Reference", "Images that define what is ordinary: a given reference, or else some of the searched images."],
    ["p-value", "The share of calibration images with a score as large."],
    [
      "Significant",
      "The expected share of ordinary images among these is at most the false discovery rate (Benjamini and Hochberg).",
    ],
  ],
  keys: [
    ["←  →", "previous, next image"],
    ["Enter", "open the image"],
    ["x", "tick it, or untick it"],
    ["s", "save what is ticked as CSV"],
    ["Esc", "back to the gallery; close this"],
    ["?", "these terms and keys"],
  ],
  pageOf(ranking, page, rest, query) {
    if (page === "gallery") return gallery(ranking, query);
    const row = page === "image" && ranking.row(Number(rest[0]));
    return row ? imagePage(ranking, row, query) : null;
  },
});
