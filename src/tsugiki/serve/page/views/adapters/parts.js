/** What the table and the page of an adapter share. */

import { h } from "../../dom.js";

const ORIGINS = {
  train: "origin.train",
  combine: "origin.combine",
  scale: "origin.scale",
  truncate: "origin.truncate",
  extract: "origin.extract",
  import: "origin.import",
};

/**
 * Say where an adapter comes from, in a few words.
 *
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Adapter} one
 * @returns {HTMLElement | string}
 */
export function originText(app, one) {
  if (!one.origin) return "–";
  const { operation, data, sources } = one.origin;
  const names = sources.map((source) => sourceText(source)).join(" + ");
  const key = ORIGINS[operation];
  const text = key ? app.t(key, { data: lastPart(data ?? ""), names }) : `${operation}: ${names}`;
  return h("span", { title: data }, text);
}

/** @param {string} path its last part; a name stays as it is */
function lastPart(path) {
  return path.split(/[/\\]/).filter(Boolean).at(-1) ?? path;
}

/** @param {import("../adapters.js").Source} source with its weight, as in a sum */
export function sourceText(source) {
  return source.weight === null ? source.name : `${Number(source.weight.toPrecision(4))} ${source.name}`;
}

/**
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Adapter} one
 * @returns {HTMLElement[]} its peculiarities
 */
export function tags(app, one) {
  const { t } = app;
  const base = lastPart(one.base ?? "?");
  return [
    one.loaded && h("span.tag", { title: t("loaded.title") }, t("loaded")),
    one.given && h("span.tag", { title: t("given.title") }, t("given")),
    one.chat && h("span.tag", { title: t("chat.title") }, t("chat")),
    one.other_base && h("span.tag.other", { title: one.other_base }, t("other_base", { base })),
  ].filter(Boolean);
}

/**
 * @param {import("../../app.js").App} app
 * @param {number} seconds since 1970
 */
export function dateText(app, seconds) {
  return new Intl.DateTimeFormat(app.lang, { dateStyle: "medium" }).format(new Date(seconds * 1000));
}
