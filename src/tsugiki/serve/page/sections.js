/** Sections of a run or an adapter as the server sends them: headings, and parts of several kinds. */

import { newChart } from "./chart.js";
import { h, table } from "./dom.js";

/**
 * @typedef {{ name: string, heading: string, parts: any[] }} Section
 *
 * @param {import("./app.js").App} app
 * @param {string} keys says that the arrow keys read a chart
 * @returns {(sections: Section[]) => HTMLElement[]} draws sections; a chart keeps its cursor when it is drawn again
 */
export function sectionsDrawer({ lang, signal }, keys) {
  const charts = new Map();
  const kinds = {
    lead: ({ text }) => h("p.sentence", {}, text),
    sentence: ({ text }) => h("p.faint.small", {}, text),
    note: ({ text }) => h("p.note", {}, text),
    facts: ({ rows }) => h("p.small.figures", {}, rows.map(([label, text]) => h("span", {}, `${label} ${text}`))),
    lines: ({ rows }) => {
      const row = ([label, text]) => h("tr", {}, h("th", { scope: "row" }, label), h("td", {}, text));
      return h("table.facts", {}, rows.map(row));
    },
    table,
    samples: ({ prompt, texts }) =>
      h(
        "div.samples",
        {},
        texts.map(([label, text]) =>
          h("figure.sample", {}, h("figcaption", {}, label), h("p", {}, h("span.faint", {}, prompt), text)),
        ),
      ),
    curves: (curves) => {
      const { caption } = curves;
      if (!charts.has(caption)) charts.set(caption, newChart(caption, keys, lang, signal));
      const chart = charts.get(caption);
      chart.draw(curves);
      return chart.element;
    },
  };
  return (sections) =>
    sections
      .filter(({ parts }) => parts.length)
      .map(({ heading, parts }) => {
        const plots = parts.filter(({ kind }) => kind === "curves");
        const others = parts.filter(({ kind }) => kind !== "curves");
        return h(
          "section",
          {},
          heading && h("h2", {}, heading),
          others.map((part) => kinds[part.kind](part)),
          plots.length > 0 && h("div.charts", {}, plots.map(kinds.curves)),
        );
      });
}
