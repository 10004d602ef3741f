// The images of `find_outliers` by descending score, and which of them a reader has ticked.
import { openIndex } from "./unpack.js";
import { isMeant } from "./wording.js";

/** A value as Python's csv module writes it. */
const asPython = (value) => (typeof value === "boolean" ? (value ? "True" : "False") : value);

export class Ranking {
  static async open() {
    return new Ranking(...(await openIndex()));
  }

  constructor(index, sprite) {
    Object.assign(this, index);
    this.sprite = sprite;
    this.all = this.rows; // with duplicates and images that cannot be used
    this.rows = this.all.slice(0, this.shown);
    for (const [rank, row] of this.rows.entries()) row.rank = rank;
    this.store = `lightning_anomaly.ticked.${this.key}`;
    this.ticked = new Set();
    this.stores = true;
    this.remember();
  }

  /** Reads the ticks that this and other tabs have stored; a frame without storage has none. */
  remember() {
    if (!this.stores) return;
    try {
      const stored = new Set(JSON.parse(window.localStorage.getItem(this.store)) ?? []);
      this.ticked = new Set(this.all.map((row) => row.position).filter((position) => stored.has(position)));
    } catch {
      this.stores = false;
    }
  }

  tick(rows, on) {
    this.remember();
    for (const { position } of rows) {
      if (on) this.ticked.add(position);
      else this.ticked.delete(position);
    }
    try {
      if (this.ticked.size) window.localStorage.setItem(this.store, JSON.stringify([...this.ticked]));
      else window.localStorage.removeItem(this.store);
    } catch {
      this.stores = false; // ticks last until the page is closed
    }
  }

  /** The rows that an address asks for, by descending score or by that of one view. */
  chosen({ by, show, find = "" }) {
    const isShown =
      { significant: (row) => row.significant, ticked: (row) => this.ticked.has(row.position) }[show] ?? (() => true);
    const named = (row) => !find || [row.label, row.name].some((name) => isMeant(row.position, name, find));
    const listed = by === "label" ? this.all.filter((row) => row.view_reasons.label) : this.rows;
    const rows = (show === "ticked" ? this.all : listed).filter((row) => isShown(row) && named(row));
    return by in this.views ? rows.sort((a, b) => (b.views[by] ?? -1) - (a.views[by] ?? -1)) : rows;
  }

  row(position) {
    return this.all.find((row) => row.position === position);
  }

  /** The columns of a CSV file, as `OutlierReport.save_csv` writes them. */
  get csvColumns() {
    return Object.fromEntries(this.columns.map((name) => [name, (row) => asPython(row[name])]));
  }
}
