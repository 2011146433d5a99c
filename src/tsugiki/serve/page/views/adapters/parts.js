/** What the table and the page of an adapter share. */

import { html, useApp } from "../../ui.js";

/** @typedef {import("../adapters.js").Adapter} Adapter */

const ORIGINS = {
  train: "origin.train",
  combine: "origin.combine",
  scale: "origin.scale",
  truncate: "origin.truncate",
  extract: "origin.extract",
  import: "origin.import",
};

/** @param {{ one: Adapter }} props where an adapter comes from, in a few words */
export function Origin({ one }) {
  const { t } = useApp();
  if (!one.origin) return "–";
  const { operation, data, sources } = one.origin;
  const names = sources
    .map(({ name, weight }) => (weight === null ? name : `${Number(weight.toPrecision(4))} ${name}`))
    .join(" + ");
  const key = ORIGINS[operation];
  const text = key ? t(key, { data: lastPart(data ?? ""), names }) : `${operation}: ${names}`;
  return html`<span>${text}</span>`;
}

/** @param {string} path its last part; a name stays as it is */
function lastPart(path) {
  return path.split(/[/\\]/).filter(Boolean).at(-1) ?? path;
}

/** @param {{ one: Adapter }} props its peculiarities */
export function Tags({ one }) {
  const { t } = useApp();
  const base = lastPart(one.base ?? "?");
  return html`
    ${one.loaded && html`<span class="tag" title=${t("loaded.title")}>${t("loaded")}</span>`}
    ${one.given && html`<span class="tag" title=${t("given.title")}>${t("given")}</span>`}
    ${one.chat && html`<span class="tag" title=${t("chat.title")}>${t("chat")}</span>`}
    ${one.other_base && html`<span class="tag other" title=${one.other_base}>${t("other_base", { base })}</span>`}
  `;
}
