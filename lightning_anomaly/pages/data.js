// The packed report: an index that is read at once, and blocks that are unpacked when first needed.
import { openIndex, unpack } from "./unpack.js";
import { tally } from "./wording.js";

const BOTH = "anomaly and isolated";

export class Report {
  static async open() {
    return new Report(...(await openIndex()));
  }

  constructor(index, sprite) {
    Object.assign(this, index);
    this.sprite = sprite;
    this.filters = this.layers.flatMap((layer, number) =>
      layer.verdicts.map((_, filter) => ({ layer: number, filter })),
    );
    this.blocks = new Map();
  }

  /** Unpacks a block, once. */
  block(name, read) {
    if (!this.blocks.has(name)) this.blocks.set(name, unpack(name).then(read));
    return this.blocks.get(name);
  }

  hasSample(sample) {
    return Number.isInteger(sample) && sample >= 0 && sample < this.samples;
  }

  verdict({ layer, filter }) {
    return this.layers[layer].verdict_names[this.layers[layer].verdicts[filter]];
  }

  outliers({ layer, filter }) {
    return this.layers[layer].outliers[filter] ?? [];
  }

  /** The samples that lie far from all others in a filter. */
  isolated({ layer, filter }) {
    return this.layers[layer].isolated[filter] ?? [];
  }

  /** A filter's verdict, combined with whether it has isolated samples. */
  kind(place) {
    const verdict = this.verdict(place);
    return this.isolated(place).length ? ({ normal: "isolated", anomaly: BOTH }[verdict] ?? verdict) : verdict;
  }

  /** Counts the filters in which a sample is isolated. */
  isolatedBy(sample) {
    const rows = this.layers.flatMap((layer) => Object.values(layer.isolated));
    return rows.filter((samples) => samples.includes(sample)).length;
  }

  /** A sample's score by each view, with the 0.95 quantile of all samples as `ordinary`. */
  scoresOf(sample) {
    return this.views.map(({ view, ordinary, scores }) => ({ view, ordinary, score: scores[sample] ?? Infinity }));
  }

  /** The filters that isolate a sample or have it in a rare cluster, and its distance from their means. */
  reactionsTo(sample) {
    return this.reactions[sample].map(([filter, distance]) => ({ place: this.filters[filter], distance }));
  }

  label(sample) {
    return this.labels ? this.labels.names[this.labels.of[sample]] : null;
  }

  /** The file of a sample, or null. */
  name(sample) {
    return this.names ? this.names[sample] : null;
  }

  /** The points of a filter: samples, x, y, clusters (0 is the largest), and flags of outliers and isolated samples. */
  async points({ layer, filter }) {
    const all = await this.block(`points-${layer}`, (buffer) => readPoints(buffer, this.layers[layer].verdicts.length));
    const [begin, end] = [all.starts[filter], all.starts[filter + 1]];
    const samples = summed(all.steps.subarray(begin, end));
    const [lowX, highX, lowY, highY] = all.ranges.subarray(4 * filter, 4 * filter + 4);
    const place = (low, high, lower, upper) =>
      Float32Array.from(samples, (_, i) => low + ((high - low) * (lower[begin + i] + 256 * upper[begin + i])) / 4095);
    return {
      samples,
      x: place(lowX, highX, all.lowX, all.highX),
      y: place(lowY, highY, all.lowY, all.highY),
      clusters: ranked(all.clusters.subarray(begin, end)),
      outliers: all.marks.subarray(begin, end).map((mark) => mark & 1),
      isolated: all.marks.subarray(begin, end).map((mark) => mark >> 1),
    };
  }

  /** A function from a sample to its map `{height, width, levels}`, levels 0 to 15, or to null if it was not kept. */
  async maps({ layer, filter }) {
    const shape = this.layers[layer].maps;
    if (!shape) return () => null;
    const buffer = await this.block(`maps-${layer}`, (bytes) => bytes);
    const { kept, height, width } = shape;
    const bytes = Math.ceil((height * width) / 2);
    const filters = this.layers[layer].verdicts.length;
    const samples = summed(new Uint32Array(buffer, 4 * filter * kept, kept));
    return (sample) => {
      const place = samples.indexOf(sample);
      if (place < 0) return null;
      const packed = new Uint8Array(buffer, 4 * filters * kept + (filter * kept + place) * bytes, bytes);
      const levels = Uint8Array.from({ length: height * width }, (_, i) => (packed[i >> 1] >> (4 * (i & 1))) & 15);
      return { height, width, levels };
    };
  }
}

function readPoints(buffer, filters) {
  const starts = new Uint32Array(buffer, 0, filters + 1);
  const count = starts[filters];
  let offset = starts.byteLength;
  const take = (Type, length) => {
    const values = new Type(buffer, offset, length);
    offset += values.byteLength;
    return values;
  };
  return {
    starts,
    ranges: take(Float32Array, 4 * filters),
    steps: take(Uint32Array, count),
    lowX: take(Uint8Array, count),
    highX: take(Uint8Array, count),
    lowY: take(Uint8Array, count),
    highY: take(Uint8Array, count),
    clusters: take(Uint8Array, count),
    marks: take(Uint8Array, count),
  };
}

function summed(steps) {
  let sum = 0;
  return Uint32Array.from(steps, (step) => {
    sum += step;
    return sum;
  });
}

/** Numbers clusters by size, the largest first, as the figures do. */
function ranked(clusters) {
  const sizes = tally(clusters);
  const order = [...sizes.keys()].sort((a, b) => sizes.get(b) - sizes.get(a) || a - b);
  const ranks = new Map(order.map((cluster, rank) => [cluster, rank]));
  return Uint8Array.from(clusters, (cluster) => ranks.get(cluster));
}
