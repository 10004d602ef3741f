// The page of a run: what happened in sentences and curves, lists of samples to tick, and the filters.
import { curves } from "./curves.js";
import { Report } from "./data.js";
import { make, prose, termList } from "./dom.js";
import { GALLERY_KEYS, Gallery, galleryPage, tickBox, tickedBar, verdictKeys } from "./gallery.js";
import { overview } from "./overview.js";
import { REPORT_KEYS, REPORT_TERMS, reportPage } from "./report_pages.js";
import { run } from "./shell.js";
import { openIndex } from "./unpack.js";

class Run extends Gallery {
  static async open() {
    const [index, sprite] = await openIndex();
    return Object.assign(new Run(index), { report: new Report(index, sprite) });
  }

  get sections() {
    const [ticked, ...lists] = super.sections.reverse();
    const filters = this.report.layers.length ? [["overview", "Filters"]] : [];
    return [["run", "Run"], ...lists.reverse(), ...filters, ticked];
  }

  get terms() {
    return [...super.terms, ...REPORT_TERMS];
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

/** A sample as in its report, with a box to tick it. */
function tickable(gallery, page) {
  const row = gallery.images.get(`sample ${page.sample}`);
  if (!row) return page;
  const keys = verdictKeys(gallery, (verdict) => verdict !== "move" && gallery.toggle([row], verdict));
  const [heading, ...others] = page.content;
  const content = [heading, tickBox(gallery, [row], "Tick this sample"), ...others, tickedBar(gallery)];
  return { ...page, content, keys: { ...page.keys, ...keys } };
}

run({
  open: Run.open,
  keys: [...GALLERY_KEYS.slice(0, -2), ...REPORT_KEYS.slice(1, 4), ...GALLERY_KEYS.slice(-2)],
  async pageOf(gallery, page, rest, query) {
    if (page === "run") return storyPage(gallery);
    if (page === "overview") return { content: overview(gallery.report, false), section: page };
    const found = await reportPage(gallery.report, page, rest, query);
    if (found?.section === "samples") return { ...tickable(gallery, found), section: "strangest samples" };
    return found ? { ...found, section: "overview" } : galleryPage(gallery, page, rest, query);
  },
  shown: (gallery) => gallery.update(),
});
