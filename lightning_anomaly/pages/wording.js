// The numbers of a report in words.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const number = (value) =>
  value === null || value === undefined
    ? "unknown"
    : Math.abs(value) >= 100
      ? whole.format(value)
      : short.format(value);
export const percent = (share) => (share === null ? "unknown" : `${short.format(100 * share)}%`);
export const count = (amount, one, many = `${one}s`) => `${whole.format(amount)} ${amount === 1 ? one : many}`;
export const layerText = (name) => (name ? `layer ${name}` : "the model");

/** Counts each value. */
export function tally(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

/** Whether a name contains a text, ignoring case. */
export const contains = (name, text) => name.toLowerCase().includes(text.toLowerCase());

/** Whether a search for a text finds a sample or image, by its number or by a part of its name. */
export const isMeant = (position, name, text) =>
  /^\d+$/.test(text) ? [String(position), name].includes(text) : contains(name ?? "", text);

/** What verdicts mean, in the order of the lists. */
export const VERDICTS = {
  "anomaly and isolated":
    "A few samples form a separate cluster, and some lie farther out than the tail of the others explains.",
  anomaly: "A few samples form a separate cluster. The source paper calls such a filter an anomaly filter.",
  isolated: "No cluster is rare, but some samples lie farther out than the tail of the others explains.",
  normal: "No cluster is rare, and no sample lies farther out than the tail of the others explains.",
  dead: "Its map is the same for every sample, so there is nothing to cluster.",
  nonfinite: "Its maps have NaN or infinite values, so it was not analyzed.",
};

/** Pairs of a kind of filters, or a value of `of`, and their number. */
export const kindsOf = (report, of = (place) => report.kind(place)) => {
  const counts = tally(report.filters.map(of));
  const names = [...new Set([...Object.keys(VERDICTS), ...counts.keys()])];
  return names.filter((name) => counts.has(name)).map((name) => [name, counts.get(name)]);
};

/** Terms of all pages, for the help dialog. */
export const SCORE_TERMS = [
  ["Score", "How unlike the others an image is: the larger of look and content."],
  ["Look", "The score by statistics of the pixels such as brightness, noise and color."],
  ["Content", "The score by what the network makes of the image: its features, and logits of classes it knows."],
  ["Label", "The score by how much the network prefers another class to the label, that of the data set."],
];

/** The facts of a filter, as pairs of a term and a sentence. */
export function facts(report, place) {
  const { filter } = place;
  const layer = report.layers[place.layer];
  const outliers = report.outliers(place).length;
  const pairs = [];
  if (outliers) pairs.push(["Outliers", `${count(outliers, "sample")} of ${number(report.samples)}`]);
  const isolated = report.isolated(place).length;
  if (isolated)
    pairs.push(["Isolated", `${count(isolated, "sample")}, farther out than the tail of the others explains`]);
  if (layer.n_components[filter]) {
    const chosen = outliers ? "the largest index of those that show its outliers" : "the largest index";
    pairs.push(["Clusters", `K = ${layer.n_components[filter]}: ${chosen}`]);
    pairs.push([
      "Calinski-Harabasz",
      `${number(layer.calinski_harabasz[filter])}, larger where clusters lie further apart`,
    ]);
    pairs.push(["Smallest cluster", `${percent(layer.smallest_share[filter])} of the samples`]);
    pairs.push(["Explained", `${percent(layer.explained[filter])} of the maps' variance lies in this picture`]);
  }
  pairs.push(["Sparsity", `${percent(layer.sparsity[filter])} of its map's values are zero or less`]);
  const size = layer.map_size.join(" × ") || "a single value";
  const pooled = String(layer.map_size) !== String(layer.analyzed_size);
  pairs.push(["Map", pooled ? `${size}, analyzed as ${layer.analyzed_size.join(" × ")}` : size]);
  return pairs;
}

/** An outlier score. Infinite scores, of samples with NaN or infinite maps, are packed as null. */
export const scoreText = (score) => (score === null || score === Infinity ? "∞" : score.toFixed(1));

/** What an ordinary score is, in words. */
export const ordinaryText = (report, noun) => `95% of the ${noun} have a score below ${scoreText(report.ordinary)}`;
