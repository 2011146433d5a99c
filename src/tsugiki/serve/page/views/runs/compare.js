/** Two to four runs in one chart for each figure, and in a table. */

import { getJson } from "../../api.js";
import { Chart } from "../../chart.js";
import { html, Table, useApp } from "../../ui.js";
import { API, heldOut, memoryText, stepText, Tag, useLive } from "./parts.js";

const COLUMNS = [
  "column.run", "column.state", "column.data", "column.method", "column.base", "column.rate", "column.steps",
  "column.held_out", "column.memory",
];

/** @param {{ names: string[] }} props */
export function Compare({ names }) {
  const app = useApp();
  const { t, signal } = app;
  const get = () => Promise.all(names.map((name) => getJson(`${API}run?name=${encodeURIComponent(name)}`, signal)));
  const [runs] = useLive(get, (all) => all);
  const row = (run) => [
    html`<a href=${`#runs/${encodeURIComponent(run.name)}`}>${run.name}</a>`,
    html`<${Tag} run=${run} />`,
    run.data ?? "–",
    run.method ?? "–",
    run.model ?? "–",
    run.learning_rate ?? "–",
    run.steps ? stepText(run, t) : "–",
    heldOut(run, app) ?? "–",
    memoryText(run, app) ?? "–",
  ];
  return html`
    <p class="small"><a href="#runs">← ${t("title")}</a></p>
    <h1>${t("compared")}</h1>
    ${runs &&
    html`<${Table} headers=${COLUMNS.map((key) => t(key))} rows=${runs.map(row)} />
      <div class="sections">
        <section>
          <h2>${t("curves")}</h2>
          <div class="charts">
            ${together(runs).map((one) => html`<${Chart} key=${one.caption} curves=${one} keys=${t("keys")} />`)}
          </div>
        </section>
      </div>`}
  `;
}

/**
 * Return the curves of runs as one chart for each figure and text, such as the loss on the held-out text. Lines for the
 * same text have the same colour in all runs; here, the lines of a run have.
 *
 * @param {import("./parts.js").Run[]} runs
 * @returns {import("../../chart.js").Curves[]}
 */
function together(runs) {
  /** @type {Map<string, import("../../chart.js").Curves>} */
  const found = new Map();
  for (const [colour, run] of runs.entries()) {
    const parts = (run.sections ?? []).flatMap((section) => section.parts).filter((part) => part.kind === "curves");
    for (const { caption, series } of parts) {
      for (const line of series) {
        const key = `${caption} ${line.colour}`;
        const chart = found.get(key) ?? { caption: `${caption} · ${line.name}`, series: [], kept: null };
        if (!line.faint) chart.series.push({ ...line, name: run.name, colour });
        found.set(key, chart);
      }
    }
  }
  return [...found.values()];
}
