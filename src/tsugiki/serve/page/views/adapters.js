/** The view Adapters: the library as a table, a page for each adapter, and mixes of several. */

import { getJson } from "../api.js";
import { showList } from "./adapters/list.js";
import { showMix } from "./adapters/mix.js";
import { showOne } from "./adapters/one.js";

/** In the address in place of a name; no adapter can be called so. */
const MIX = "*mix";

/**
 * @typedef {object} Adapter a row of the table
 * @property {string} name
 * @property {string | null} broken what is wrong with it; then nothing else is known
 * @property {string} method
 * @property {string} rank
 * @property {string | null} base
 * @property {string | null} other_base why its base is not the one that is served
 * @property {string} size
 * @property {number} changed in seconds since 1970
 * @property {boolean} chat whether it has a chat template
 * @property {boolean} mixes whether it can be part of a mix
 * @property {boolean} loaded whether it is in memory
 * @property {boolean} given whether it was given when the server was started
 * @property {{before: string, after: string, change: string, described: string} | null} held_out
 * @property {{operation: string, data?: string, sources: Source[]} | null} origin
 *
 * @typedef {{name: string, weight: number | null}} Source an adapter that another one comes from
 *
 * @typedef {object} Library
 * @property {string} base the name of the base that is served
 * @property {Adapter[]} adapters
 */

/**
 * @param {HTMLElement} root
 * @param {import("../app.js").App} app
 */
export async function render(root, app) {
  /** @type {Library} */
  const library = await getJson("/page/api/adapters", app.signal);
  const [first, ...names] = app.path;
  if (!first) showList(root, app, library, (chosen) => app.go("adapters", MIX, ...chosen));
  else if (first === MIX) showMix(root, app, library, names);
  else await showOne(root, app, library, first, () => app.go("adapters", MIX, first));
}
