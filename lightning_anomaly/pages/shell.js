// Addresses, pages and keys, for all reports.

import { onThemeChange } from "./colors.js";
import { address, visit } from "./components.js";
import { emptyState, make, symbolButton, termList } from "./dom.js";

const main = document.getElementById("main");
let current = { keys: {} };
let turn = 0;
let followed = false; // whether a link led here, not the back button
const scrolled = new Map(); // scroll positions by address

function helpDialog({ keys, terms }) {
  const dialog = make(
    "dialog",
    { "aria-label": "Terms and keys", autofocus: true },
    make("h2", {}, "Terms"),
    termList("terms", terms),
    make("h2", {}, "Keys"),
    termList(
      "keys",
      keys.map(([key, text]) => [make("kbd", {}, key), text]),
    ),
    make("form", { method: "dialog" }, make("button", {}, "Close")),
  );
  document.body.append(dialog);
  return dialog;
}

function heading(report, sections, dialog) {
  document.getElementById("top").replaceChildren(
    make("a", { class: "brand cut", href: address([sections[0][0]]), title: report.title }, report.title),
    make(
      "nav",
      { "aria-label": "Pages" },
      sections.map(([page, text]) => make("a", { href: address([page]), "data-page": page }, text)),
    ),
    symbolButton("?", "Terms and keys (?)", { class: "help", click: () => dialog.showModal() }),
  );
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // of a truncated link
  }
}

const notFound = (sections) => ({
  content: [
    emptyState("This report has no such page."),
    make("p", {}, make("a", { href: address([sections[0][0]]) }, `To the ${sections[0][1].toLowerCase()}`)),
  ],
});

async function show(report, { sections, pageOf, shown }, redraw = true) {
  const thisTurn = ++turn;
  const [path, search = ""] = window.location.hash.replace(/^#\/?/, "").split("?");
  const [page, ...rest] = path.split("/").map(decoded);
  const query = Object.fromEntries(new URLSearchParams(search));
  const { pin = null, ...others } = query;
  const name = JSON.stringify([path, others]);
  if (!redraw && name === current.name && current.repin) {
    current.repin(pin); // keeps the plot and its zoom
    document.documentElement.dataset.shown = window.location.hash;
    return;
  }
  const next = (await pageOf(report, page || sections[0][0], rest, query)) ?? notFound(sections);
  if (thisTurn !== turn) return; // another page was requested meanwhile
  scrolled.set(current.place, window.scrollY);
  const place = `${path || sections[0][0]}?${search}`;
  const before = followed ? 0 : (scrolled.get(place) ?? 0);
  const kept = current.path === path ? window.scrollY : before;
  followed = false;
  const controls = () => [...main.querySelectorAll("select, .step, [type=search]")];
  const active = document.activeElement;
  const held = current.section === next.section ? controls().indexOf(active) : -1;
  const isFirst = current.name === undefined;
  current = { keys: {}, ...next, name, path, place };
  main.replaceChildren(...next.content.filter(Boolean));
  const control = controls()[held];
  const typing = active.type === "search" && control?.type === "search";
  if (typing) control.replaceWith(active); // with what was typed meanwhile
  if (!isFirst) (typing ? active : (control ?? main)).focus({ preventScroll: true });
  window.scrollTo(0, kept);
  document.title = [main.querySelector("h1")?.textContent, report.title].filter(Boolean).join(" · ");
  for (const link of document.querySelectorAll("[data-page]")) {
    if (link.dataset.page === next.section) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  shown?.(report);
  document.documentElement.dataset.shown = window.location.hash; // tests wait for it
}

async function start(given) {
  const report = await given.open();
  const browser = { sections: report.sections, terms: report.terms, ...given };
  const { sections } = browser;
  const dialog = helpDialog(browser);
  heading(report, sections, dialog);
  window.history.scrollRestoration = "manual";
  window.addEventListener("hashchange", () => show(report, browser, false));
  onThemeChange(() => show(report, browser));
  document.addEventListener("click", (event) => {
    // In a notebook's frame, which has no address, a link would open the notebook.
    const link = event.target.closest("a[href^='#']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    followed = window.location.hash !== link.getAttribute("href");
    visit(link.getAttribute("href"));
  });
  window.addEventListener("keydown", (event) => {
    const writing = event.target.matches?.("select, textarea, input:not([type='checkbox'])");
    if (writing || event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const section = sections[Number(event.key) - 1];
    const action =
      current.keys[event.key] ??
      { "?": () => dialog.showModal(), "/": () => main.querySelector("[type=search]")?.focus() }[event.key] ??
      (section ? () => visit(address([section[0]])) : null);
    if (!action) return;
    event.preventDefault();
    action();
  });
  await show(report, browser);
}

/**
 * Shows the page of the current address, and follows it. A browser has
 * - `open()`, which returns the report;
 * - `sections`, pairs of a page and its name, the start page first, unless the report has them;
 * - `terms` and `keys`, pairs of a term or key and its description; the report may have the terms;
 * - `pageOf(report, page, rest, query)`, which returns a page or null: `content`, `section`, and optionally `keys` and
 *   `repin(sample)`;
 * - optionally `shown(report)`, which is called when a page is shown.
 */
export function run(browser) {
  start(browser).catch((error) => {
    main.replaceChildren(
      emptyState(`This file could not be unpacked: ${error.message}. It needs a browser of 2023 or later.`),
    );
    throw error;
  });
}
