// From the address to a page, and the keys: what the browsers of all reports have in common.

import { onThemeChange } from "./colours.js";
import { address } from "./components.js";
import { emptyState, make, termList } from "./dom.js";

const main = document.getElementById("main");
let current = { keys: {} };
let turn = 0;
let followed = false; // a link, and not back
const scrolled = new Map(); // how far a page was, by its address

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
    make(
      "button",
      {
        type: "button",
        class: "help",
        title: "Terms and keys (?)",
        "aria-label": "Terms and keys",
        click: () => dialog.showModal(),
      },
      "?",
    ),
  );
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a link that was cut
  }
}

const nothing = (sections) => ({
  content: [
    emptyState("This report has nothing of that name. "),
    make("p", {}, make("a", { href: address([sections[0][0]]) }, `To the ${sections[0][1].toLowerCase()}`)),
  ],
});

async function show(report, { sections, pageOf }, anew = true) {
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
  const next = (await pageOf(report, page || sections[0][0], rest, query)) ?? nothing(sections);
  if (mine !== turn) return; // another page was asked for meanwhile
  scrolled.set(current.place, window.scrollY);
  const place = `${path || sections[0][0]}?${search}`;
  const before = followed ? 0 : (scrolled.get(place) ?? 0);
  const kept = current.path === path ? window.scrollY : before;
  followed = false;
  const controls = () => [...main.querySelectorAll("select, .step, [type=search]")];
  const held = current.section === next.section ? controls().indexOf(document.activeElement) : -1;
  const isFirst = current.name === undefined;
  current = { keys: {}, ...next, name, path, place };
  main.replaceChildren(...next.content.filter(Boolean));
  if (!isFirst) (controls()[held] ?? main).focus({ preventScroll: true });
  window.scrollTo(0, kept);
  document.title = [main.querySelector("h1")?.textContent, report.title].filter(Boolean).join(" · ");
  for (const link of document.querySelectorAll("[data-page]")) {
    if (link.dataset.page === next.section) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.documentElement.dataset.shown = window.location.hash; // for whoever waits for it
}

async function start(browser) {
  const { open, sections } = browser;
  const report = await open();
  const dialog = helpDialog(browser);
  heading(report, sections, dialog);
  window.history.scrollRestoration = "manual";
  window.addEventListener("hashchange", () => show(report, browser, false));
  onThemeChange(() => show(report, browser));
  document.addEventListener("click", (event) => {
    // In a notebook's frame, which has no address, a link would lead to the notebook.
    const link = event.target.closest("a[href^='#']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    followed = window.location.hash !== link.getAttribute("href");
    window.location.hash = link.getAttribute("href");
  });
  window.addEventListener("keydown", (event) => {
    const writing = event.target.matches?.("select, textarea, input:not([type='checkbox'])");
    if (writing || event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const section = sections[Number(event.key) - 1];
    const action =
      current.keys[event.key] ??
      { "?": () => dialog.showModal(), "/": () => main.querySelector("[type=search]")?.focus() }[event.key] ??
      (section
        ? () => {
            window.location.hash = address([section[0]]);
          }
        : null);
    if (!action) return;
    event.preventDefault();
    action();
  });
  await show(report, browser);
}

/**
 * Shows what the address names, always. A browser has `open()`, which gives the report; `sections`, pairs of a page and
 * its name, the first of which is shown first; `terms` and `keys`, pairs of one and what it means or does; and `pageOf(report, page, rest,
 * query)`, which gives a page or null: its `content`, its `section`, and maybe `keys` and `repin(sample)`.
 */
export function run(browser) {
  start(browser).catch((error) => {
    main.replaceChildren(
      emptyState(`This file could not be unpacked: ${error.message}. A browser of 2023 or later is needed.`),
    );
    throw error;
  });
}
