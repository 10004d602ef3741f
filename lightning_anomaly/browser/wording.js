// What the numbers of a report mean, in words.

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

/** Whether a name has a text in it, in whatever case. */
export const contains = (name, text) => name.toLowerCase().includes(text.toLowerCase());

/** Whether a text means this sample or image: by its number, or by a part of its name. */
export const isMeant = (position, name, text) =>
  /^\d+$/.test(text) ? [String(position), name].includes(text) : contains(name ?? "", text);

/** What verdicts mean, in the order in which they are told. */
export const VERDICTS = {
  "anomaly and isolated":
    "A few samples are a cluster of their own, and some lie farther out than the tail of the others explains.",
  anomaly: "A few samples are a cluster of their own, so it is an anomaly filter, as the source paper calls it.",
  isolated: "No cluster is rare, but some samples lie farther out than the tail of the others explains.",
  normal: "No cluster is rare, and no sample lies farther out than the tail of the others explains.",
  dead: "Its map is the same for every sample, so there is nothing to cluster.",
  nonfinite: "Its maps have NaN or infinite values, so it was not analyzed.",
};

/** How many filters there are of each kind, or of each that `of` gives. */
export const kindsOf = (report, of = (place) => report.kind(place)) => {
  const found = new Map();
  for (const place of report.filters) {
    const kind = of(place);
    found.set(kind, (found.get(kind) ?? 0) + 1);
  }
  const names = [...new Set([...Object.keys(VERDICTS), ...found.keys()])];
  return names.filter((name) => found.has(name)).map((name) => [name, found.get(name)]);
};

/** Terms of all pages, for the dialog that explains them. */
export const SCORE_TERMS = [
  ["Score", "How little an image is like the others: what its pixels say plus the mean of the network's views."],
  ["Pixels", "The view of plain numbers such as brightness, noise and colour, whatever the network makes of them."],
  ["Filters", "The view of the feature maps, by the layer in which they are oddest."],
  ["Classes", "The view of the last features and the logits."],
];

/** What is known of a filter, as pairs of a term and its sentence. */
export function facts(report, place) {
  const { filter } = place;
  const layer = report.layers[place.layer];
  const outliers = report.outliers(place).length;
  const told = [];
  if (outliers) told.push(["Outliers", `${count(outliers, "sample")} of ${number(report.samples)}`]);
  const isolated = report.isolated(place).length;
  if (isolated)
    told.push(["Isolated", `${count(isolated, "sample")}, farther out than the tail of the others explains`]);
  if (layer.n_components[filter]) {
    const chosen = outliers ? "the largest index of those that show its outliers" : "the largest index";
    told.push(["Clusters", `K = ${layer.n_components[filter]}: ${chosen}`]);
    told.push([
      "Calinski-Harabasz",
      `${number(layer.calinski_harabasz[filter])}, larger where clusters lie further apart`,
    ]);
    told.push(["Smallest cluster", `${percent(layer.smallest_share[filter])} of the samples`]);
    told.push(["Explained", `${percent(layer.explained[filter])} of the maps' variance lies in this picture`]);
  }
  told.push(["Sparsity", `${percent(layer.sparsity[filter])} of its map's values are zero or less`]);
  const size = layer.map_size.join(" × ") || "a single value";
  const pooled = String(layer.map_size) !== String(layer.analyzed_size);
  told.push(["Map", pooled ? `${size}, analyzed as ${layer.analyzed_size.join(" × ")}` : size]);
  return told;
}

/** An outlier score; infinite ones, of samples with NaN or infinite maps, are packed as null. */
export const scoreText = (score) => (score === null || score === Infinity ? "∞" : score.toFixed(1));

/** What an ordinary score is, measured on the samples or images at hand. */
export const ordinaryText = (report, what) => `95% of the ${what} have a score below ${scoreText(report.ordinary)}`;
