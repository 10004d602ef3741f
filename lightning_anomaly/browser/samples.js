// The samples of the probe, and one of them with the filters it is an outlier of.
import { choice, make } from "./dom.js";
import { CARDS } from "./filters.js";
import {
  address,
  byStanding,
  filterCard,
  imageOf,
  pages,
  sampleAddress,
  sampleCaption,
  sampleTile,
  stepper,
} from "./parts.js";
import { count, layerText, scoreText, votesText } from "./words.js";

const TILES = 96;

function chosenSamples(report, { show, sort, label }) {
  const orders = {
    number: (a, b) => a - b,
    votes: (a, b) => report.votes[b] - report.votes[a],
  };
  const found = byStanding(report).filter(
    (sample) => (show === "all" || report.votes[sample] > 0) && (!label || report.labels?.of[sample] === Number(label)),
  );
  return orders[sort] ? found.sort(orders[sort]) : found;
}

const usualOf = (report) => (report.scores ? { show: "all", sort: "score" } : { show: "outliers", sort: "votes" });
const SORTS = { score: "largest score", votes: "most votes", number: "number" };

export function samplesPage(report, query) {
  const change = (name) => (value) => {
    window.location.hash = address(["samples"], { ...query, [name]: value === usual[name] ? "" : value });
  };
  const usual = usualOf(report);
  const chosen = { ...usual, ...query };
  const found = chosenSamples(report, chosen);
  return [
    make("h1", {}, "Samples"),
    make(
      "div",
      { class: "choices" },
      choice(
        "Show",
        [
          ["outliers", "outliers"],
          ["all", "all samples"],
        ],
        chosen.show,
        change("show"),
      ),
      report.labels
        ? choice(
            "Label",
            [["", "any"], ...report.labels.names.map((name, place) => [String(place), name])],
            query.label ?? "",
            change("label"),
          )
        : null,
      choice(
        "Sort by",
        Object.entries(SORTS).filter(([order]) => report.scores || order !== "score"),
        chosen.sort,
        change("sort"),
      ),
      make("span", { class: "quiet", role: "status" }, count(found.length, "sample")),
    ),
    make(
      "p",
      { class: "quiet" },
      report.scores
        ? "A score is how far a sample is from the others in the layer where it is farthest; an ordinary one has less than about 5. "
        : null,
      "A vote is a filter that a sample is an outlier of.",
    ),
    found.length
      ? pages(
          found,
          TILES,
          (sample) => sampleTile(report, sample, sampleCaption(report, sample), { query: chosen }),
          "tiles",
        )
      : make("p", { class: "empty-state" }, "No sample is an outlier of any filter. Show all samples to look at them."),
  ];
}

/** One sample; with a `query`, the arrows lead through the samples that it chooses, in their order. */
export function samplePage(report, sample, query) {
  const filters = report.filtersOf(sample, "outliers");
  const apart = report.filtersOf(sample, "isolated");
  const layers = new Set(filters.map(({ layer }) => layer));
  const label = report.label(sample);
  const all = report.votes.map((_, place) => place);
  const chosen = query.sort ? chosenSamples(report, { ...usualOf(report), ...query }) : all;
  const list = chosen.includes(sample) ? chosen : all;
  const about = list === all ? "" : `, by ${SORTS[query.sort] ?? SORTS.score}`;
  const go = (next) => {
    window.location.hash = sampleAddress(next, list === all ? {} : query);
  };
  const { element, step } = stepper(list, sample, "sample", go, about);
  const content = [
    make("div", { class: "title-row" }, make("h1", {}, `Sample ${sample}`), element),
    make(
      "div",
      { class: "sample" },
      report.images ? make("div", { class: "big-image" }, imageOf(report, sample)) : null,
      make(
        "div",
        {},
        label === null ? null : make("p", {}, "Label ", make("strong", { class: "label" }, label)),
        make(
          "p",
          {},
          `It is ${votesText(report.votes[sample])}${filters.length ? ` in ${count(layers.size, "layer")}: ${[...layers].map((layer) => layerText(report.layers[layer].name)).join(", ")}` : ""}.`,
        ),
        report.scores
          ? make(
              "p",
              {},
              "Its outlier score is ",
              make("strong", {}, scoreText(report.scores[sample])),
              ", and an ordinary sample's less than about 5.",
            )
          : null,
        report.images
          ? null
          : make(
              "p",
              { class: "quiet" },
              "This file has no images: they are kept by analyze(..., keep_images=True), or given to save_html.",
            ),
      ),
    ),
  ];
  const section = (title, places) =>
    make(
      "section",
      {},
      make("h2", {}, title),
      pages(places, CARDS, (place) => filterCard(report, place, { pin: sample }, sample), "cards"),
    );
  if (apart.length) content.push(section("The filters that set it apart from all others", apart));
  const others = filters.filter((place) => !report.isolated(place).includes(sample));
  const title = apart.length ? "Other filters that it is an outlier of" : "The filters it is an outlier of";
  if (others.length) content.push(section(title, others));
  return { content, keys: { ArrowLeft: () => step(-1), ArrowRight: () => step(1) } };
}
