/** Train: bring data, see what they are and what would be learned, and start the run. */

import { getJson, postJson } from "../api.js";
import { Field, html, mountOf, Select, useApp, useEffect, useJson, useState, useWork } from "../ui.js";
import { Aozora } from "./train/aozora.js";
import { ChosenData, Folder, Sent, useData } from "./train/data.js";
import { asked, dataOf, rolesAreSet, useDraft } from "./train/draft.js";
import { LENGTHS, offered, Setting } from "./train/form.js";
import { Bases, Plan } from "./train/results.js";
import { WhatItIs } from "./train/what.js";

const API = "/page/api/train/";
const PAUSE = 400; // milliseconds after the last change, before the server is asked

export const mount = mountOf(Train);

function Train() {
  const [options] = useJson(`${API}options`);
  return options && html`<${Loaded} options=${options} />`;
}

/** @param {{ options: any }} props what the form offers */
function Loaded({ options }) {
  const { t } = useApp();
  const [draft, change] = useDraft(options);
  const [busy, work] = useWork();
  const [found, lookAgain] = useFound(draft, options);
  const data = useData(draft, change, work);
  usePath(draft, change, data.choose);
  const results = useState(/** @type {any} */ ({}));
  const parts = { options, draft, change, busy, work, data };
  return html`
    <div class="heading"><h1>${t("title")}</h1></div>
    <div class="columns">
      <div class="form">
        <section class="sheet">
          <h2>${t("texts")}</h2>
          <${ChosenData} ...${parts} /><${Sent} ...${parts} /><${Folder} ...${parts} /><${Aozora} ...${parts} />
        </section>
        ${found && html`<${WhatItIs} ...${{ found, draft, change, again: lookAgain }} />`}
        <${Run} ...${parts} kind=${found?.kind} />
      </div>
      <${Launch} ...${parts} found=${found} results=${results} />
    </div>
    <div class="results" aria-live="polite">
      ${results[0].bases && html`<${Bases} plans=${results[0].bases} />`}
      ${results[0].plan && html`<${Plan} ...${results[0].plan} />`}
    </div>
  `;
}

/** Fill in what the address says: votes, a file that was sent, or a run that is to be started again. */
function usePath(draft, change, choose) {
  const { path, signal, fail } = useApp();
  const [what, ...names] = path;
  const name = names.join("/");
  useEffect(() => {
    if (what === "sent" && !draft.uploads.includes(name)) choose(name, true, "uploads");
    const take = (votes) => choose(votes.name, true, "uploads");
    if (what === "votes") postJson(`${API}votes`, {}, signal).then(take, fail);
    if (what === "again") getJson(`${API}again?name=${encodeURIComponent(name)}`, signal).then(change, fail);
  }, [what, name]);
}

/**
 * Return what the data are, as soon as they do not change any more, with the first rows as they would be learned; and
 * a function that reads the rows again. There is nothing without data.
 */
function useFound(draft, options) {
  const { signal } = useApp();
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [turn, setTurn] = useState(0);
  const data = dataOf(draft);
  useEffect(() => {
    if (!data.texts.length && !data.uploads.length) {
      setFound(null);
      return undefined;
    }
    const controller = new AbortController();
    const own = AbortSignal.any([signal, controller.signal]);
    const read = async () => {
      let now = { rows: [] };
      const show = (more) => own.aborted || setFound((now = { ...now, ...more }));
      try {
        show({ state: "looking" });
        show(await postJson(`${API}look`, data, own));
        if (now.kind === "table" || !rolesAreSet(draft)) return show({ state: "unknown" });
        show({ state: "reading" });
        const body = asked(draft, options, now.kind);
        const preview = await postJson(`${API}preview`, { ...body, name: body.name || "preview" }, own);
        show({ state: "known", preview });
      } catch (error) {
        show({ state: "failed", problem: error.message });
      }
      return undefined;
    };
    const timer = setTimeout(read, PAUSE);
    return () => (clearTimeout(timer), controller.abort());
  }, [JSON.stringify(data), draft.base, turn]);
  return [found, () => setTurn(turn + 1)];
}

/** The name, the base, and the settings for this kind of data: the simple ones, and the others folded. */
function Run({ options, draft, change, kind }) {
  const { t } = useApp();
  const settings = offered(options, draft, kind);
  const lengths = settings.filter(({ name }) => LENGTHS.includes(name));
  const rest = settings.filter(({ name }) => !LENGTHS.includes(name));
  const more = rest.filter((one) => !one.simple);
  const draw = (setting) => html`<${Setting} key=${setting.name} ...${{ setting, draft, change, options, kind }} />`;
  const labels = options.settings.filter(({ name }) => LENGTHS.includes(name)).map(({ name, label }) => [name, label]);
  return html`<section class="sheet">
    <h2>${t("run")}</h2>
    <div class="grid">
      <${Field} label=${t("name")}>
        <input value=${draft.name} required maxlength="100"
          onInput=${(event) => change({ name: event.target.value })} />
      <//>
      <div class="field">
        <span>${t("length")}</span>
        <div class="length">
          ${lengths.map((setting) => html`<${Setting} ...${{ setting, draft, change, options, bare: true }} />`)}
          <${Select} aria-label=${t("length")} options=${labels} value=${draft.length}
            onChoose=${(length) => change({ length })} />
        </div>
      </div>
      <${Field} label=${t("base")}>
        <${Select} options=${options.bases.map((one) => [one, one])} value=${draft.base}
          onChoose=${(base) => change({ base })} />
      <//>
    </div>
    ${rest.filter((one) => one.simple).map(draw)}
    <details open=${draft.isAdvanced} onToggle=${(event) => change({ isAdvanced: event.target.open })}>
      <summary>${t("more")}</summary>
      <div class="grid">${more.map(draw)}</div>
      <details class="help">
        <summary>${t("help")}</summary>
        <dl class="counts">${rest.map(({ label, help }) => html`<dt>${label}</dt><dd>${help}</dd>`)}</dl>
      </details>
    </details>
  </section>`;
}

/** What will run, and the buttons that plan and start it. */
function Launch({ options, draft, change, busy, work, found, results }) {
  const { t, go, signal } = useApp();
  const body = asked(draft, options, found?.kind);
  const missing = whatIsMissing(draft, found, t);
  const [checked, problem] = useChecked(missing ? null : body);
  const isReady = checked && !missing && !busy;
  const [shown, setShown] = results;
  const plan = () =>
    work("plan", async () => setShown({ ...shown, plan: await postJson(`${API}plan`, body, signal) }));
  const compare = () =>
    work("bases", async () => {
      const bases = [];
      for (const base of options.bases) {
        bases.push([base, await postJson(`${API}plan`, { ...body, base }, signal).catch((error) => error)]);
        setShown({ ...shown, bases: [...bases] });
      }
    });
  const start = () =>
    work("start", async () => {
      const { run } = await postJson(`${API}start`, body, signal);
      change({ name: "" });
      go("runs", run);
    });
  const act = (name, does, text = t(name), kind = "") =>
    html`<button type="button" class=${kind} disabled=${!isReady} onClick=${does}>${text}</button>`;
  const said = missing || problem;
  return html`<section class="sheet launch">
    <h2>${t("what")}</h2>
    ${said && html`<p class=${missing ? "note faint" : "note"} role="status">${said}</p>`}
    ${!said && checked && html`<${Will} ...${checked} />`}
    <div class="actions">
      ${act("plan", plan, t(busy === "plan" ? "busy" : "plan"))}
      ${options.bases.length > 1 && act("compare", compare, t(busy === "bases" ? "busy" : "compare"))}
      ${act("start", start, t("start"), "primary")}
    </div>
    <p class="faint small">${t("survives")}</p>
  </section>`;
}

/** The command and the settings of the run. */
function Will({ command, file, yaml }) {
  const { t } = useApp();
  return html`<div class="will">
    <h3>${t("command")}</h3>
    <pre tabindex="0">${command}</pre>
    <h3>${t("settings")} <span class="mono">${file}</span></h3>
    <pre tabindex="0">${yaml}</pre>
  </div>`;
}

/** Say what a reader has to do first; "": nothing. */
function whatIsMissing(draft, found, t) {
  if (!draft.texts.length && !draft.uploads.length) return t("choose");
  if (found?.state === "failed") return t("mend");
  if (found?.state === "unknown") return t("columns.first");
  if (!found || found.state === "looking") return t("looking");
  return draft.name.trim() ? "" : t("give_name");
}

/** Return the settings and the command of a run that the server accepts, or what is wrong with it; null: no run. */
function useChecked(body) {
  const { signal } = useApp();
  const [answer, setAnswer] = useState(/** @type {any} */ ([null, ""]));
  const wanted = JSON.stringify(body);
  useEffect(() => {
    setAnswer([null, ""]);
    if (!body) return undefined;
    const controller = new AbortController();
    const own = AbortSignal.any([signal, controller.signal]);
    const check = async () => {
      const answered = await postJson(`${API}settings`, body, own).then(
        (shown) => [shown, ""],
        (error) => [null, error.message],
      );
      if (!own.aborted) setAnswer(answered);
    };
    const timer = setTimeout(check, PAUSE);
    return () => (clearTimeout(timer), controller.abort());
  }, [wanted]);
  return answer;
}
