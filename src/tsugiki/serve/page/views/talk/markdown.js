/**
 * Markdown as models write it. marked finds what it is made of, and each part becomes an element with text in it; HTML
 * stays as it was written, so that what a model writes cannot act.
 */

import { html, Table } from "../../ui.js";
import { lexer } from "../../vendor/marked.js";

/** @typedef {import("../../vendor/marked.js").Token} Token */
/** @typedef {import("../../ui.js").Child} Child */

const PLAIN = ["space", "paragraph", "text", "escape", "br"];
const BOLD = /\*\*(.+?)\*\*/; // beside a Japanese bracket it is none in CommonMark

/** @type {Record<string, (token: any) => Child>} */
const KINDS = {
  space: () => "",
  br: () => "\n",
  hr: () => html`<hr />`,
  heading: (one) => html`<p class="title">${within(one)}</p>`,
  paragraph: (one) => html`<p>${within(one)}</p>`,
  blockquote: (one) => html`<blockquote>${within(one)}</blockquote>`,
  code: ({ text }) => html`<pre tabindex="0">${text}</pre>`,
  list: ({ ordered, start, items }) => {
    const drawn = items.map((item) => html`<li>${within(item)}</li>`);
    return ordered ? html`<ol start=${start}>${drawn}</ol>` : html`<ul>${drawn}</ul>`;
  },
  checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  table: ({ header, rows }) =>
    html`<${Table} headers=${header.map(within)} rows=${rows.map((row) => row.map(within))} />`,
  strong: (one) => html`<strong>${within(one)}</strong>`,
  em: (one) => html`<em>${within(one)}</em>`,
  del: (one) => (one.raw.startsWith("~~") ? html`<del>${within(one)}</del>` : ["~", within(one), "~"]),
  codespan: ({ text }) => html`<code>${text}</code>`,
  link: (one) => link(one.href, within(one)) ?? one.raw,
  image: (one) => link(one.href, one.text || one.href) ?? one.raw,
  escape: ({ text }) => text,
  text: (one) => (one.tokens ? within(one) : bold(one.text)),
  html: ({ raw, block }) => (block ? html`<p>${raw}</p>` : raw),
};

/** @param {string} text @returns {Child} the elements that it becomes */
export function markdown(text) {
  return lexer(text).map(draw);
}

/** @param {string} text @returns {boolean} whether it has any markup */
export function hasMarkup(text) {
  const isMarked = (one) => !PLAIN.includes(one.type) || (one.tokens ?? []).some(isMarked);
  return BOLD.test(text) || lexer(text).some(isMarked);
}

/** @param {Token} token @returns {Child} */
function draw(token) {
  return KINDS[token.type]?.(token) ?? token.raw;
}

/** @param {Token} token @returns {Child} what it holds; "" if that is nothing */
function within({ tokens }) {
  return tokens?.length ? tokens.map(draw) : "";
}

/** @param {string} text @returns {Child} */
function bold(text) {
  return text.split(BOLD).map((part, index) => (index % 2 ? html`<strong>${part}</strong>` : part));
}

/** @param {string} address @param {Child} text @returns {Child} null: it is no address of a page */
function link(address, text) {
  if (!/^https?:/i.test(address)) return null;
  return html`<a href=${address} target="_blank" rel="noopener noreferrer nofollow">${text}</a>`;
}
