// The pages of an `AnomalyReport`.
import { filtersPage } from "./filter_list.js";
import { filterPage } from "./filter_page.js";
import { overview } from "./overview.js";
import { samplePage, samplesPage } from "./samples.js";
import { SCORE_TERMS, VERDICTS } from "./wording.js";

/** The page of an address, or null. */
export async function reportPage(report, page, rest, query) {
  if (page === "filter") {
    const layer = report.layers.findIndex(({ name }) => name === rest[0]);
    const filter = Number(rest[1]);
    if (layer >= 0 && report.layers[layer].verdicts[filter] !== undefined)
      return { ...(await filterPage(report, { layer, filter }, query)), section: "filters" };
  }
  if (page === "sample" && report.hasSample(Number(rest[0])))
    return { ...samplePage(report, Number(rest[0]), query), section: "samples" };
  if (page === "filters") return { content: filtersPage(report, query), section: page };
  if (page === "samples") return { content: samplesPage(report, query), section: page };
  if (page === "overview") return { content: overview(report), section: page };
  return null;
}

export const REPORT_TERMS = [
  ...SCORE_TERMS,
  ["Probe", "The samples that were run through the network."],
  ["Filter", "An output channel of a convolution. Its feature maps of all samples become one point each."],
  ["Anomaly", VERDICTS.anomaly],
  ["Outlier", "A sample in a rare cluster of an anomaly filter. Each such filter is a vote."],
  ["Isolated", VERDICTS.isolated],
  ["Dead", VERDICTS.dead],
  ["Sparsity", "The share of map values that are zero or less."],
];

export const REPORT_KEYS = [
  ["←  →", "previous, next filter or sample"],
  ["o  O", "pin the next, the previous outlier or isolated sample of a filter"],
  [".  ,", "pin the next, the previous point, from left to right"],
  ["+  −  0", "zoom in, zoom out, show all points; or Ctrl and the wheel"],
  ["/", "find a filter or a sample in a list"],
  ["1  2  3", "overview, filters, samples"],
  ["Esc", "unpin; close this"],
  ["?", "these terms and keys"],
];
