/**
 * Markdown as models write it: headings, lists, quotes, tables, code, bold and italic. Everything becomes elements with
 * text in them, and a link is shown as its text and its address, so that what a model writes cannot act.
 */

import { h, table } from "../../dom.js";

const FENCE = /^\s*```/;
const HEADING = /^#{1,6} +(.*)/;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)]) +(.*)/;
const QUOTE = /^> ?(.*)/;
const ROW = /^\s*\|(.*)\|\s*$/;
const RULE = /^\s*\|[\s:|-]+\|\s*$/;
const SPAN = /(`+)(.+?)\1|\*\*(.+?)\*\*|\*(\S(?:[^*]*\S)?)\*|\[([^\]]+)\]\((https?:[^)\s]+)\)/g;
const BLOCKS = [FENCE, HEADING, ITEM, QUOTE, ROW];

/** @param {string} text @returns {boolean} whether it has any markup */
export function hasMarkup(text) {
  return text.split("\n").some((line) => BLOCKS.some((block) => block.test(line))) || text.search(SPAN) >= 0;
}

/**
 * @param {string} text
 * @returns {HTMLElement[]}
 */
export function markdown(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  /** Take the lines from here on that match. */
  const take = (matches) => {
    const start = at;
    while (at < lines.length && matches(lines[at])) at += 1;
    return lines.slice(start, at);
  };
  while (at < lines.length) {
    const line = lines[at];
    if (FENCE.test(line)) {
      at += 1;
      blocks.push(h("pre", { tabindex: 0 }, take((one) => !FENCE.test(one)).join("\n")));
      at += 1;
    } else if (HEADING.test(line)) {
      blocks.push(h("p.title", {}, spans(line.match(HEADING)[1])));
      at += 1;
    } else if (ITEM.test(line)) {
      const start = line.match(ITEM)[1];
      const items = take((one) => ITEM.test(one)).map((one) => h("li", {}, spans(one.match(ITEM)[2])));
      blocks.push(start ? h("ol", { start }, items) : h("ul", {}, items));
    } else if (QUOTE.test(line)) {
      const quoted = take((one) => QUOTE.test(one)).map((one) => one.match(QUOTE)[1]);
      blocks.push(h("blockquote", {}, markdown(quoted.join("\n"))));
    } else if (ROW.test(line) && RULE.test(lines[at + 1] ?? "")) {
      const cells = (row) => row.match(ROW)[1].split("|").map((cell) => spans(cell.trim()));
      const [headers, , ...rows] = take((one) => ROW.test(one));
      blocks.push(table({ headers: cells(headers), rows: rows.map(cells) }));
    } else if (line.trim()) {
      const first = at;
      const rest = take((one) => one.trim() && (at === first || !BLOCKS.some((block) => block.test(one))));
      blocks.push(h("p", {}, spans(rest.join("\n"))));
    } else at += 1;
  }
  return blocks;
}

/** @param {string} text @returns {import("../../dom.js").Child[]} code, bold, italic and the texts between them */
function spans(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(SPAN)) {
    const [whole, , code, bold, italic, label, address] = found;
    parts.push(text.slice(end, found.index));
    if (code) parts.push(h("code", {}, code));
    else if (bold) parts.push(h("strong", {}, spans(bold)));
    else if (italic) parts.push(h("em", {}, spans(italic)));
    else parts.push(`${label} (${address})`);
    end = found.index + whole.length;
  }
  return [...parts, text.slice(end)];
}
