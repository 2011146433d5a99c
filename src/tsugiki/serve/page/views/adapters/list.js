/** The library as a table. */

import { button, fill, h } from "../../dom.js";
import { dateText, originText, tags } from "./parts.js";

const MANY = 8; // adapters above which there is a field to filter them
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

/**
 * @param {HTMLElement} root
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Library} library
 * @param {(names: string[]) => void} mix shows a mix of adapters
 */
export function showList(root, app, library, mix) {
  const { t } = app;
  const { adapters } = library;
  const chosen = new Set();
  const heading = h("div.heading", {}, h("h1", {}, t("title")));
  root.append(heading);
  if (!adapters.length) {
    root.append(h("p", {}, t("none")), h("p.faint", {}, h("a", { href: "#train" }, t("none.hint"))));
    return;
  }
  const body = h("tbody");
  const bar = h("div.chosen", { hidden: true });
  const columns = Object.values(COLUMNS);
  const table = h(
    "table.library",
    {},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", {}, h("span.unseen", {}, t("choose"))),
        ...columns.map((key) => h("th", { scope: "col" }, t(key))),
      ),
    ),
    body,
  );

  const drawBar = () => {
    bar.hidden = chosen.size === 0;
    const names = [...chosen];
    fill(
      bar,
      h("span", {}, names.join(app.lang === "ja" ? "、" : ", ")),
      button(t("mix_them"), () => mix(names), { class: "primary" }),
    );
    for (const box of body.querySelectorAll("input")) {
      box.disabled = !box.checked && chosen.size >= MOST_MIXED;
    }
  };
  /** @param {string} wanted a part of the names that are shown */
  const drawRows = (wanted) => {
    const found = adapters.filter((one) => one.name.toLowerCase().includes(wanted.toLowerCase()));
    fill(body, ...found.map((one) => row(app, one, chosen, drawBar)));
    if (!found.length) fill(body, h("tr", {}, h("td", { colspan: columns.length + 1 }, t("no_match"))));
  };

  if (adapters.length > MANY) {
    const filter = h("input", { type: "search", placeholder: t("filter"), "aria-label": t("filter") });
    filter.addEventListener("input", () => drawRows(filter.value));
    heading.append(h("div.filter", {}, filter));
  }
  drawRows("");
  const count = t(adapters.length === 1 ? "one" : "count", { count: adapters.length, base: library.base });
  root.append(h("p.faint.lead", {}, count), table, bar, h("p.faint.small.note", {}, t("explained")));
}

/**
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Adapter} one
 * @param {Set<string>} chosen names; changed by the row's box
 * @param {() => void} changed
 */
function row(app, one, chosen, changed) {
  const { t } = app;
  const name = h("a.name", { href: `#adapters/${encodeURIComponent(one.name)}` }, one.name);
  if (one.broken) {
    const broken = h("p.broken", {}, t("broken", { problem: one.broken }));
    return h("tr", {}, h("td"), h("td", { colspan: 7 }, h("span.name", {}, one.name), broken));
  }
  const box = h("input", { type: "checkbox", "aria-label": t("choose_one", { name: one.name }) });
  box.checked = chosen.has(one.name);
  box.addEventListener("change", () => {
    if (box.checked) chosen.add(one.name);
    else chosen.delete(one.name);
    changed();
  });
  const figures = one.held_out;
  const cell = (key, ...children) => h("td", { dataset: { label: t(COLUMNS[key]), column: key } }, ...children);
  return h(
    "tr",
    {},
    h("td", { dataset: { column: "box" } }, one.mixes && !one.other_base && box),
    h("td", { dataset: { column: "name" } }, name, tags(app, one)),
    cell("method", one.method, h("span.faint", {}, ` r\u00a0${one.rank}`)),
    cell("size", one.size),
    cell("perplexity", figures ? perplexity(figures) : "–"),
    cell("change", figures ? change(figures) : "–"),
    cell("origin", originText(app, one)),
    cell("changed", dateText(app, one.changed)),
  );
}

/** @param {{before: string, after: string}} figures the numbers, each with its interval in a second line */
function perplexity(figures) {
  const [before, after] = [figures.before, figures.after].map((text) => {
    const [value, interval] = text.split("\n");
    return h("span.figure", {}, value, interval && h("span.interval", {}, interval));
  });
  return [before, h("span.arrow", {}, "→"), after];
}

/** @param {{change: string, described: string}} figures */
function change(figures) {
  const [value, interval] = figures.change.split(/ (?=\[)/);
  return h("span.figure", { title: figures.described }, value, interval && h("span.interval", {}, interval));
}
