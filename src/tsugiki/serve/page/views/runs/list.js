/** The runs: those that wait, in their order, and the others, of which some can be chosen to be shown in one chart. */

import { getJson, postJson } from "../../api.js";
import { Chosen, Filter, html, MANY, useApp, useState, useWork } from "../../ui.js";
import { API, COMPARED, heldOut, leftText, Progress, stepText, Tag, useLive, whatText } from "./parts.js";

const MOST = 4; // runs in one chart

export function List() {
  const { t, go, signal } = useApp();
  const [answer, reload] = useLive(() => getJson(`${API}runs`, signal), ({ runs }) => runs);
  const [wanted, setWanted] = useState("");
  const [chosen, setChosen] = useState(/** @type {string[]} */ ([]));
  const heading = (filter) => html`<div class="heading">
    <h1>${t("title")}</h1>
    ${filter}
    <button type="button" class="primary" onClick=${() => go("train")}>${t("new")}</button>
  </div>`;
  if (!answer) return heading(null);
  const { runs, more } = answer;
  const waiting = runs.filter((run) => run.place).sort((a, b) => a.place - b.place);
  const others = runs.filter((run) => !run.place && run.name.toLowerCase().includes(wanted.toLowerCase()));
  const names = chosen.filter((name) => runs.some((run) => run.name === name));
  const choose = (name, isChosen) => setChosen([...names.filter((one) => one !== name), ...(isChosen ? [name] : [])]);
  return html`
    ${heading(runs.length > MANY && html`<${Filter} label=${t("filter")} value=${wanted} onInput=${setWanted} />`)}
    ${waiting.length > 0 && html`<${Queue} waiting=${waiting} reload=${reload} />`}
    ${!runs.length &&
    html`<div class="sheet empty"><p>${t("none")}</p><p class="faint small">${t("none.hint")}</p></div>`}
    <ul class="runs">
      ${others.map((run) => {
        const isChosen = names.includes(run.name);
        return html`<li key=${run.name}>
          <input type="checkbox" aria-label=${t("choose", { name: run.name })} checked=${isChosen}
            disabled=${!run.steps || (!isChosen && names.length >= MOST)}
            onChange=${(event) => choose(run.name, event.target.checked)} />
          <${Card} run=${run} />
        </li>`;
      })}
    </ul>
    <${Chosen} names=${names} least=${2} text=${t("compare")} act=${(...these) => go("runs", COMPARED, ...these)} />
    ${others.length > 1 && html`<p class="faint small">${t("compare.hint")}</p>`}
    ${more && html`<p class="faint small">${t("more")}</p>`}
  `;
}

/** @param {{ run: import("./parts.js").Run }} props */
function Card({ run }) {
  const app = useApp();
  const { t, lang } = app;
  const date = () => new Date(run.changed * 1000).toLocaleString(lang, { dateStyle: "medium", timeStyle: "short" });
  const left = run.seconds_left;
  return html`<a class="sheet run" href=${`#runs/${encodeURIComponent(run.name)}`}>
    <span class="top"><strong>${run.name}</strong><${Tag} run=${run} /></span>
    <span class="faint small">${(run.error ?? run.reason ?? whatText(run)) || t("no_record")}</span>
    ${run.steps &&
    html`<${Progress} run=${run} />
      <span class="bottom small">
        <span>${stepText(run, t)}</span>
        <span>${typeof left === "number" ? leftText(left, t) : heldOut(run, app) ?? date()}</span>
      </span>`}
  </a>`;
}

/** @param {{ waiting: import("./parts.js").Run[], reload: () => Promise<void> }} props */
function Queue({ waiting, reload }) {
  const { t, signal } = useApp();
  const [, work] = useWork();
  const change = (event, path, body) => {
    const button = event.currentTarget;
    return work(path, async () => {
      await postJson(`${API}runs/${path}`, body, signal);
      await reload();
      button.focus(); // its row may have moved
    });
  };
  const move = (event, { name, place }, by) => change(event, "queue", { name, place: Math.max(1, place + by) });
  const button = (text, key, name, act) =>
    html`<button type="button" class="quiet" aria-label=${t(key, { name })} title=${t(key, { name })} onClick=${act}>
      ${text}
    </button>`;
  return html`<section class="queue">
    <h2>${t("queue")}</h2>
    <ol class="sheet">
      ${waiting.map((run) => {
        const { name } = run;
        return html`<li key=${name}>
          <span class="number">${run.place}</span>
          <a href=${`#runs/${encodeURIComponent(name)}`}>${name}</a>
          ${waiting.length > 1 && button("↑", "earlier", name, (event) => move(event, run, -1))}
          ${waiting.length > 1 && button("↓", "later", name, (event) => move(event, run, 1))}
          ${button("×", "take_out", name, (event) => change(event, "stop", { name }))}
        </li>`;
      })}
    </ol>
    <p class="faint small">${t("queue.hint")}</p>
  </section>`;
}
