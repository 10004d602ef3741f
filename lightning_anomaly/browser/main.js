// From the address to a page, and the keys.
import { Report } from "./data.js";
import { make } from "./dom.js";
import { onThemeChange } from "./draw.js";
import { filterPage } from "./filter.js";
import { filtersPage } from "./filters.js";
import { overview } from "./overview.js";
import { address } from "./parts.js";
import { samplePage, samplesPage } from "./samples.js";

const PAGES = [
  ["overview", "Overview"],
  ["filters", "Filters"],
  ["samples", "Samples"],
];
const HELP = [
  ["←  →", "previous, next filter or sample"],
  ["o  O", "pin the next, the previous outlier or isolated sample of a filter"],
  [".  ,", "pin the next, the previous point, from left to right"],
  ["+  −  0", "zoom in, zoom out, show all points"],
  ["1  2  3", "overview, filters, samples"],
  ["Esc", "unpin; close this"],
  ["?", "these keys"],
];

const main = document.getElementById("main");
let current = { keys: {} };
let turn = 0;

function helpDialog() {
  const rows = HELP.map(([key, text]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, text)]);
  const dialog = make(
    "dialog",
    { "aria-label": "Keys" },
    make("h2", {}, "Keys"),
    make("dl", { class: "keys" }, rows.flat()),
    make("form", { method: "dialog" }, make("button", { autofocus: true }, "Close")),
  );
  document.body.append(dialog);
  return dialog;
}

function heading(report, dialog) {
  document.getElementById("top").replaceChildren(
    make("a", { class: "brand cut", href: address(["overview"]), title: report.title }, report.title),
    make(
      "nav",
      { "aria-label": "Pages" },
      PAGES.map(([page, text]) => make("a", { href: address([page]), "data-page": page }, text)),
    ),
    make(
      "button",
      { type: "button", class: "help", title: "Keys (?)", "aria-label": "Keys", click: () => dialog.showModal() },
      "?",
    ),
  );
}

/** The page that the address names, or the overview. */
async function pageOf(report, page, rest, query) {
  if (page === "filter") {
    const layer = report.layers.findIndex(({ name }) => name === rest[0]);
    const filter = Number(rest[1]);
    if (layer >= 0 && report.layers[layer].verdicts[filter] !== undefined)
      return filterPage(report, { layer, filter }, query);
  }
  if (page === "sample" && Number(rest[0]) >= 0 && Number(rest[0]) < report.samples)
    return samplePage(report, Number(rest[0]));
  if (page === "filters") return { content: filtersPage(report, query) };
  if (page === "samples") return { content: samplesPage(report, query) };
  if (page === "" || page === "overview") return { content: overview(report) };
  return {
    content: [
      make("p", { class: "empty-state" }, "This report has nothing of that name. "),
      make("p", {}, make("a", { href: address(["overview"]) }, "To the overview")),
    ],
  };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a link that was cut
  }
}

async function show(report, anew = true) {
  const mine = ++turn;
  const [path, search = ""] = window.location.hash.replace(/^#\/?/, "").split("?");
  const [page, ...rest] = path.split("/").map(decoded);
  const query = Object.fromEntries(new URLSearchParams(search));
  const { pin = null, ...others } = query;
  const name = JSON.stringify([path, others]);
  if (!anew && name === current.name && current.repin) {
    current.repin(pin); // the plot stays as it is, zoomed maybe
    document.documentElement.dataset.shown = window.location.hash;
    return;
  }
  const next = await pageOf(report, page, rest, query);
  if (mine !== turn) return; // another page was asked for meanwhile
  const kept = current.path === path ? window.scrollY : 0;
  current = { keys: {}, ...next, name, path };
  main.replaceChildren(...next.content.filter(Boolean));
  window.scrollTo(0, kept);
  const section = { filter: "filters", sample: "samples", "": "overview" }[page] ?? page;
  for (const link of document.querySelectorAll("[data-page]")) {
    if (link.dataset.page === section) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.documentElement.dataset.shown = window.location.hash; // for whoever waits for it
}

async function start() {
  const report = await Report.open();
  const dialog = helpDialog();
  heading(report, dialog);
  window.addEventListener("hashchange", () => show(report, false));
  onThemeChange(() => show(report));
  document.addEventListener("click", (event) => {
    // In a notebook's frame, which has no address, a link would lead to the notebook.
    const link = event.target.closest("a[href^='#']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    window.location.hash = link.getAttribute("href");
  });
  window.addEventListener("keydown", (event) => {
    const writing = event.target.matches?.("select, input, textarea");
    if (writing || event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const place = ["1", "2", "3"].indexOf(event.key);
    const action =
      current.keys[event.key] ??
      (event.key === "?"
        ? () => dialog.showModal()
        : place >= 0
          ? () => {
              window.location.hash = address([PAGES[place][0]]);
            }
          : null);
    if (!action) return;
    event.preventDefault();
    action();
  });
  await show(report);
}

start().catch((error) => {
  main.replaceChildren(
    make(
      "p",
      { class: "empty-state" },
      `This file could not be unpacked: ${error.message}. A browser of 2023 or later is needed.`,
    ),
  );
  throw error;
});
