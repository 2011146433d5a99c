/** What the data are, in a sentence; the first rows as they would be learned; and the columns of an unknown table. */

import { html, useApp } from "../../ui.js";
import { ROLES } from "./draft.js";
import { Preview } from "./results.js";

const KINDS = {
  texts: "kind.texts",
  questions: "kind.questions",
  conversations: "kind.conversations",
  pairs: "kind.pairs",
  labels: "kind.labels",
  mixed: "kind.mixed",
  table: "kind.table",
};
const ROWS = { questions: "rows.questions", texts: "rows.texts", pairs: "rows.pairs" };
const ROLE_TEXTS = {
  text: "role.text",
  prompt: "role.prompt",
  completion: "role.completion",
  chosen: "role.chosen",
  rejected: "role.rejected",
};

/** @param {{ found: any, draft: any, change: (more: any) => void, again: () => void }} props */
export function WhatItIs({ found, draft, change, again }) {
  const { t } = useApp();
  const used = Object.values(found.columns ?? {}).join(" → ");
  const isOpen = found.kind === "table" || Object.keys(draft.columns).length > 0;
  return html`<section class="sheet" data-found=${found.kind ?? ""} data-state=${found.state}>
    <h2>${t("what_it_is")}</h2>
    <div aria-live="polite">
      ${found.kind && html`<p class="sentence">${t(KINDS[found.kind])}${used && html` <span>${used}</span>`}</p>`}
      ${found.problem && html`<p class="note" role="alert">${found.problem}</p>`}
      ${found.state === "looking" && html`<p class="faint">${t("looking")}</p>`}
      ${found.state === "reading" && html`<p class="faint">${t("reading")}</p>`}
    </div>
    ${isOpen && found.rows.length > 0 && html`<${Columns} ...${{ rows: found.rows, draft, change }} />`}
    ${found.preview && html`<${Preview} ...${found.preview} />`}
    ${found.preview && html`<div class="actions"><button type="button" onClick=${again}>${t("again")}</button></div>`}
  </section>`;
}

/** The first rows of a table, whose columns get their roles by a click on their names. */
function Columns({ rows, draft, change }) {
  const { t } = useApp();
  const { columns } = draft;
  const open = ROLES[draft.rows].find((role) => !(role in columns));
  const choose = (name) => {
    const role = Object.keys(columns).find((one) => columns[one] === name);
    const { [role ?? ""]: _removed, ...others } = columns;
    if (role) change({ columns: others });
    else if (open) change({ columns: { ...columns, [open]: name } });
  };
  const head = (name) => {
    const role = Object.keys(columns).find((one) => columns[one] === name);
    return html`<th scope="col">
      <button type="button" aria-pressed=${Boolean(role)} onClick=${() => choose(name)}>${name}</button>
      ${role && html`<span class="tag">${t(ROLE_TEXTS[role])}</span>`}
    </th>`;
  };
  const names = Object.keys(rows[0]);
  return html`
    <fieldset class="rows">
      <legend>${t("rows")}</legend>
      ${Object.keys(ROWS).map(
        (one) => html`<label class="check">
          <input type="radio" name="rows" checked=${one === draft.rows}
            onChange=${() => change({ rows: one, columns: {} })} />
          <span>${t(ROWS[one])}</span>
        </label>`,
      )}
    </fieldset>
    <p role="status">${open ? t("columns.click", { role: t(ROLE_TEXTS[open]) }) : t("columns.all")}</p>
    <div class="scroll" tabindex="0">
      <table class="data cells">
        <thead><tr>${names.map(head)}</tr></thead>
        <tbody>${rows.map((row) => html`<tr>${names.map((name) => html`<td>${row[name]}</td>`)}</tr>`)}</tbody>
      </table>
    </div>
  `;
}
