/** The page's texts: `messages/<part>.<language>.json`, keys and texts with {placeholders}. */

import { getJson } from "./api.js";

/** @typedef {(key: string, values?: Record<string, string | number>) => string} Translate */

/**
 * Load the texts of a part of the page.
 *
 * @param {string} part a view, or "shell"
 * @param {string} lang "en" or "ja"
 * @returns {Promise<Translate>} a function that returns the text of a key; numbers are written as the language does
 */
export async function loadMessages(part, lang) {
  const texts = await getJson(`/page/messages/${part}.${lang}.json`);
  const numbers = new Intl.NumberFormat(lang, { maximumSignificantDigits: 6 });
  return (key, values = {}) => {
    if (!(key in texts)) throw new Error(`no text for ${part}.${key}`);
    return texts[key].replace(/\{(\w+)\}/g, (_, name) =>
      typeof values[name] === "number" ? numbers.format(values[name]) : values[name],
    );
  };
}
