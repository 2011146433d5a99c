/** The library as a table. */

import { Chosen, Filter, html, MANY, useApp, useState } from "../../ui.js";
import { Origin, Tags } from "./parts.js";

/** @typedef {import("../adapters.js").Adapter} Adapter */

const MOST_MIXED = 8; // adapters, as the server allows
const COLUMNS = {
  name: "column.name",
  method: "column.method",
  size: "column.size",
  perplexity: "column.perplexity",
  change: "column.change",
  origin: "column.origin",
  changed: "column.changed",
};

/** @param {{ library: import("../adapters.js").Library, mix: (...names: string[]) => void }} props `mix` shows a mix */
export function List({ library, mix }) {
  const { t } = useApp();
  const [wanted, setWanted] = useState("");
  const [chosen, setChosen] = useState(/** @type {string[]} */ ([]));
  const { adapters, base } = library;
  const heading = html`<div class="heading">
    <h1>${t("title")}</h1>
    ${adapters.length > MANY && html`<${Filter} label=${t("filter")} value=${wanted} onInput=${setWanted} />`}
  </div>`;
  if (!adapters.length) {
    return html`${heading}
      <p>${t("none")}</p>
      <p class="faint"><a href="#train">${t("none.hint")}</a></p>`;
  }
  const found = adapters.filter((one) => one.name.toLowerCase().includes(wanted.toLowerCase()));
  const choose = (name, isChosen) => setChosen([...chosen.filter((one) => one !== name), ...(isChosen ? [name] : [])]);
  const row = (one) => {
    const isChosen = chosen.includes(one.name);
    const isFull = !isChosen && chosen.length >= MOST_MIXED;
    return html`<${Row} key=${one.name} ...${{ one, isChosen, isFull, choose }} />`;
  };
  return html`
    ${heading}
    <p class="faint lead">${t(adapters.length === 1 ? "one" : "count", { count: adapters.length, base })}</p>
    <table class="library">
      <thead>
        <tr>
          <th><span class="unseen">${t("choose")}</span></th>
          ${Object.values(COLUMNS).map((key) => html`<th scope="col">${t(key)}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${found.length ? found.map(row) : html`<tr><td colspan="8">${t("no_match")}</td></tr>`}
      </tbody>
    </table>
    <${Chosen} names=${chosen} least=${1} text=${t("mix_them")} act=${mix} />
    <p class="faint small note">${t("explained")}</p>
  `;
}

/** @param {{ one: Adapter, isChosen: boolean, isFull: boolean, choose: (name: string, yes: boolean) => void }} props */
function Row({ one, isChosen, isFull, choose }) {
  const { t, lang } = useApp();
  if (one.broken) {
    return html`<tr>
      <td></td>
      <td colspan="7">
        <span class="name">${one.name}</span><p class="broken">${t("broken", { problem: one.broken })}</p>
      </td>
    </tr>`;
  }
  const cell = (key, content) => html`<td data-label=${t(COLUMNS[key])} data-column=${key}>${content}</td>`;
  const date = new Intl.DateTimeFormat(lang, { dateStyle: "medium" }).format(new Date(one.changed * 1000));
  return html`<tr>
    <td data-column="box">
      ${one.mixes &&
      !one.other_base &&
      html`<input type="checkbox" aria-label=${t("choose_one", { name: one.name })} checked=${isChosen}
        disabled=${isFull} onChange=${(event) => choose(one.name, event.target.checked)} />`}
    </td>
    <td data-column="name">
      <a class="name" href=${`#adapters/${encodeURIComponent(one.name)}`}>${one.name}</a><${Tags} one=${one} />
    </td>
    ${cell("method", html`${one.method}<span class="faint"> r\u00a0${one.rank}</span>`)}
    ${cell("size", one.size)}
    ${cell("perplexity", one.held_out ? perplexity(one.held_out) : "–")}
    ${cell("change", one.held_out ? change(one.held_out) : "–")}
    ${cell("origin", html`<${Origin} one=${one} />`)}
    ${cell("changed", date)}
  </tr>`;
}

/** @param {{before: string, after: string}} figures the numbers, each with its interval in a second line */
function perplexity({ before, after }) {
  const figure = (text) => withInterval(text.split("\n"));
  return html`${figure(before)}<span class="arrow">→</span>${figure(after)}`;
}

/** @param {{change: string, described: string}} figures */
function change({ change: text, described }) {
  return withInterval(text.split(/ (?=\[)/), described);
}

/**
 * @param {string[]} parts a number, and its interval if it has one
 * @param {string} [title]
 */
function withInterval([value, interval], title) {
  return html`<span class="figure" title=${title}>
    ${value}${interval && html`<span class="interval">${interval}</span>`}
  </span>`;
}
