/** Sections of a run or an adapter as the server sends them: headings, and parts of several kinds. */

import { Chart } from "./chart.js";
import { html, Table } from "./ui.js";

/** @typedef {{ name: string, heading: string, parts: any[] }} Section */

/** How a part is drawn, by its kind; curves stand together below the others. */
const KINDS = {
  lead: ({ text }) => html`<p class="sentence">${text}</p>`,
  sentence: ({ text }) => html`<p class="faint small">${text}</p>`,
  note: ({ text }) => html`<p class="note">${text}</p>`,
  facts: ({ rows }) =>
    html`<p class="small figures">${rows.map(([label, text]) => html`<span>${label} ${text}</span>`)}</p>`,
  lines: ({ rows }) => {
    const row = ([label, text]) => html`<tr><th scope="row">${label}</th><td>${text}</td></tr>`;
    return html`<table class="facts"><tbody>${rows.map(row)}</tbody></table>`;
  },
  table: Table,
  samples: ({ asked, texts }) => {
    const piece = ([text, isNew]) => (isNew ? html`<mark>${text}</mark>` : text);
    const sample = ([label, pieces]) =>
      html`<figure class="sample"><figcaption>${label}</figcaption><p>${pieces.map(piece)}</p></figure>`;
    return html`<div>
      ${asked.map(([label, text]) => html`<p class="asked"><span class="faint">${label}</span>${text}</p>`)}
      <div class="samples">${texts.map(sample)}</div>
    </div>`;
  },
};

/** @param {{ sections: Section[] }} props */
export function Sections({ sections }) {
  return sections
    .filter(({ parts }) => parts.length)
    .map(({ name, heading, parts }) => {
      const curves = parts.filter(({ kind }) => kind === "curves");
      return html`<section key=${name}>
        ${heading && html`<h2>${heading}</h2>`}
        ${parts.map((part) => KINDS[part.kind] && html`<${KINDS[part.kind]} ...${part} />`)}
        ${curves.length > 0 && html`<${Charts} curves=${curves} />`}
      </section>`;
    });
}

/** @param {{ curves: import("./chart.js").Curves[] }} props */
export function Charts({ curves }) {
  return html`<div class="charts">${curves.map((one) => html`<${Chart} key=${one.caption} curves=${one} />`)}</div>`;
}
