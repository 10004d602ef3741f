// A sample of the probe: its score and the filters that react to it.

import { bars, byScore, filterCard, imageOf, sampleAddress, stepKeys, stepper, titleRow, visit } from "./components.js";
import { div, folded, headingOf, make, quiet, remark } from "./dom.js";
import { count, number, ordinaryText, scoreText } from "./wording.js";

/** One sample. Arrows lead through the samples of a list, or through all if it is in none. */
export function samplePage(report, sample, query, listed) {
  const label = report.label(sample);
  const list = listed.includes(sample) ? listed : report.scores.map((_, place) => place);
  const { element, step } = stepper(list, sample, "sample", (next) => visit(sampleAddress(next, query)));
  const [scores, reactions] = [report.scoresOf(sample), report.reactionsTo(sample)];
  const rank = quiet(` ${byScore(report).indexOf(sample) + 1} of ${number(report.samples)}`);
  const content = [
    titleRow(make("h1", {}, `Sample ${sample}`), element),
    div(
      "sample",
      report.images ? div("big-image", imageOf(report, sample)) : null,
      make(
        "div",
        {},
        label === null ? null : make("p", {}, "Label ", make("strong", { class: "label" }, label)),
        report.names ? remark(report.name(sample)) : null,
        make("p", { class: "score" }, "Score ", make("strong", {}, scoreText(report.scores[sample])), rank),
        bars(
          scores.map(({ view, score, ordinary: usual }) => ({
            name: view,
            value: score,
            usual,
            reason: report.reasons[sample][view],
          })),
        ),
        remark(`A line marks the value that 95% of the samples stay below; ${ordinaryText(report, "samples")}.`),
        report.images
          ? null
          : remark("This file has no images. analyze(..., keep_images=True) keeps them, and save_html takes them."),
      ),
    ),
    reactionsSection(report, sample, reactions),
    folded("Details", [
      remark(`It is an outlier of ${count(report.votes[sample], "filter")} (votes).`),
      remark(`It is isolated by ${count(report.isolatedBy(sample), "filter")}.`),
    ]),
  ];
  return { content, keys: stepKeys(step), sample };
}

/** The filters that react to a sample: those that isolate it, then those that have it in a rare cluster. */
function reactionsSection(report, sample, reactions) {
  if (!reactions.length) return remark("No filter reacts: none isolates this sample or has it in a rare cluster.");
  const about = "distance of the sample from a filter's mean, in standard deviations; filters that isolate it first";
  const cards = div(
    "cards",
    reactions.map(({ place, distance }) =>
      filterCard(report, place, { query: { pin: sample }, ringed: [sample], mapped: sample, note: number(distance) }),
    ),
  );
  return make("section", {}, headingOf("Filters that react", about), cards);
}
