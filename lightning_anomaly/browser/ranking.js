// What `find_outliers` found, the image that belongs least first, and what a reader has ticked of it.
import { openIndex } from "./unpack.js";
import { isMeant } from "./wording.js";

/** A value as Python's csv module writes it; infinite scores are packed as null. */
function asPython(value) {
  if (value === null) return "inf";
  if (typeof value === "boolean") return value ? "True" : "False";
  return Array.isArray(value) ? value.join(" ") : value;
}

export class Ranking {
  static async open() {
    return new Ranking(...(await openIndex()));
  }

  constructor(index, sprite) {
    Object.assign(this, index);
    this.sprite = sprite;
    for (const [rank, row] of this.rows.entries()) row.rank = rank;
    this.store = `lightning_anomaly.ticked.${this.key}`;
    this.ticked = new Set();
    this.stores = true;
    this.remember();
  }

  /** Takes what is ticked in any tab with this file, or was; a frame without a storage of its own remembers nothing. */
  remember() {
    if (!this.stores) return;
    try {
      const stored = new Set(JSON.parse(window.localStorage.getItem(this.store)) ?? []);
      this.ticked = new Set(this.rows.map((row) => row.position).filter((position) => stored.has(position)));
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
      this.stores = false; // it is known until the page is closed
    }
  }

  /** The rows that an address asks for. A layer has a sign before its name, as that of the model itself is empty. */
  chosen({ layer, show, find = "" }) {
    const shown =
      { significant: (row) => row.significant, ticked: (row) => this.ticked.has(row.position) }[show] ?? (() => true);
    const named = (row) => !find || [row.label, row.name].some((told) => isMeant(row.position, told, find));
    return this.rows.filter((row) => (layer === undefined || `=${row.layer}` === layer) && shown(row) && named(row));
  }

  /** The layers that any row has, in the network's order, and how many have it. */
  amounts() {
    const found = this.layers.map((name) => [name, this.rows.filter((row) => row.layer === name).length]);
    return found.filter(([, amount]) => amount);
  }

  /** What a CSV file has, as `OutlierReport.save_csv` writes it. */
  get csvColumns() {
    return Object.fromEntries(this.columns.map((name) => [name, (row) => asPython(row[name])]));
  }
}
