/** What a preview and a plan show. */

import { html, Table, useApp } from "../../ui.js";

const KINDS = ["target", "context", "special"];

/** @param {any} shown rows with coloured tokens, counts and notes */
export function Preview({ rows, of, tokens, counts, notes }) {
  const { t } = useApp();
  const legend = { target: t("in_loss"), context: t("context"), special: t("special") };
  const mark = (kind) => html`<mark class=${kind === "special" ? "target special" : kind}>${legend[kind]}</mark>`;
  return html`<div class="preview" data-result="preview">
    <p class="legend small">${KINDS.map((kind) => html`<span>${mark(kind)}</span>`)}</p>
    ${rows.map((row) => html`<${Row} ...${{ row, of, tokens }} />`)}
    <details>
      <summary>${t("figures", { count: notes.length })}</summary>
      <dl class="counts">${counts.map(([label, value]) => html`<dt>${label}</dt><dd>${value}</dd>`)}</dl>
      <ul class="notes">${notes.map((note) => html`<li>${note}</li>`)}</ul>
    </details>
  </div>`;
}

function Row({ row, of, tokens }) {
  const { t } = useApp();
  const cut = (continues) => html`<span class="cut">${continues ? " … ✂" : ` ✂ ${t("cut")}`}</span>`;
  const segment = (one) => html`
    <p class="source">${t("source", { name: one.source, tokens: one.tokens })}</p>
    <p class="text">
      ${!one.first && html`<span class="cut">✂ … </span>`}${one.spans.map(
        ({ text, kind }) => html`<mark class=${kind}>${text}</mark>`,
      )}${!one.last && cut(one.continues)}
    </p>`;
  return html`<article>
    <h3>${t("row", { number: row.number, of, filled: tokens - row.padding, tokens })}</h3>
    <div class="row" tabindex="0">
      ${row.segments.map(segment)}
      ${row.padding > 0 && html`<p class="source">${t("padding", { count: row.padding })}</p>`}
    </div>
  </article>`;
}

/** @param {any} shown lines, and a table of the ways to run */
export function Plan({ lines, headers, rows, fits }) {
  const { t } = useApp();
  return html`<section class="sheet" data-result="plan">
    <h2>${t("plan")}</h2>
    ${lines.map((line) => html`<p class="small">${line}</p>`)}
    ${!fits && html`<p class="note">${t("plan.none")}</p>`}
    <${Table} headers=${headers} rows=${rows} />
  </section>`;
}

/** @param {{ plans: [string, any][] }} props bases with their plans, or with the errors */
export function Bases({ plans }) {
  const { t } = useApp();
  const headers = plans.find(([, plan]) => plan.headers)?.[1].headers ?? [];
  const rows = plans.map(([base, plan]) => [base, ...(plan.rows?.[0] ?? [plan.message])]);
  return html`<section class="sheet" data-result="bases">
    <h2>${t("compare")}</h2>
    <${Table} headers=${[t("base"), ...headers]} rows=${rows} />
  </section>`;
}
