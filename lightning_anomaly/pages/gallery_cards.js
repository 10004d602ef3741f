// One image of a list: its picture, its verdict and why it is there.

import { address, filterAddress, imageOf, sampleAddress } from "./components.js";
import { cutLine, div, make, quiet } from "./dom.js";
import { layerText, scoreText } from "./wording.js";

const RESPONDING = 3; // filters on a card
const PIXELATED = 64; // images with shorter sides are enlarged pixel by pixel

/** The address of an image; that of a sample has its scores and filters too. */
export const rowAddress = (tab, row, query) =>
  row.sample === null
    ? address([tab.name, tab.rows.indexOf(row)], query)
    : sampleAddress(row.sample, { list: tab.name });

/** An image in its own shape: the first of the sources that can be shown. */
export function picture(row, sources) {
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

/** A box that gives images a verdict, or takes it back. */
export function tickBox(gallery, rows, text, verdict = "ticked") {
  const box = make("input", {
    type: "checkbox",
    checked: gallery.verdicts.get(rows[0].key) === verdict,
    "data-key": rows[0].key,
    "data-verdict": verdict,
    change: () => gallery.toggle(rows, verdict),
  });
  return make("label", { class: "tick" }, box, text);
}

/** Boxes for the other verdicts. */
export const otherBoxes = (gallery, rows) =>
  div(
    "verdicts",
    rows[0].move_to ? tickBox(gallery, rows, `move to ${rows[0].looks_like}`, "move") : null,
    tickBox(gallery, rows, "right", "right"),
  );

/** The class of an image, and the one that it looks like. */
const classes = (row) =>
  row.class || row.looks_like
    ? make("span", {}, row.class, row.looks_like && row.looks_like !== row.class ? ` → ${row.looks_like}?` : null)
    : null;

/** The images of its class, and of the class that it looks like, that are most like an image. */
export const nearest = (gallery, row) =>
  row.nearest.map(([name, rows]) => {
    const links = rows.map((other) => {
      const shown = picture(other, [gallery.pictures[other.picture], other.link]);
      return make("a", { href: other.link, target: "_blank", title: other.name }, shown);
    });
    return [quiet(`nearest in ${name}`), div("nearest", links)];
  });

/** An image, or the first of several copies. */
export function card(gallery, tab, rows, query) {
  const [row] = rows;
  const small = gallery.pictures[row.picture];
  const drawn = row.sample !== null && gallery.report.images;
  const shown = drawn ? imageOf(gallery.report, row.sample, row.name) : picture(row, [small, row.link]);
  const about = row.score === null ? "" : `score ${scoreText(row.score)}`;
  const copies = rows.slice(1);
  return div(
    "card",
    make("a", { class: "frame", href: rowAddress(tab, row, query), title: row.name }, shown),
    tickBox(gallery, [row], about ? make("strong", {}, about) : cutLine(row.name)),
    otherBoxes(gallery, [row]),
    about ? cutLine(row.name) : null,
    copies.map((copy) => cutLine(copy.name)),
    copies.length ? tickBox(gallery, [...copies, row], `all ${rows.length} copies`) : null,
    classes(row),
    row.reason ? quiet(row.reason) : null,
    row.note ? quiet(row.note) : null,
    tab.compares ? nearest(gallery, row) : null,
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
