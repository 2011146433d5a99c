/** Runs: all below the working directory, with their queue; one, also while it trains; several in one chart. */

import { html, mountOf, useApp } from "../ui.js";
import { Compare } from "./runs/compare.js";
import { List } from "./runs/list.js";
import { One } from "./runs/one.js";
import { COMPARED } from "./runs/parts.js";

export const mount = mountOf(Runs);

function Runs() {
  const [first, ...rest] = useApp().path;
  if (first === COMPARED) return html`<${Compare} key=${rest.join(" ")} names=${rest} />`;
  const name = [first, ...rest].filter(Boolean).join("/");
  return name ? html`<${One} key=${name} name=${name} />` : html`<${List} />`;
}
