// The scatter plot of one filter: hover, pin and zoom.

import { extent, mark, ticks } from "./canvas.js";
import { groupColor, groupShape, ink } from "./colors.js";
import { div, make, sharpCanvas, symbolButton } from "./dom.js";
import { tally } from "./wording.js";

const MARGIN = { left: 46, right: 12, top: 12, bottom: 40 };
const REACH = 18; // distance at which the pointer finds a point (pixels)
const RADIUS = 3.4;

export class Scatter {
  /**
   * `groups` color the points. `show(sample, isPinned)` is called with the sample under the pointer, else the pinned one, else null; `pin(sample)` on
   * a click.
   */
  constructor(points, { show, pin, description, groups = points.clusters }) {
    this.points = points;
    this.show = show;
    this.pin = pin;
    this.groups = groups;
    this.ellipses = ellipsesOf(points);
    this.hovered = this.pinned = null;
    this.only = null;
    this.canvas = make("canvas", { class: "scatter", role: "img", "aria-label": description });
    this.element = div("plot", this.canvas);
    this.listen();
    this.reset();
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  buttons() {
    return div(
      "zoom",
      symbolButton("+", "Zoom in (key +)", { click: () => this.zoom(1.5) }),
      symbolButton("−", "Zoom out (key −)", { click: () => this.zoom(1 / 1.5) }),
      symbolButton("⟲", "Show all points (key 0)", { click: () => this.reset() }),
    );
  }

  reset() {
    const [lowX, highX] = extent(this.points.x);
    const [lowY, highY] = extent(this.points.y);
    this.view = { lowX, highX, lowY, highY };
    this.draw();
  }

  /** Dims all groups but one; null dims none. */
  emphasise(group) {
    this.only = group;
    this.draw();
  }

  /** Pins a sample; null pins none. */
  setPinned(sample) {
    this.pinned = sample;
    this.notify();
  }

  notify() {
    const sample = this.hovered ?? this.pinned;
    this.show(sample, sample !== null && sample === this.pinned);
    this.draw();
  }

  get area() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const { left, right, top, bottom } = MARGIN;
    return { left, top, width: Math.max(1, width - left - right), height: Math.max(1, height - top - bottom) };
  }

  across(x) {
    return this.area.left + ((x - this.view.lowX) / (this.view.highX - this.view.lowX)) * this.area.width;
  }

  down(y) {
    return this.area.top + ((this.view.highY - y) / (this.view.highY - this.view.lowY)) * this.area.height;
  }

  /** The sample nearest to a place on the canvas, or null if none is near. */
  nearest(left, top) {
    let [nearest, least] = [null, REACH ** 2];
    this.points.samples.forEach((sample, i) => {
      const distance = (this.across(this.points.x[i]) - left) ** 2 + (this.down(this.points.y[i]) - top) ** 2;
      if (distance < least && (this.only === null || this.groups[i] === this.only))
        [nearest, least] = [sample, distance];
    });
    return nearest;
  }

  /** Magnifies about a place on the canvas, by default the pinned point, or else the middle. */
  zoom(factor, left = null, top = null) {
    const { area, view, points } = this;
    const pinned = points.samples.indexOf(this.pinned);
    if (left === null && pinned >= 0)
      return this.zoom(factor, this.across(points.x[pinned]), this.down(points.y[pinned]));
    const [u, v] = left === null ? [0.5, 0.5] : [(left - area.left) / area.width, 1 - (top - area.top) / area.height];
    const scaled = (low, high, at) => {
      const [fixed, size] = [low + at * (high - low), (high - low) / factor];
      return [fixed - at * size, fixed + (1 - at) * size];
    };
    [view.lowX, view.highX] = scaled(view.lowX, view.highX, u);
    [view.lowY, view.highY] = scaled(view.lowY, view.highY, v);
    this.draw();
  }

  listen() {
    const at = (event) => this.nearest(event.offsetX, event.offsetY);
    this.canvas.addEventListener("pointermove", (event) => this.hover(at(event)));
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
    this.canvas.addEventListener("click", (event) => {
      const sample = at(event);
      this.pin(sample === this.pinned ? null : sample);
    });
    this.canvas.addEventListener("dblclick", () => this.reset());
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
        event.preventDefault();
        this.zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
      },
      { passive: false },
    );
  }

  hover(sample) {
    this.canvas.classList.toggle("over-point", sample !== null);
    if (sample === this.hovered) return;
    this.hovered = sample;
    this.notify();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const context = sharpCanvas(this.canvas, width, height);
    const { area, points } = this;
    const { lowX, highX, lowY, highY } = this.view;
    Object.assign(this.canvas.dataset, { view: [lowX, highX, lowY, highY], area: Object.values(area) });
    this.drawAxes(context, height);
    context.save();
    context.beginPath();
    context.rect(area.left, area.top, area.width, area.height);
    context.clip();
    const scale = [area.width / (highX - lowX), area.height / (highY - lowY)];
    for (const { group, x, y, outline } of this.groups === points.clusters ? this.ellipses : []) {
      context.beginPath();
      for (const [dx, dy] of outline) context.lineTo(this.across(x + dx), this.down(y + dy));
      context.closePath();
      context.strokeStyle = context.fillStyle = groupColor(group);
      context.globalAlpha = this.only === null || this.only === group ? 0.09 : 0.02;
      context.fill();
      context.globalAlpha *= 7;
      context.lineWidth = 1.2;
      context.stroke();
    }
    const radius = points.samples.length > 2000 ? RADIUS / 2 : RADIUS;
    const groups = [...new Set(this.groups)].sort((a, b) => a - b);
    for (const group of groups) {
      context.globalAlpha = this.only === null || this.only === group ? 0.75 : 0.08;
      context.fillStyle = groupColor(group);
      context.beginPath();
      points.samples.forEach((_, i) => {
        if (this.groups[i] === group) {
          mark(
            context,
            groupShape(group),
            area.left + (points.x[i] - lowX) * scale[0],
            area.top + (highY - points.y[i]) * scale[1],
            radius,
          );
        }
      });
      context.fill();
    }
    context.globalAlpha = 1;
    context.strokeStyle = ink("--ink");
    context.lineWidth = 1.3;
    context.beginPath();
    const ring = (flags, shape, size) => {
      const marked = [...flags.keys()].filter((i) => flags[i]);
      for (const i of marked)
        mark(context, shape, this.across(points.x[i]), this.down(points.y[i]), marked.length > 50 ? size / 2 : size);
    };
    ring(points.outliers, "circle", 7);
    ring(points.isolated, "square", 12);
    context.stroke();
    this.drawChosen(context, this.pinned, 3);
    this.drawChosen(context, this.hovered, 2);
    context.restore();
  }

  /** Draws a ring in the accent color around a sample, with its number beside it. */
  drawChosen(context, sample, lineWidth) {
    const i = sample === null ? -1 : this.points.samples.indexOf(sample);
    if (i < 0) return;
    const [left, top] = [this.across(this.points.x[i]), this.down(this.points.y[i])];
    context.strokeStyle = ink("--accent");
    context.lineWidth = lineWidth;
    context.beginPath();
    mark(context, "circle", left, top, 9.5);
    context.stroke();
    context.font = `600 12px ${ink("--font")}`;
    const aside = left > this.area.left + this.area.width - 60;
    context.textAlign = aside ? "right" : "left";
    context.textBaseline = "middle";
    context.lineWidth = 4;
    context.strokeStyle = ink("--card");
    context.strokeText(sample, left + (aside ? -14 : 14), top);
    context.fillStyle = ink("--ink");
    context.fillText(sample, left + (aside ? -14 : 14), top);
  }

  drawAxes(context, height) {
    const { area, view } = this;
    context.font = `11px ${ink("--font")}`;
    context.fillStyle = ink("--quiet");
    context.strokeStyle = ink("--line");
    context.lineWidth = 1;
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const [value, text] of ticks(view.lowX, view.highX)) {
      const left = Math.round(this.across(value)) + 0.5;
      line(context, left, area.top, left, area.top + area.height);
      context.fillText(text, left, area.top + area.height + 6);
    }
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const [value, text] of ticks(view.lowY, view.highY)) {
      const top = Math.round(this.down(value)) + 0.5;
      line(context, area.left, top, area.left + area.width, top);
      context.fillText(text, area.left - 7, top);
    }
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    context.fillText("first component (its standard deviation)", area.left + area.width / 2, height - 6);
    context.save();
    context.translate(11, area.top + area.height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("second component (same unit)", 0, 0);
    context.restore();
  }
}

function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

/** An ellipse for each cluster of at least three samples: two standard deviations, as offsets from its mean. */
function ellipsesOf({ x, y, clusters }) {
  const groups = [...tally(clusters)].filter(([, size]) => size > 2);
  return groups.map(([group, size]) => {
    const own = [...clusters.keys()].filter((i) => clusters[i] === group);
    const mean = (value) => own.reduce((sum, i) => sum + value(i), 0) / size;
    const [mx, my] = [mean((i) => x[i]), mean((i) => y[i])];
    // Cholesky's factor of the covariance takes a circle to the ellipse.
    const a = Math.sqrt(mean((i) => (x[i] - mx) ** 2));
    const b = a > 0 ? mean((i) => (x[i] - mx) * (y[i] - my)) / a : 0;
    const c = Math.sqrt(Math.max(0, mean((i) => (y[i] - my) ** 2) - b * b));
    const outline = Array.from({ length: 49 }, (_, i) => {
      const angle = (i / 24) * Math.PI;
      return [2 * a * Math.cos(angle), 2 * (b * Math.cos(angle) + c * Math.sin(angle))];
    });
    return { group, x: mx, y: my, outline };
  });
}
