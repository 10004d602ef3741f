// The page of an `AnomalyReport`.
import { Report } from "./data.js";
import { REPORT_KEYS, REPORT_TERMS, reportPage } from "./report_pages.js";
import { run } from "./shell.js";

run({
  open: Report.open,
  sections: [
    ["overview", "Overview"],
    ["filters", "Filters"],
    ["samples", "Samples"],
  ],
  terms: REPORT_TERMS,
  keys: REPORT_KEYS,
  pageOf: reportPage,
});
