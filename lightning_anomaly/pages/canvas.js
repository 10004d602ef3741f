// Small pictures of samples, maps and points, and the scales of plots.

import { groupColor, ink, VIRIDIS } from "./colors.js";

/** Draws a sample's image onto a canvas, pixel by pixel. */
export function drawImage(canvas, report, sample) {
  const { width, height, columns } = report.images;
  canvas.width = width;
  canvas.height = height;
  const [left, top] = [(sample % columns) * width, Math.floor(sample / columns) * height];
  canvas.getContext("2d").drawImage(report.sprite, left, top, width, height, 0, 0, width, height);
}

/** Draws a map onto a canvas, pixel by pixel. */
export function drawMap(canvas, map) {
  canvas.width = map.width;
  canvas.height = map.height;
  const pixels = new ImageData(map.width, map.height);
  for (const [i, level] of map.levels.entries()) pixels.data.set([...VIRIDIS[level], 255], 4 * i);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

// Corners of marks, from the middle, in radii.
const CORNERS = {
  square: "-.88 -.88 .88 -.88 .88 .88 -.88 .88",
  diamond: "0 -1.25 1.25 0 0 1.25 -1.25 0",
  triangle: "0 -1.2 1.1 .8 -1.1 .8",
  cross: "-1 -.35 -.35 -.35 -.35 -1 .35 -1 .35 -.35 1 -.35 1 .35 .35 .35 .35 1 -.35 1 -.35 .35 -1 .35",
};
const POINTS = Object.fromEntries(Object.entries(CORNERS).map(([shape, text]) => [shape, text.split(" ").map(Number)]));

/** Adds a mark to a path. */
export function mark(context, shape, x, y, radius) {
  context.moveTo(x + radius * (POINTS[shape]?.[0] ?? 1), y + radius * (POINTS[shape]?.[1] ?? 0));
  if (shape === "circle") context.arc(x, y, radius, 0, 2 * Math.PI);
  else {
    const corners = POINTS[shape];
    for (let i = 2; i < corners.length; i += 2) context.lineTo(x + radius * corners[i], y + radius * corners[i + 1]);
    context.closePath();
  }
}

/** The range of an axis: all values with a margin, at least one unit wide, so that small variation looks small. */
export function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [-0.5, 0.5];
  const [middle, size] = [(low + high) / 2, Math.max(1, high - low)];
  return [middle - 0.57 * size, middle + 0.57 * size];
}

/** About five round numbers in a range, with their texts. */
export function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => {
    const value = (first + i) * step;
    return [value, (Object.is(value, -0) ? 0 : value).toFixed(digits).replace("-", "−")];
  });
}

/** Draws a filter's points small, with rings around the outliers or around the `ringed` samples. */
export function drawMiniature(context, width, height, points, ringed = null) {
  const [lowX, highX] = extent(points.x);
  const [lowY, highY] = extent(points.y);
  const across = (i) => ((points.x[i] - lowX) / (highX - lowX)) * width;
  const down = (i) => height - ((points.y[i] - lowY) / (highY - lowY)) * height;
  context.clearRect(0, 0, width, height);
  context.globalAlpha = 0.7;
  const radius = points.samples.length > 1000 ? 1 : 1.7;
  const groups = points.clusters.reduce((most, cluster) => Math.max(most, cluster + 1), 0);
  for (let group = 0; group < groups; group++) {
    context.fillStyle = groupColor(group);
    context.beginPath();
    for (const [i, cluster] of points.clusters.entries()) {
      if (cluster === group) mark(context, "circle", across(i), down(i), radius);
    }
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeStyle = ink("--ink");
  context.lineWidth = 1.2;
  context.beginPath();
  points.samples.forEach((sample, i) => {
    if (ringed === null ? points.outliers[i] : ringed.includes(sample))
      mark(context, "circle", across(i), down(i), ringed === null ? 4 : 6);
  });
  context.stroke();
}
