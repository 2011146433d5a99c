/** The page's texts: `messages/<part>.<language>.json`, keys and texts with {placeholders}. */

import { getJson } from "./api.js";

/** @typedef {(key: string, values?: Record<string, string | number>) => string} Translate */

/** The language, "en" or "ja". */
export let lang = "en";
/** Return the text of a key, of the view that is shown or of the frame. @type {Translate} */
export let t = noText;

/** @param {string} of the language @param {Translate} texts that are used from now on */
export function speak(of, texts) {
  [lang, t] = [of, texts];
}

/**
 * Load the texts of a part of the page.
 *
 * @param {string} part a view, or "shell"
 * @param {string} of the language
 * @param {Translate} [others] has the keys that the part lacks
 * @returns {Promise<Translate>} a function that returns the text of a key; numbers are written as the language does
 */
export async function loadMessages(part, of, others = noText) {
  const texts = await getJson(`/page/messages/${part}.${of}.json`, null);
  const numbers = new Intl.NumberFormat(of, { maximumSignificantDigits: 6 });
  const written = (value) => (typeof value === "number" ? numbers.format(value) : value);
  return (key, values = {}) =>
    key in texts ? texts[key].replace(/\{(\w+)\}/g, (_, name) => written(values[name])) : others(key, values);
}

/** @param {string} key @returns {string} */
function noText(key) {
  throw new Error(`no text for ${key}`);
}
