// The network: its numbers, its curves, and every layer as a row of cells.

import { ticks } from "./canvas.js";
import { groupColour, verdictColour } from "./colours.js";
import { address, byScore, filterAddress, filterCard, sampleCaption, sampleTile, swatch, visit } from "./components.js";
import { div, emptyState, make, makeSvg, prose, quiet, sharpCanvas, termList } from "./dom.js";
import { chosenFilters } from "./filter_list.js";
import { count, kindsOf, layerText, number, ordinaryText, percent, scoreText, VERDICTS } from "./wording.js";

const TOP_SAMPLES = 12;

export function overview(report) {
  const isolated = report.filters.filter((place) => report.isolated(place).length).length;
  const first = byScore(report)[0];
  const tile = (value, text, href, title) =>
    make(href ? "a" : "div", { class: "stat", href, title }, make("b", {}, value), make("span", {}, text));
  return [
    report.samples ? make("section", {}, make("h2", {}, "Strangest samples"), samples(report)) : null,
    report.standing_out.length
      ? make("section", {}, make("h2", {}, "Filters that stand out most"), standingOut(report))
      : null,
    make(
      "section",
      { class: "stats" },
      first === undefined
        ? null
        : tile(
            scoreText(report.scores[first]),
            `the largest score; ${ordinaryText(report, "samples")}`,
            address(["samples"]),
          ),
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
    ),
    report.history ? make("section", {}, make("h2", {}, "Over the run"), curves(report.history)) : null,
    make("section", {}, make("h2", {}, "Layers"), legend(report), layers(report)),
    report.notes.length
      ? make(
          "section",
          {},
          make("h2", {}, "Notes"),
          make(
            "ul",
            { class: "notes" },
            report.notes.map((note) => make("li", {}, prose(note))),
          ),
        )
      : null,
    make(
      "details",
      {},
      make("summary", {}, "How it was analyzed"),
      termList("settings", Object.entries(report.settings)),
    ),
  ];
}

/** The query for the filters of a kind: the verdict if it finds the same number, else the exact kind. */
const verdictOf = (report, kind, amount) =>
  chosenFilters(report, { verdict: kind }).length === amount ? kind : `=${kind}`;

function legend(report) {
  return make(
    "ul",
    { class: "legend" },
    kindsOf(report).map(([kind, amount]) =>
      make(
        "li",
        { title: VERDICTS[kind] ?? "" },
        make(
          "a",
          { href: address(["filters"], { verdict: verdictOf(report, kind, amount) }) },
          swatch(verdictColour(kind)),
          `${kind} `,
          quiet(number(amount)),
        ),
      ),
    ),
  );
}

function layers(report) {
  if (!report.filters.length) return emptyState("No layer was analyzed. The notes below say why.");
  const size = report.filters.length > 4000 ? 7 : 11;
  const rows = report.layers.map((layer, place) => {
    const anomalies = layer.verdicts.filter((code) => layer.verdict_names[code] === "anomaly").length;
    const sparsity = layer.sparsity.filter((value) => value !== null);
    const mean = sparsity.length ? sparsity.reduce((sum, value) => sum + value, 0) / sparsity.length : null;
    const about = `${anomalies} of ${layer.verdicts.length}`;
    return div(
      "layer",
      make(
        "a",
        {
          class: "cut cut-left",
          title: layerText(layer.name),
          href: address(["filters"], { layer: place }),
        },
        make("bdi", {}, layer.name || "the model"),
      ),
      make("span", { class: "layer-count", title: "anomaly filters" }, about),
      make(
        "span",
        { class: "layer-sparsity quiet", title: "zero or less, of its maps' values" },
        mean === null ? "" : percent(mean),
      ),
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
      context.fillStyle = verdictColour(report.kind({ layer: place, filter }));
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

function samples(report) {
  const top = byScore(report).slice(0, TOP_SAMPLES);
  const tile = (sample) => sampleTile(report, sample, sampleCaption(report, sample), { query: { sort: "score" } });
  return [
    div("tiles", top.map(tile)),
    make("p", {}, make("a", { href: address(["samples"]) }, `All ${number(report.samples)} samples by score`)),
  ];
}

/** The filters that isolate samples farthest away, each with one of them. */
function standingOut(report) {
  return div(
    "cards",
    report.standing_out.map(({ filter, samples: [first] }) =>
      filterCard(report, report.filters[filter], { query: { pin: first }, ringed: first }),
    ),
  );
}

/** Two charts over the same epochs, losses and counts, as their scales differ. */
function curves({ epochs, counts, losses }) {
  const measured = Object.entries(losses).filter(([, values]) => values.some((value) => value !== null));
  const styled = (entries, colours) =>
    entries.map(([name, values], i) => {
      const [colour, dash] = [colours[i % colours.length], ["", "6 3", "2 3"][i % 3]];
      return { name, values, colour, dash };
    });
  return div(
    "curves",
    measured.length ? chart(epochs, styled(measured, [0, 5, 3].map(groupColour))) : null,
    chart(epochs, styled(Object.entries(counts), [2, 3].map(groupColour))),
  );
}

function chart(epochs, series) {
  const width = Math.min(560, window.innerWidth - 60); // so that text has the same size on all screens
  const [height, left, right, top, bottom] = [190, 44, 12, 10, 30];
  const heights = series.flatMap((curve) => curve.values).filter((value) => value !== null);
  const lowest = Math.min(0, ...heights);
  const highest = lowest + 1.05 * (Math.max(...heights) - lowest || 1); // constant values need an axis too
  const x = (i) => left + (epochs.length > 1 ? i / (epochs.length - 1) : 0.5) * (width - left - right);
  const y = (value) => height - bottom - ((value - lowest) / (highest - lowest)) * (height - top - bottom);
  const text = (content, attributes) => makeSvg("text", attributes, content);
  const parts = ticks(lowest, highest).map(([value, label]) =>
    makeSvg(
      "g",
      {},
      makeSvg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      text(label, { x: left - 6, y: y(value) + 4, "text-anchor": "end" }),
    ),
  );
  const every = Math.max(1, Math.ceil(epochs.length / 8));
  for (let i = 0; i < epochs.length; i += every) {
    parts.push(text(String(epochs[i]), { x: x(i), y: height - 10, "text-anchor": "middle" }));
  }
  for (const { name, values, colour, dash } of series) {
    const measured = values.map((value, i) => [value, i]).filter(([value]) => value !== null);
    parts.push(
      makeSvg("polyline", {
        points: measured.map(([value, i]) => `${x(i)},${y(value)}`).join(" "),
        stroke: colour,
        "stroke-dasharray": dash,
      }),
    );
    for (const [value, i] of measured)
      parts.push(
        makeSvg(
          "circle",
          { cx: x(i), cy: y(value), r: 2.5, fill: colour },
          makeSvg("title", {}, `${name}, epoch ${epochs[i]}: ${number(value)}`),
        ),
      );
  }
  const names = make(
    "figcaption",
    {},
    series.map(({ name, colour, dash }) =>
      make(
        "span",
        {},
        makeSvg(
          "svg",
          { class: "dash", viewBox: "0 0 22 8", "aria-hidden": "true" },
          makeSvg("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: colour, "stroke-dasharray": dash }),
        ),
        name,
      ),
    ),
    quiet("over epochs"),
  );
  return make(
    "figure",
    { class: "chart" },
    names,
    makeSvg(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `${series.map((curve) => curve.name).join(" and ")} over epochs`,
      },
      ...parts,
    ),
  );
}
