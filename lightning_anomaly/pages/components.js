// Parts that several pages share.

import { drawImage, drawMap, drawMiniature, mark } from "./canvas.js";
import { groupColor, groupShape, verdictColor } from "./colors.js";
import { cutLine, div, emptyState, make, quiet, sharpCanvas, symbolButton } from "./dom.js";
import { count, layerText, number, scoreText, VERDICTS } from "./wording.js";

const MINIATURE = [150, 110];
const BESIDE_MAP = [96, 96];

/** The address of a page; empty entries of `query` are omitted. */
export function address(parts, query = {}) {
  const entries = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#/${parts.map(encodeURIComponent).join("/")}${entries.length ? `?${new URLSearchParams(entries)}` : ""}`;
}

export const filterAddress = (report, { layer, filter }, query) =>
  address(["filter", report.layers[layer].name, filter], query);
export const sampleAddress = (sample, query) => address(["sample", sample], query);

/** Goes to an address; while one types in a search field, it replaces the last one. */
export function visit(hash) {
  if (document.activeElement?.type === "search") window.location.replace(window.location.href.split("#")[0] + hash);
  else window.location.hash = hash;
}

/** A sample's image, or its number if there are no images. */
export function imageOf(report, sample, name = `image of sample ${sample}`) {
  if (!report.images) return make("span", { class: "no-image" }, String(sample));
  const canvas = make("canvas", { class: "pixels", role: "img", "aria-label": name });
  drawImage(canvas, report, sample);
  return canvas;
}

/** A map, or a remark that it was not kept. */
export function mapOf(map, sample) {
  if (!map) return make("span", { class: "no-image" }, "map not kept");
  const canvas = make("canvas", {
    class: map.height === 1 ? "pixels row" : "pixels",
    role: "img",
    "aria-label": `map of sample ${sample}`,
  });
  drawMap(canvas, map);
  return canvas;
}

export function verdictBadge(verdict) {
  return make("span", { class: "badge", title: VERDICTS[verdict] ?? "" }, swatch(verdictColor(verdict)), verdict);
}

export function swatch(color) {
  return make("i", { class: "swatch", style: { background: color }, "aria-hidden": "true" });
}

/** The mark of a group of points. */
export function groupMark(group) {
  const canvas = make("canvas", { class: "mark", "aria-hidden": "true" });
  const context = sharpCanvas(canvas, 14, 14);
  context.fillStyle = groupColor(group);
  mark(context, groupShape(group), 7, 7, 4.6);
  context.fill();
  return canvas;
}

/** A layer on a separate line, cut at the left, where names resemble each other. */
export const layerLine = (name) =>
  make("span", { class: "quiet cut cut-left", title: layerText(name) }, make("bdi", {}, layerText(name)));

/** A link to a filter: its points with rings around some samples, its map of one of them, its name with a `note`. */
export function filterCard(report, place, { query = {}, ringed = null, mapped = null, note = null } = {}) {
  const canvas = make("canvas", { class: "miniature", "aria-hidden": "true" });
  const outliers = report.outliers(place).length;
  const picture = make("span", { class: "card-picture" }, canvas);
  const withMap = mapped !== null && report.layers[place.layer].maps;
  const size = withMap ? BESIDE_MAP : MINIATURE;
  canvas.style.aspectRatio = size.join(" / ");
  const context = sharpCanvas(canvas, ...size);
  const draw = async () => {
    const points = await report.points(place);
    if (points.samples.length) drawMiniature(context, ...size, points, ringed);
    else canvas.classList.add("empty");
    if (withMap) picture.append(mapOf((await report.maps(place))(mapped), mapped));
  };
  draw();
  return make(
    "a",
    { class: "card", href: filterAddress(report, place, query) },
    picture,
    make(
      "span",
      { class: "card-head" },
      make("strong", {}, `filter ${place.filter}`),
      note === null ? null : make("span", { class: "card-note" }, note),
    ),
    layerLine(report.layers[place.layer].name),
    make(
      "span",
      { class: "card-foot" },
      verdictBadge(report.kind(place)),
      outliers ? quiet(count(outliers, "outlier")) : null,
    ),
  );
}

/** A sample as a small image with a caption: a link, or with `click` a button. */
export function sampleTile(report, sample, caption, { map = null, click = null, query = {} } = {}) {
  const drawn = [report.images ? imageOf(report, sample) : null, map ? mapOf(map, sample) : null].filter(Boolean);
  const pictures = drawn.length ? make("span", { class: "tile-pictures" }, drawn) : null;
  const text = make("span", { class: "tile-text" }, caption);
  return click
    ? make("button", { class: "tile", title: `sample ${sample}`, click }, pictures, text)
    : make("a", { class: "tile", title: `sample ${sample}`, href: sampleAddress(sample, query) }, pictures, text);
}

/** The samples in the order of `AnomalyReport.by_outlier_score`. */
export function byScore(report) {
  const score = (sample) => report.scores[sample] ?? Number.MAX_VALUE;
  return report.scores
    .map((_, sample) => sample)
    .sort((a, b) => score(b) - score(a) || report.votes[b] - report.votes[a] || a - b);
}

/** A sample's number, score, label and file name. */
export function sampleCaption(report, sample) {
  const names = [report.label(sample), report.name(sample)].filter((text) => text !== null);
  return [
    make("strong", {}, String(sample)),
    ` score ${scoreText(report.scores[sample])}`,
    names.map((text) => cutLine(text, "quiet tile-label")),
  ];
}

/** Rows of a name, a bar, its value and a reason, on a logarithmic scale; lines in the bars mark usual values. */
export function bars(rows) {
  const highest = Math.max(1e-9, ...rows.flatMap(({ value, usual }) => [value, usual]).filter(Number.isFinite));
  const width = (value) => `${100 * Math.min(1, Math.log1p(Math.max(0, value)) / Math.log1p(highest))}%`;
  return div(
    "bars",
    rows.map(({ name, value, usual, reason }) => [
      make("span", { class: "cut cut-left", title: name }, make("bdi", {}, name)),
      make(
        "span",
        { class: "bar" },
        make("i", { class: value > usual ? "odd" : "", style: { width: width(value) } }),
        make("i", { class: "usual", style: { left: width(usual) } }),
      ),
      make("span", { class: "bar-value" }, scoreText(value)),
      reason ? make("span", { class: "bar-reason quiet" }, reason) : null,
    ]),
  );
}

/** Buttons to the previous and next item of a list, and `step(by)` for keys; `about` describes the list. */
export function stepper(list, item, noun, go, about = "") {
  const at = list.indexOf(item);
  const step = (by) => list[at + by] !== undefined && go(list[at + by]);
  const button = (by, symbol, title) =>
    symbolButton(symbol, title, { class: "step", disabled: list[at + by] === undefined, click: () => step(by) });
  const element = div(
    "steps",
    button(-1, "←", `previous ${noun} (left arrow)`),
    quiet(`${number(at + 1)} of ${number(list.length)}${about}`),
    button(1, "→", `next ${noun} (right arrow)`),
  );
  return { element, step };
}

export const stepKeys = (step) => ({ ArrowLeft: () => step(-1), ArrowRight: () => step(1) });

/** The heading of a page, with its stepper. */
export const titleRow = (heading, steps) => div("title-row", heading, steps);

const reached = new Map(); // how many items of a list were shown

/**
 * The first items of a list, and a button for more; a text if the list is empty. `drawn` is called with the items that
 * are shown.
 */
export function pages(items, size, draw, className, emptyText, drawn = () => {}) {
  drawn([]);
  if (!items.length) return emptyState(emptyText);
  const key = [className, items.length, window.location.hash.split("?")[1]].join();
  const list = div(className);
  const more = make("button", { class: "more", click: () => add() });
  let shown = 0;
  const add = () => {
    list.append(...items.slice(shown, shown + size).map(draw));
    shown = Math.min(items.length, shown + size);
    more.hidden = shown === items.length;
    more.textContent = `Show more (${items.length - shown} left)`;
    reached.set(key, shown);
    drawn(items.slice(0, shown));
  };
  const before = reached.get(key) ?? 0;
  do add();
  while (shown < before);
  return make("div", {}, list, more);
}
