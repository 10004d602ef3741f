// The samples of the probe, and one sample: its score and the filters that react to it.

import {
  address,
  bars,
  byScore,
  filterCard,
  imageOf,
  pages,
  sampleAddress,
  sampleCaption,
  sampleTile,
  stepKeys,
  stepper,
  titleRow,
  visit,
} from "./components.js";
import { exportButton } from "./csv.js";
import { choice, div, finder, headingOf, make, quiet, statusLine } from "./dom.js";
import { count, isMeant, number, ordinaryText, percent, scoreText } from "./wording.js";

const TILES = 96;
const SORTS = { score: "largest score", filters: "most filters", number: "number" };

/** The samples that an address asks for, in the order it asks for. */
function chosenSamples(report, { sort, label, find = "" }) {
  const samples = byScore(report).filter(
    (sample) =>
      (!label || report.labels?.of[sample] === Number(label)) &&
      (!find ||
        [report.label(sample), report.name(sample)].some((name) =>
          isMeant(sample, name, find.replace(/^sample\s+/i, "")),
        )),
  );
  const orders = { number: (a, b) => a - b, filters: (a, b) => report.singled[b] - report.singled[a] };
  return orders[sort] ? samples.sort(orders[sort]) : samples;
}

export function samplesPage(report, query) {
  const change = (name) => (value) => visit(address(["samples"], { ...query, [name]: value === "score" ? "" : value }));
  const samples = chosenSamples(report, query);
  const columns = {
    sample: (sample) => sample,
    score: (sample) => report.scores[sample] ?? "inf",
    ...(report.names ? { name: (sample) => report.name(sample) } : {}),
    ...(report.labels ? { label: (sample) => report.label(sample) } : {}),
  };
  return [
    make("h1", {}, "Samples"),
    div(
      "choices",
      report.labels
        ? choice(
            "Label",
            [["", "any"], ...report.labels.names.map((name, place) => [String(place), name])],
            query.label ?? "",
            change("label"),
          )
        : null,
      choice("Sort by", Object.entries(SORTS), query.sort ?? "score", change("sort")),
      finder(report.labels || report.names ? "number or name" : "number", query.find ?? "", change("find")),
      samples.length ? exportButton("samples.csv", columns, samples) : null,
      statusLine(count(samples.length, "sample")),
    ),
    make("p", { class: "quiet" }, `The larger its score, the less a sample is like the others: ${ordinary(report)}.`),
    pages(
      samples,
      TILES,
      (sample) => sampleTile(report, sample, sampleCaption(report, sample), { query: { sort: "score", ...query } }),
      "tiles",
      "No sample matches. Choose another label, or find another name.",
    ),
  ];
}

const ordinary = (report) => ordinaryText(report, "samples");

/** One sample. Arrows lead through the samples that the `query` asks for, by default all. */
export function samplePage(report, sample, query) {
  const label = report.label(sample);
  const all = report.scores.map((_, place) => place);
  const chosen = query.sort ? chosenSamples(report, query) : all;
  const list = chosen.includes(sample) ? chosen : all;
  const about = list === all ? "" : `, by ${SORTS[query.sort] ?? SORTS.score}`;
  const go = (next) => visit(sampleAddress(next, list === all ? {} : query));
  const { element, step } = stepper(list, sample, "sample", go, about);
  const [scores, reactions] = [report.scoresOf(sample), report.reactionsTo(sample)];
  const content = [
    titleRow(make("h1", {}, `Sample ${sample}`), element),
    div(
      "sample",
      report.images ? div("big-image", imageOf(report, sample)) : null,
      make(
        "div",
        {},
        label === null ? null : make("p", {}, "Label ", make("strong", { class: "label" }, label)),
        report.names ? make("p", { class: "quiet" }, report.name(sample)) : null,
        make(
          "p",
          { class: "score" },
          "Score ",
          make("strong", {}, scoreText(report.scores[sample])),
          quiet(` ${byScore(report).indexOf(sample) + 1} of ${number(report.samples)}`),
        ),
        bars(
          scores.map(({ view, score, ordinary: usual }) => ({
            name: view,
            value: score,
            usual,
            reason: report.reasons[sample][view],
          })),
        ),
        make(
          "p",
          { class: "quiet" },
          `A line marks the value that 95% of the samples stay below; ${ordinary(report)}.`,
        ),
        report.images
          ? null
          : make(
              "p",
              { class: "quiet" },
              "This file has no images. analyze(..., keep_images=True) keeps them, and save_html takes them.",
            ),
      ),
    ),
    reactionsSection(report, sample, reactions),
    make(
      "details",
      {},
      make("summary", {}, "Details"),
      make("p", {}, `It is an outlier of ${count(report.votes[sample], "filter")} (votes).`),
      make("p", {}, `It is isolated by ${count(report.isolatedBy(sample), "filter")}.`),
      make("p", {}, `A share of ${percent(rankShare(report, sample))} of the samples has a score as large.`),
    ),
  ];
  return { content, keys: stepKeys(step), sample };
}

/** The filters that react to a sample: those that isolate it, then those that have it in a rare cluster. */
function reactionsSection(report, sample, reactions) {
  if (!reactions.length)
    return make("p", { class: "quiet" }, "No filter reacts: none isolates this sample or has it in a rare cluster.");
  const about = "distance of the sample from a filter's mean, in standard deviations; filters that isolate it first";
  const cards = div(
    "cards",
    reactions.map(({ place, distance }) =>
      filterCard(report, place, { query: { pin: sample }, ringed: [sample], mapped: sample, note: number(distance) }),
    ),
  );
  return make("section", {}, headingOf("Filters that react", about), cards);
}

/** The share of the samples whose score is at least as large. */
function rankShare(report, sample) {
  const score = (other) => report.scores[other] ?? Infinity;
  return report.scores.filter((_, other) => score(other) >= score(sample)).length / report.samples;
}
