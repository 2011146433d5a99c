/** Being written. */

import { h } from "../dom.js";

/**
 * @param {HTMLElement} root
 * @param {import("../app.js").App} app
 */
export function render(root, app) {
  root.append(h("p.faint", {}, app.t("coming")));
}
