/** What the data are, in a sentence; the first rows as they would be learned; and the columns of an unknown table. */

import { Actions, Check, html, t, Table } from "../../ui.js";
import { ROLES } from "./form.js";

/** @param {{ found: any, draft: any, change: (more: any) => void, again: () => void }} props */
export function WhatItIs({ found, draft, change, again }) {
  const { kind, state, problem, preview, rows } = found;
  const used = Object.values(found.columns ?? {}).join(" → ");
  const isOpen = kind === "table" || Object.keys(draft.columns).length > 0;
  return html`<section class="sheet" data-found=${kind ?? ""} data-state=${state}>
    <h2>${t("what_it_is")}</h2>
    <div aria-live="polite">
      ${kind && html`<p class="sentence">${t(`kind.${kind}`)}${used && html` <span>${used}</span>`}</p>`}
      ${problem && html`<p class="note" role="alert">${problem}</p>`}
      ${["looking", "reading"].includes(state) && html`<p class="faint">${t(state)}</p>`}
    </div>
    ${isOpen && rows.length > 0 && html`<${Columns} ...${{ rows, draft, change }} />`}
    ${preview && html`<${Preview} ...${preview} /><${Actions} of=${[[true, t("again"), again]]} />`}
  </section>`;
}

/** The first rows of a table, whose columns get their roles by a click on their names. */
function Columns({ rows, draft, change }) {
  const { columns } = draft;
  const open = ROLES[draft.rows].find((role) => !(role in columns));
  const roleOf = (name) => Object.keys(columns).find((one) => columns[one] === name);
  const choose = (name) => {
    const { [roleOf(name) ?? ""]: removed, ...others } = columns;
    if (removed) change({ columns: others });
    else if (open) change({ columns: { ...columns, [open]: name } });
  };
  const head = (name) => {
    const role = roleOf(name);
    return html`<button type="button" aria-pressed=${Boolean(role)} onClick=${() => choose(name)}>${name}</button>
      ${role && html`<span class="tag">${t(`role.${role}`)}</span>`}`;
  };
  const names = Object.keys(rows[0]);
  const kind = (one) => html`<${Check} type="radio" name="rows" checked=${one === draft.rows}
    set=${() => change({ rows: one, columns: {} })}><span>${t(`rows.${one}`)}</span><//>`;
  return html`
    <fieldset class="rows"><legend>${t("rows")}</legend>${Object.keys(ROLES).map(kind)}</fieldset>
    <p role="status">${open ? t("columns.click", { role: t(`role.${open}`) }) : t("columns.all")}</p>
    <${Table} class="data cells" headers=${names.map(head)} rows=${rows.map((row) => names.map((name) => row[name]))} />
  `;
}

/** @param {any} shown rows with coloured tokens, counts and notes */
function Preview({ rows, of, tokens, counts, notes }) {
  const mark = (kind, key) => html`<span><mark class=${kind}>${t(key)}</mark></span>`;
  return html`<div class="preview" data-result="preview">
    <p class="legend small">
      ${mark("target", "in_loss")} ${mark("context", "context")} ${mark("target special", "special")}
    </p>
    ${rows.map((row) => html`<${Row} ...${{ row, of, tokens }} />`)}
    <details>
      <summary>${t("figures", { count: notes.length })}</summary>
      <${Terms} of=${counts} />
      <ul class="notes">${notes.map((note) => html`<li>${note}</li>`)}</ul>
    </details>
  </div>`;
}

function Row({ row, of, tokens }) {
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

/** @param {{ of: [string, string][] }} props terms and what they are */
export function Terms({ of }) {
  return html`<dl class="counts">${of.map(([term, text]) => html`<dt>${term}</dt><dd>${text}</dd>`)}</dl>`;
}
