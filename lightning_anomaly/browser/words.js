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

/** How verdicts are called and drawn, in this order; a verdict that is not among them still gets its own name. */
export const VERDICTS = {
  anomaly: "A few samples lie in a cluster of their own.",
  normal: "No sample stands apart.",
  dead: "Its map is the same for every sample, so there is nothing to cluster.",
  nonfinite: "Its maps have NaN or infinite values, so it was not analysed.",
};

export const verdictsOf = (report) => {
  const found = new Map();
  for (const place of report.filters) {
    const verdict = report.verdict(place);
    found.set(verdict, (found.get(verdict) ?? 0) + 1);
  }
  const names = [...new Set([...Object.keys(VERDICTS), ...found.keys()])];
  return names.filter((name) => found.has(name)).map((name) => [name, found.get(name)]);
};

/** What is known of a filter, as pairs of a term and its sentence. */
export function facts(report, { layer, filter }) {
  const own = report.layers[layer];
  const outliers = report.outliers({ layer, filter }).length;
  const told = [];
  if (outliers) told.push(["Outliers", `${count(outliers, "sample")} of ${number(report.samples)}`]);
  if (own.n_components[filter]) {
    const chosen = outliers ? "the largest index of those that show its outliers" : "the largest index";
    told.push(["Clusters", `K = ${own.n_components[filter]}: ${chosen}`]);
    told.push([
      "Calinski-Harabasz",
      `${number(own.calinski_harabasz[filter])}, larger where clusters lie further apart`,
    ]);
    told.push(["Smallest cluster", `${percent(own.smallest_share[filter])} of the samples`]);
    told.push(["Explained", `${percent(own.explained[filter])} of the maps' variance lies in this picture`]);
  }
  told.push(["Sparsity", `${percent(own.sparsity[filter])} of its map's values are zero or less`]);
  const size = own.map_size.join(" × ") || "a single value";
  const pooled = String(own.map_size) !== String(own.analysed_size);
  told.push(["Map", pooled ? `${size}, analysed as ${own.analysed_size.join(" × ")}` : size]);
  return told;
}

/** Votes of a sample. */
export const votesText = (votes) => (votes ? `an outlier of ${count(votes, "filter")}` : "an outlier of no filter");
