// The samples of the probe, and one of them with the filters it is an outlier of.
import { choice, make } from "./dom.js";
import { CARDS } from "./filters.js";
import { address, filterCard, imageOf, pages, sampleAddress, sampleTile } from "./parts.js";
import { count, layerText, number, votesText } from "./words.js";

const TILES = 96;

function chosenSamples(report, { show = "outliers", sort = "votes", label }) {
  const found = report.votes
    .map((votes, sample) => ({ votes, sample }))
    .filter(
      ({ votes, sample }) => (show === "all" || votes > 0) && (!label || report.labels?.of[sample] === Number(label)),
    );
  return sort === "votes" ? found.sort((a, b) => b.votes - a.votes || a.sample - b.sample) : found;
}

export function samplesPage(report, query) {
  const change = (name, usual) => (value) => {
    window.location.hash = address(["samples"], { ...query, [name]: value === usual ? "" : value });
  };
  const found = chosenSamples(report, query);
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
        query.show ?? "outliers",
        change("show", "outliers"),
      ),
      report.labels
        ? choice(
            "Label",
            [["", "any"], ...report.labels.names.map((name, place) => [String(place), name])],
            query.label ?? "",
            change("label", ""),
          )
        : null,
      choice(
        "Sort by",
        [
          ["votes", "most votes"],
          ["number", "number"],
        ],
        query.sort ?? "votes",
        change("sort", "votes"),
      ),
      make("span", { class: "quiet", role: "status" }, count(found.length, "sample")),
    ),
    make("p", { class: "quiet" }, "A vote is a filter that a sample is an outlier of."),
    found.length
      ? pages(
          found,
          TILES,
          ({ votes, sample }) =>
            sampleTile(report, sample, [make("strong", {}, String(sample)), ` ${count(votes, "vote")}`]),
          "tiles",
        )
      : make("p", { class: "empty-state" }, "No sample is an outlier of any filter. Show all samples to look at them."),
  ];
}

export function samplePage(report, sample) {
  const filters = report.filtersOf(sample);
  const layers = new Set(filters.map(({ layer }) => layer));
  const label = report.label(sample);
  const step = (by) => {
    const next = sample + by;
    if (next >= 0 && next < report.samples) window.location.hash = sampleAddress(next);
  };
  const stepButton = (by, text, title) =>
    make(
      "button",
      {
        type: "button",
        class: "step",
        title,
        "aria-label": title,
        disabled: sample + by < 0 || sample + by >= report.samples,
        click: () => step(by),
      },
      text,
    );
  const content = [
    make(
      "div",
      { class: "title-row" },
      make("h1", {}, `Sample ${sample}`),
      make(
        "div",
        { class: "steps" },
        stepButton(-1, "←", "previous sample (left arrow)"),
        make("span", { class: "quiet" }, `${number(sample + 1)} of ${number(report.samples)}`),
        stepButton(1, "→", "next sample (right arrow)"),
      ),
    ),
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
  if (filters.length) {
    content.push(
      make("h2", {}, "The filters it is an outlier of"),
      pages(filters, CARDS, (place) => filterCard(report, place, { pin: sample }, sample), "cards"),
    );
  }
  return { content, keys: { ArrowLeft: () => step(-1), ArrowRight: () => step(1) } };
}
