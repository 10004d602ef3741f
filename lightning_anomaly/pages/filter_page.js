// One filter: its points, the sample under the pointer, its facts and its samples.

import {
  address,
  filterAddress,
  groupMark,
  imageOf,
  mapOf,
  sampleAddress,
  sampleTile,
  stepKeys,
  stepper,
  titleRow,
  verdictBadge,
  visit,
} from "./components.js";
import { choice, div, emptyState, headingOf, make, quiet, termList } from "./dom.js";
import { choiceText, chosenFilters } from "./filter_list.js";
import { Scatter } from "./scatter.js";
import { count, facts, layerText, number, scoreText, tally, VERDICTS } from "./wording.js";

const LEGEND = 35; // entries, one for each combination of color and shape
const STRIP = 40; // tiles

/** The page and its keys. `query.pin` is the pinned sample, `query.by` what colors the points. */
export async function filterPage(report, place, query) {
  const { pin: pinned = null, by = "cluster", ...chosen } = query;
  const [points, map] = await Promise.all([report.points(place), report.maps(place)]);
  const layer = report.layers[place.layer];
  const same = (other) => other.layer === place.layer && other.filter === place.filter;
  let list = chosenFilters(report, chosen);
  if (!list.some(same)) list = report.filters;
  const go = (other, pin = null) => visit(filterAddress(report, other, { ...chosen, by: query.by, pin }));
  const pin = (sample) => go(place, sample);
  const about = `, ${choiceText(report, list === report.filters ? {} : chosen)}`;
  const { element: steps, step } = stepper(list, list.find(same), "filter", (next) => go(next), about);
  const link = make("a", { href: address(["filters"], { layer: place.layer }) }, layerText(layer.name));
  const title = make("h1", {}, `Filter ${place.filter} `, make("span", { class: "of-layer" }, "of ", link));
  const kind = report.kind(place);
  const verdict = make("p", { class: "verdict" }, verdictBadge(kind), ` ${VERDICTS[kind] ?? ""}`);
  const heading = titleRow(make("div", {}, title, verdict), steps);
  const inspector = make("div", { class: "inspector", "aria-live": "polite" });
  const show = (sample, isPinned) =>
    inspector.replaceChildren(...inspected(report, place, points, map, sample, isPinned).filter(Boolean));
  const factList = termList("facts", facts(report, place));
  show(null, false);

  if (!points.samples.length) {
    const empty = emptyState(`${VERDICTS[report.verdict(place)] ?? ""} There are no points to show.`);
    const content = [heading, div("filter", div("panel", empty), div("side", factList))];
    return { content: [...content, ...strips(report, place, map, null)], keys: stepKeys(step) };
  }
  const description = `Points of ${count(points.samples.length, "sample")}, ${count(
    points.outliers.reduce((sum, flag) => sum + flag, 0),
    "outlier",
  )} ringed`;
  const labeled = report.labels && by === "label";
  const groups = labeled ? Array.from(points.samples, (sample) => report.labels.of[sample]) : points.clusters;
  const scatter = new Scatter(points, { show, pin, description, groups });
  // A link that goes with the file of another report may name a sample that this one does not have.
  const repin = (sample) =>
    scatter.setPinned(sample !== null && report.hasSample(Number(sample)) ? Number(sample) : null);
  repin(pinned);
  const toolbar = div(
    "toolbar",
    report.labels
      ? choice(
          "Color by",
          ["cluster", "label"].map((value) => [value, value]),
          by,
          (value) => visit(filterAddress(report, place, { ...chosen, pin: scatter.pinned, by: value })),
        )
      : null,
    groupLegend(report, scatter, labeled),
    scatter.buttons(),
  );
  return {
    content: [
      heading,
      div("filter", div("panel", toolbar, scatter.element), div("side", inspector, factList)),
      ...strips(report, place, map, (sample) => {
        pin(sample);
        inspector.scrollIntoView({ block: "nearest" });
      }),
    ],
    keys: { ...stepKeys(step), ...pointKeys(scatter, points, pin) },
    repin,
  };
}

function pointKeys(scatter, points, pin) {
  const order = [...points.samples.keys()].sort((a, b) => points.x[a] - points.x[b] || a - b);
  const through = (places) => (by) => {
    if (!places.length) return;
    const at = places.findIndex((i) => points.samples[i] === scatter.pinned);
    pin(points.samples[places[at < 0 ? (by > 0 ? 0 : places.length - 1) : (at + by + places.length) % places.length]]);
  };
  const [outlier, point] = [through(order.filter((i) => points.outliers[i] || points.isolated[i])), through(order)];
  return {
    o: () => outlier(1),
    O: () => outlier(-1),
    ".": () => point(1),
    ",": () => point(-1),
    "+": () => scatter.zoom(1.5),
    "-": () => scatter.zoom(1 / 1.5),
    0: () => scatter.reset(),
    Escape: () => pin(null),
  };
}

/** The sample under the pointer, or else the pinned one: its image and the filter's map of it. */
function inspected(report, place, points, map, sample, isPinned) {
  if (sample === null) {
    const hint = "Point at a dot to see its sample, click or tap to pin it. Zoom with Ctrl and the wheel.";
    return points.samples.length ? [make("p", { class: "hint" }, hint)] : [];
  }
  const i = points.samples.indexOf(sample);
  const label = report.label(sample);
  const figure = (content, caption) => make("figure", {}, content, make("figcaption", {}, caption));
  const pictures = [];
  if (report.images) pictures.push(figure(imageOf(report, sample), "sample"));
  if (report.layers[place.layer].maps) pictures.push(figure(mapOf(map(sample), sample), "filter's map"));
  return [
    div(
      "inspected",
      make("a", { class: "sample-link", href: sampleAddress(sample) }, `Sample ${sample}`),
      isPinned ? quiet("pinned") : null,
    ),
    pictures.length ? div("pair", pictures) : null,
    make(
      "p",
      {},
      label === null ? null : make("span", { class: "label cut", title: label }, label),
      standing(points, i),
      ` Score ${scoreText(report.scores[sample])}.`,
    ),
  ];
}

/** The cluster of a sample and its flags; `i` is the index of its point, negative if the file omits it. */
function standing(points, i) {
  if (i < 0) return "Its point is not in this file.";
  const kinds = [points.outliers[i] && "outlier", points.isolated[i] && "isolated"].filter(Boolean);
  return `In cluster ${points.clusters[i] + 1}${kinds.length ? `, ${kinds.join(" and ")}` : ""}.`;
}

const ringEntry = (className, text) =>
  make("span", { class: "quiet ring-entry" }, make("i", { class: className, "aria-hidden": "true" }), text);

function groupLegend(report, scatter, labeled) {
  const sizes = tally(scatter.groups);
  const groups = [...sizes.keys()].sort((a, b) => a - b);
  const entry = (group) => {
    const text = labeled ? report.labels.names[group] : `cluster ${group + 1}`;
    const button = make(
      "button",
      { class: "entry", "aria-pressed": "false", title: `show ${text} alone` },
      groupMark(group),
      make("span", { class: "cut" }, text),
      quiet(number(sizes.get(group))),
    );
    button.addEventListener("click", () => {
      const alone = scatter.only === group ? null : group;
      scatter.emphasise(alone);
      for (const other of button.parentElement.querySelectorAll(".entry"))
        other.setAttribute("aria-pressed", String(other === button && alone !== null));
    });
    return button;
  };
  return div(
    "groups",
    groups.slice(0, LEGEND).map(entry),
    groups.length > LEGEND ? quiet(`and ${groups.length - LEGEND} more`) : null,
    ringEntry("ring", "outlier"),
    scatter.points.isolated.includes(1) ? ringEntry("ring isolated", "isolated") : null,
    labeled
      ? null
      : make("span", { class: "quiet ellipse-note" }, "ellipses: two standard deviations of a cluster's points"),
  );
}

/** Rows of samples. A click calls `pin(sample)`; without `pin`, a tile is a link to its sample. */
function strips(report, place, map, pin) {
  const layer = report.layers[place.layer];
  const outliers = report.outliers(place);
  const tiles = (samples) =>
    div(
      "strip",
      samples.map((sample) =>
        sampleTile(report, sample, String(sample), { map: map(sample), click: pin && (() => pin(sample)) }),
      ),
    );
  const strip = (title, about, samples) =>
    make("section", { class: "strip-section" }, headingOf(title, about), tiles(samples));
  const isolated = report.isolated(place).filter((sample) => !outliers.includes(sample));
  const sections = [];
  const first = (samples) => (samples.length > STRIP ? `, the first ${STRIP} shown` : "");
  if (isolated.length)
    sections.push(
      strip("Isolated", `farther out than the tail of the others explains${first(isolated)}`, isolated.slice(0, STRIP)),
    );
  if (outliers.length)
    sections.push(strip("Outliers", `${count(outliers.length, "sample")}${first(outliers)}`, outliers.slice(0, STRIP)));
  if (layer.maps) {
    sections.push(strip("Most active", "largest mean of the map", layer.most[place.filter]));
    sections.push(strip("Least active", "smallest mean of the map", layer.least[place.filter]));
  }
  return sections;
}
