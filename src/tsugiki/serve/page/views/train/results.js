/** What a preview and a plan show. */

import { h, table } from "../../dom.js";

const KINDS = ["target", "context", "special"];
const CLASSES = {
  target: "target",
  context: "context",
  "target special": "target special",
  "context special": "context special",
};

/**
 * @param {any} shown rows with coloured tokens, counts and notes
 * @param {import("../../messages.js").Translate} t
 */
export function drawPreview({ rows, of, tokens, counts, notes }, t) {
  const legend = { target: t("in_loss"), context: t("context"), special: t("special") };
  return h(
    "section.sheet",
    {},
    h("h2", {}, t("preview")),
    h(
      "p.legend.small",
      {},
      KINDS.map((kind) => h("span", {}, h(`mark.${kind === "special" ? "target.special" : kind}`, {}, legend[kind]))),
    ),
    rows.map((row) => drawRow(row, of, tokens, t)),
    h(
      "dl.counts",
      {},
      counts.map(([label, value]) => [h("dt", {}, label), h("dd", {}, value)]),
    ),
    notes.map((note) => h("p.note.faint", {}, note)),
  );
}

function drawRow(row, of, tokens, t) {
  return h(
    "article",
    {},
    h("h3", {}, t("row", { number: row.number, of, filled: tokens - row.padding, tokens })),
    h(
      "div.row",
      { tabindex: 0 },
      row.segments.map((segment) => [
        h("p.source", {}, t("source", { name: segment.source, tokens: segment.tokens })),
        h(
          "p.text",
          {},
          !segment.first && h("span.cut", {}, "✂ … "),
          segment.spans.map((span) => h("mark", { class: CLASSES[span.kind] }, span.text)),
          !segment.last && h("span.cut", {}, segment.continues ? " … ✂" : ` ✂ ${t("cut")}`),
        ),
      ]),
      row.padding > 0 && h("p.source", {}, t("padding", { count: row.padding })),
    ),
  );
}

/**
 * @param {any} shown lines, and a table of the ways to run
 * @param {import("../../messages.js").Translate} t
 */
export function drawPlan({ lines, headers, rows, fits }, t) {
  return h(
    "section.sheet",
    {},
    h("h2", {}, t("plan")),
    lines.map((line) => h("p.small", {}, line)),
    !fits && h("p.note", {}, t("plan.none")),
    table({ headers, rows }),
  );
}

/**
 * @param {[string, any][]} plans bases with their plans, or with the errors
 * @param {import("../../messages.js").Translate} t
 */
export function drawBases(plans, t) {
  const headers = plans.find(([, plan]) => plan.headers)?.[1].headers ?? [];
  const rows = plans.map(([base, plan]) => [base, ...(plan.rows?.[0] ?? [plan.message])]);
  return h("section.sheet", {}, h("h2", {}, t("compare")), table({ headers: [t("base"), ...headers], rows }));
}
