/** The view Adapters: the library as a table, a page for each adapter, and mixes of several. */

import { html, mountOf, useApp, useJson } from "../ui.js";
import { List } from "./adapters/list.js";
import { Mix } from "./adapters/mix.js";
import { One } from "./adapters/one.js";

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

export const mount = mountOf(Adapters);

function Adapters() {
  const { path } = useApp();
  return html`<${Loaded} key=${path.join("/")} path=${path} />`;
}

/** @param {{ path: string[] }} props nothing, an adapter, or MIX and adapters; the library is loaded for each */
function Loaded({ path }) {
  const { go } = useApp();
  const [library] = useJson("/page/api/adapters");
  const [first, ...names] = path;
  if (!library) return null;
  if (!first) return html`<${List} library=${library} mix=${(...chosen) => go("adapters", MIX, ...chosen)} />`;
  if (first === MIX) return html`<${Mix} library=${library} names=${names} />`;
  return html`<${One} library=${library} name=${first} mix=${() => go("adapters", MIX, first)} />`;
}
