// The page of a run or of a report: what happened in sentences and curves, lists of samples to tick, and the filters.
import { curves } from "./curves.js";
import { Report } from "./data.js";
import { make, prose, termList } from "./dom.js";
import { filtersPage } from "./filter_list.js";
import { filterPage } from "./filter_page.js";
import { GALLERY_KEYS, Gallery, galleryPage, tickedBar, verdictKeys } from "./gallery.js";
import { tickBox } from "./gallery_cards.js";
import { overview } from "./overview.js";
import { samplePage } from "./samples.js";
import { run } from "./shell.js";
import { openIndex } from "./unpack.js";
import { SCORE_TERMS, VERDICTS } from "./wording.js";

const TERMS = [
  ...SCORE_TERMS,
  ["Probe", "The samples that were run through the network."],
  ["Filter", "An output channel of a convolution. Its feature maps of all samples become one point each."],
  ["Anomaly", VERDICTS.anomaly],
  ["Outlier", "A sample in a rare cluster of an anomaly filter. Each such filter is a vote."],
  ["Isolated", VERDICTS.isolated],
  ["Dead", VERDICTS.dead],
  ["Sparsity", "The share of map values that are zero or less."],
];
const FILTER_KEYS = [
  ["o  O", "pin the next, the previous outlier or isolated sample of a filter"],
  [".  ,", "pin the next, the previous point, from left to right"],
  ["+  −  0", "zoom in, zoom out, show all points; or Ctrl and the wheel"],
];

class Run extends Gallery {
  static async open() {
    const [index, sprite] = await openIndex();
    return Object.assign(new Run(index), { report: new Report(index, sprite) });
  }

  get sections() {
    const [ticked, ...lists] = super.sections.reverse();
    lists.reverse();
    if (!this.sentences) return [["overview", "Overview"], ["filters", "Filters"], ...lists, ticked];
    return [["run", "Run"], ...lists, ...(this.report.layers.length ? [["overview", "Filters"]] : []), ticked];
  }

  get terms() {
    return [...super.terms, ...TERMS];
  }
}

function storyPage({ title, actions, sentences, curves: drawn }) {
  const linked = (text, href, link) => [prose(text), href ? make("a", { href }, ` ${link}`) : null];
  const told = sentences.map(([about, ...parts]) => [about, linked(...parts)]);
  const todo = actions.map((parts) => make("li", {}, linked(...parts)));
  const { element = null, step = () => {} } = drawn.panels.length ? curves(drawn) : {};
  const content = [
    make("h1", {}, title),
    sentences.length > 1 ? make("ol", { class: "todo panel" }, todo.length ? todo : "Nothing to do.") : null,
    termList("story", told),
    element,
  ];
  return { content, section: "run", keys: { ArrowLeft: () => step(-1), ArrowRight: () => step(1) } };
}

/** A filter or the list of filters, or null. */
async function filtersOf(report, page, rest, query) {
  const layer = report.layers.findIndex(({ name }) => name === rest[0]);
  const filter = Number(rest[1]);
  if (page === "filter" && report.layers[layer]?.verdicts[filter] !== undefined)
    return filterPage(report, { layer, filter }, query);
  return page === "filters" ? { content: filtersPage(report, query) } : null;
}

/** A sample, with a box to tick it; arrows lead through the list from which it was opened. */
function tickable(gallery, sample, query) {
  const samplesOf = (tab) => tab.rows.map((row) => row.sample);
  const tab = gallery.tab(query.list) ?? gallery.tabs.find((other) => samplesOf(other).includes(sample));
  const page = { ...samplePage(gallery.report, sample, query, tab ? samplesOf(tab) : []), section: tab?.name };
  const row = gallery.images.get(`sample ${sample}`);
  if (!row) return page;
  const keys = verdictKeys(gallery, (verdict) => verdict !== "move" && gallery.toggle([row], verdict));
  const [heading, ...others] = page.content;
  const content = [heading, tickBox(gallery, [row], "Tick this sample"), ...others, tickedBar(gallery)];
  return { ...page, content, keys: { ...page.keys, ...keys } };
}

run({
  open: Run.open,
  keys: [...GALLERY_KEYS.slice(0, -2), ...FILTER_KEYS, ...GALLERY_KEYS.slice(-2)],
  async pageOf(gallery, page, rest, query) {
    const { report, sentences } = gallery;
    if (page === "run" && sentences) return storyPage(gallery);
    if (page === "overview") return { content: overview(report), section: page };
    if (page === "sample" && report.hasSample(Number(rest[0]))) return tickable(gallery, Number(rest[0]), query);
    const found = await filtersOf(report, page, rest, query);
    return found ? { ...found, section: sentences ? "overview" : "filters" } : galleryPage(gallery, page, rest, query);
  },
  shown: (gallery) => gallery.update(),
});
