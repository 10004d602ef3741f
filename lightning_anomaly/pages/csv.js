// Tables as CSV files.
import { make } from "./dom.js";
import { number } from "./wording.js";

/** Rows as CSV, as Python's csv module writes it; `columns` has a function from a row to its value for each heading. */
export function csvText(columns, rows) {
  const lines = [Object.keys(columns), ...rows.map((row) => Object.values(columns).map((of) => of(row)))];
  return lines.map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}

/** Begins a text with `./` that a spreadsheet would take for a formula, as Python does. */
export const safe = (value) =>
  typeof value === "string" && /^(\s*[=+\-@]|[\t\r\n])/.test(value) ? `./${value}` : value;

/** Quotes a value; what UTF-8 lacks, as in some names of files, becomes an escape. */
function quoted(value) {
  const text = String(value ?? "").replace(/\p{Surrogate}/gu, (letter) => `\\u${letter.charCodeAt().toString(16)}`);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A button that saves a list. */
export const exportButton = (name, columns, rows) =>
  make(
    "button",
    { title: "as CSV", click: () => download(name, csvText(columns, rows)) },
    `Export the ${number(rows.length)} shown`,
  );
