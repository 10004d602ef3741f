// The network: its numbers, and every layer as a row of cells.

import { verdictColor } from "./colors.js";
import { address, byScore, filterAddress, filterCard, sampleCaption, sampleTile, swatch, visit } from "./components.js";
import { div, emptyState, folded, headingOf, make, prose, quiet, sharpCanvas, termList } from "./dom.js";
import { chosenFilters } from "./filter_list.js";
import { count, kindsOf, layerText, number, ordinaryText, percent, scoreText, VERDICTS } from "./wording.js";

const TOP_SAMPLES = 12;

const GROUPS = 4; // of filters that agree
const SIDE_BY_SIDE = 6; // filters of a group

/** The whole network. */
export function overview(report) {
  const isolated = report.filters.filter((place) => report.isolated(place).length).length;
  const first = byScore(report)[0];
  const tile = (value, text, href, title) =>
    make(href ? "a" : "div", { class: "stat", href, title }, make("b", {}, value), make("span", {}, text));
  const section = (title, ...content) => make("section", {}, make("h2", {}, title), content);
  const notes = report.notes.map((note) => make("li", {}, prose(note)));
  return [
    ...report.agreements.slice(0, GROUPS).map((group, place) => agreement(report, group, place)),
    make(
      "section",
      { class: "stats" },
      first === undefined || !report.views.length
        ? null
        : tile(
            scoreText(report.scores[first]),
            `the largest score; ${ordinaryText(report, "samples")}`,
            address(["strangest samples"]),
          ),
      ...(report.measured
        ? [
            tile(
              number(isolated),
              `isolated ${isolated === 1 ? "filter" : "filters"}, with samples far from all others`,
              address(["filters"], { verdict: "isolated" }),
              VERDICTS.isolated,
            ),
            tile(
              number(report.count),
              `anomaly ${report.count === 1 ? "filter" : "filters"} of ${number(report.filters.length)}, ${percent(report.fraction)} of those whose maps vary`,
              address(["filters"], { verdict: "anomaly", sort: "clearest" }),
              VERDICTS.anomaly,
            ),
            tile(percent(report.sparsity), "of the maps' values are zero or less"),
          ]
        : [tile("not measured", "anomaly and isolated filters; the notes say why")]),
    ),
    section("Layers", legend(report), layers(report)),
    report.notes.length ? section("Notes", make("ul", { class: "notes" }, notes)) : null,
    folded("How it was analyzed", termList("settings", Object.entries(report.settings))),
  ];
}

/** Filters that agree: the samples that they single out, and some of them side by side. */
function agreement(report, [filters, shared], agree) {
  const shown = Math.min(SIDE_BY_SIDE, filters.length);
  const spread = Array.from({ length: shown }, (_, i) => filters[Math.floor((i * filters.length) / shown)]);
  const heading = headingOf(`${count(filters.length, "filter")} agree`, `on ${count(shared.length, "sample")}`);
  return make(
    "section",
    {},
    heading,
    div(
      "strip",
      shared.slice(0, TOP_SAMPLES).map((sample) => sampleTile(report, sample, captionWithReason(report, sample))),
    ),
    div(
      "cards",
      spread.map((number) => filterCard(report, report.filters[number], { query: { agree }, ringed: shared })),
    ),
    filters.length > shown
      ? make("p", {}, make("a", { href: address(["filters"], { agree }) }, `All ${number(filters.length)} of them`))
      : null,
  );
}

function captionWithReason(report, sample) {
  const [reason] = Object.values(report.reasons[sample]);
  return [sampleCaption(report, sample), reason ? make("span", { class: "quiet tile-label" }, reason) : null];
}

/** The query for the filters of a kind: the verdict if it finds the same number, else the exact kind. */
const verdictOf = (report, kind, amount) =>
  chosenFilters(report, { verdict: kind }).length === amount ? kind : `=${kind}`;

function legend(report) {
  const entry = (kind, amount) => {
    const href = address(["filters"], { verdict: verdictOf(report, kind, amount) });
    return make("a", { href }, swatch(verdictColor(kind)), `${kind} `, quiet(number(amount)));
  };
  return make(
    "ul",
    { class: "legend" },
    kindsOf(report).map(([kind, amount]) => make("li", { title: VERDICTS[kind] ?? "" }, entry(kind, amount))),
  );
}

function layers(report) {
  if (!report.filters.length) return emptyState("No layer was analyzed. The notes below say why.");
  const size = report.filters.length > 4000 ? 7 : 11;
  const rows = report.layers.map((layer, place) => {
    const anomalies = layer.verdicts.filter((code) => layer.verdict_names[code] === "anomaly").length;
    const sparsity = layer.sparsity.filter((value) => value !== null);
    const mean = sparsity.length ? sparsity.reduce((sum, value) => sum + value, 0) / sparsity.length : null;
    const sparse = mean === null ? "" : percent(mean);
    const href = address(["filters"], { layer: place });
    const analyzed = report.measured && layer.verdicts.some((code) => layer.verdict_names[code] !== "nonfinite");
    const about = analyzed ? `${anomalies} of ${layer.verdicts.length}` : "not measured";
    return div(
      "layer",
      make(
        "a",
        { class: "cut cut-left", title: layerText(layer.name), href },
        make("bdi", {}, layer.name || "the model"),
      ),
      make("span", { class: "layer-count", title: "anomaly filters" }, about),
      make("span", { class: "layer-sparsity quiet", title: "zero or less, of its maps' values" }, sparse),
      cells(report, place, size),
    );
  });
  const heading = div(
    "layer layer-heading quiet",
    make("span", {}, "layer"),
    make("span", { class: "layer-count" }, "anomaly"),
    make("span", { class: "layer-sparsity" }, "sparsity"),
    make("span", {}, "a cell is a filter: click one"),
  );
  return div("layers", heading, rows);
}

/** The filters of a layer on one canvas, as networks have tens of thousands. */
function cells(report, place, size) {
  const layer = report.layers[place];
  const canvas = make("canvas", {
    class: "cells",
    role: "img",
    "aria-label": `${layer.verdicts.length} filters of ${layerText(layer.name)}`,
  });
  const box = div("cell-box", canvas);
  let columns = 1;
  const draw = () => {
    if (!box.clientWidth) return;
    columns = Math.max(1, Math.floor(box.clientWidth / size));
    const height = Math.ceil(layer.verdicts.length / columns) * size;
    canvas.style.height = `${height}px`;
    const context = sharpCanvas(canvas, box.clientWidth, height);
    layer.verdicts.forEach((_, filter) => {
      context.fillStyle = verdictColor(report.kind({ layer: place, filter }));
      context.fillRect((filter % columns) * size, Math.floor(filter / columns) * size, size - 1.5, size - 1.5);
    });
  };
  const at = (event) => {
    const filter = Math.floor(event.offsetY / size) * columns + Math.floor(event.offsetX / size);
    return event.offsetX < columns * size && filter < layer.verdicts.length ? filter : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    const filter = at(event);
    const outliers = filter === null ? 0 : report.outliers({ layer: place, filter }).length;
    canvas.title =
      filter === null
        ? ""
        : `filter ${filter}: ${report.kind({ layer: place, filter })}${outliers ? `, ${count(outliers, "outlier")}` : ""}`;
    canvas.style.cursor = filter === null ? "" : "pointer";
  });
  canvas.addEventListener("click", (event) => {
    const filter = at(event);
    if (filter !== null) visit(filterAddress(report, { layer: place, filter }));
  });
  new ResizeObserver(draw).observe(box);
  return box;
}
