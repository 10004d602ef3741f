// A sample of the probe: its score and the filters that react to it.

import { bars, byScore, filterCard, imageOf, sampleAddress, stepKeys, stepper, titleRow, visit } from "./components.js";
import { div, headingOf, make, quiet } from "./dom.js";
import { count, number, ordinaryText, percent, scoreText } from "./wording.js";

/** One sample. Arrows lead through the samples of a list, or through all if it is in none. */
export function samplePage(report, sample, query, listed) {
  const label = report.label(sample);
  const list = listed.includes(sample) ? listed : report.scores.map((_, place) => place);
  const { element, step } = stepper(list, sample, "sample", (next) => visit(sampleAddress(next, query)));
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
          `A line marks the value that 95% of the samples stay below; ${ordinaryText(report, "samples")}.`,
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
