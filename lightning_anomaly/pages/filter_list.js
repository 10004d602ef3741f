// All filters as small pictures, filtered by layer and verdict, in several orders.

import { address, filterCard, pages, visit } from "./components.js";
import { exportButton } from "./csv.js";
import { choice, div, finder, make, statusLine } from "./dom.js";
import { contains, count, kindsOf, layerText } from "./wording.js";

export const CARDS = 24; // at once

const by = (value) => (report) => (a, b) => value(report, a) - value(report, b);
const column = (name, sign) =>
  by((report, { layer, filter }) => sign * (report.layers[layer][name][filter] ?? -sign * Number.MAX_VALUE));
const ORDERS = {
  network: ["network order", null],
  clearest: [
    "clearest anomalies",
    by((report, { layer, filter }) => report.layers[layer].clearest[filter] ?? Number.MAX_VALUE),
  ],
  outliers: ["most outliers", by((report, place) => -report.outliers(place).length)],
  apart: ["clusters furthest apart (CH)", column("calinski_harabasz", -1)],
  sparse: ["most sparse", column("sparsity", -1)],
  explained: ["best explained", column("explained", -1)],
};

/** Whether a filter has a verdict, with or without isolated samples; `=KIND` asks for the exact kind. */
function hasVerdict(report, place, verdict) {
  if (verdict.startsWith("=")) return report.kind(place) === verdict.slice(1);
  return verdict === "isolated" ? report.isolated(place).length > 0 : report.verdict(place) === verdict;
}

const verdictText = (verdict) =>
  verdict.startsWith("=") && !verdict.includes(" and ") ? `${verdict.slice(1)} alone` : verdict.replace("=", "");

/** Whether a search finds a filter: numbers are its number, words are parts of its layer's name. */
const isNamed = (report, place, find) =>
  find
    .split(/[\s/]+/)
    .filter((word) => word && !/^(filter|layer)$/i.test(word))
    .every((word) =>
      /^\d+$/.test(word) ? place.filter === Number(word) : contains(report.layers[place.layer].name, word),
    );

/** The filters that an address asks for, in the order it asks for. */
export function chosenFilters(report, { layer, verdict, sort, agree, find = "" }) {
  const group = agree && new Set(report.agreements[agree]?.[0]);
  const filters = report.filters.filter(
    (place, number) =>
      (!group || group.has(number)) &&
      (!layer || place.layer === Number(layer)) &&
      (!verdict || hasVerdict(report, place, verdict)) &&
      isNamed(report, place, find),
  );
  const order = ORDERS[sort]?.[1];
  return order ? filters.sort(order(report)) : filters;
}

/** The choice in words. */
export function choiceText(report, { layer, verdict, sort, agree, find }) {
  const parts = [verdict ? `${verdictText(verdict)} filters` : "all filters"];
  if (layer && report.layers[layer]) parts.push(`of ${layerText(report.layers[layer].name)}`);
  if (agree) parts.push("that agree");
  if (find) parts.push(`"${find}"`);
  if (ORDERS[sort]?.[1]) parts.push(`by ${ORDERS[sort][0]}`);
  return parts.join(" ");
}

/** The columns of `AnomalyReport.to_frame`. */
function columnsOf(report) {
  const of = (name) => (place) => report.layers[place.layer][name][place.filter];
  return {
    layer: (place) => report.layers[place.layer].name,
    filter: (place) => place.filter,
    verdict: (place) => report.verdict(place),
    n_components: of("n_components"),
    calinski_harabasz: of("calinski_harabasz"),
    smallest_share: of("smallest_share"),
    outliers: (place) => report.outliers(place).length,
    isolated: (place) => report.isolated(place).length,
    explained: of("explained"),
    sparsity: of("sparsity"),
  };
}

export function filtersPage(report, query) {
  const change = (name) => (value) =>
    visit(address(["filters"], { ...query, [name]: value === "network" ? "" : value }));
  const filters = chosenFilters(report, query);
  const isolated = report.filters.filter((place) => report.isolated(place).length).length;
  const amounts = kindsOf(report, (place) => report.verdict(place));
  if (isolated) amounts.splice(1, 0, ["isolated", isolated]);
  if (query.verdict?.startsWith("="))
    amounts.push([query.verdict, chosenFilters(report, { verdict: query.verdict }).length]);
  const verdicts = amounts.map(([verdict, amount]) => [verdict, `${verdictText(verdict)} (${amount})`]);
  return [
    make("h1", {}, "Filters"),
    div(
      "choices",
      choice("Verdict", [["", "any"], ...verdicts], query.verdict ?? "", change("verdict")),
      choice(
        "Layer",
        [["", "all"], ...report.layers.map((layer, place) => [String(place), layerText(layer.name)])],
        query.layer ?? "",
        change("layer"),
      ),
      choice(
        "Sort by",
        Object.entries(ORDERS).map(([key, [text]]) => [key, text]),
        query.sort ?? "network",
        change("sort"),
      ),
      finder("number or layer", query.find ?? "", change("find")),
      filters.length ? exportButton("filters.csv", columnsOf(report), filters) : null,
      statusLine(count(filters.length, "filter")),
    ),
    pages(
      filters,
      CARDS,
      (place) => filterCard(report, place, { query }),
      "cards",
      "No filter matches. Choose another verdict or layer, or find another name.",
    ),
  ];
}
