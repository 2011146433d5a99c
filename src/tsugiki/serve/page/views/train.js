/** Train: bring data, see what they are and what would be learned, and start the run. */

import { getBlob, getJson, postJson } from "../api.js";
import { Actions, fail, Field, go, html, Input, t, Table, useEffect, useJson, useSoon, useState } from "../ui.js";
import { Aozora, ChosenData, Folder, Sent, useData } from "./train/data.js";
import { asked, dataOf, LENGTHS, offered, rolesAreSet, Setting, useDraft } from "./train/form.js";
import { Terms, WhatItIs } from "./train/what.js";

const API = "/page/api/train/";
const PAUSE = 300; // milliseconds after the last change, before the server is asked

/** @param {{ path: string[] }} props where the form gets its first values from */
export default function Train({ path }) {
  const [options] = useJson(`${API}options`);
  return options && html`<${Loaded} options=${options} path=${path} />`;
}

/** @param {{ options: any, path: string[] }} props what the form offers */
function Loaded({ options, path }) {
  const [draft, change] = useDraft(options);
  const [found, lookAgain] = useFound(draft, options);
  const data = useData(options, draft, change);
  usePath(path, change, data);
  const [result, show] = useState(/** @type {any} */ (null));
  const parts = { options, draft, change, data };
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
      <${Launch} ...${parts} found=${found} show=${show} />
    </div>
    <div class="results" aria-live="polite">${result && html`<${Plans} ...${result} />`}</div>
  `;
}

/** Fill in, once, what the address says: votes, a file that was sent, or a run that is to be started again. */
function usePath(/** @type {string[]} */ [what, ...names], change, { choose, sendAll }) {
  const name = names.join("/");
  useEffect(() => {
    const done = () => location.replace("#train"); // a reload keeps what the reader changes from now on
    const send = (votes) => sendAll([new File([votes], "votes.jsonl")], done);
    const fill = (again) => (change({ ...again, again }), done());
    if (what === "sent") choose(name, true), done();
    if (what === "votes") getBlob("/page/api/votes/file").then(send, fail);
    if (what === "again") getJson(`${API}again?name=${encodeURIComponent(name)}`).then(fill, fail);
  }, [what, name]);
}

/**
 * Ask the server, a while after the last change.
 *
 * @param {string} path
 * @param {unknown} body null: nothing is asked
 * @param {unknown} [of] what the answer depends on, if not on all of the body
 * @returns {[any, string]} the answer, null before; and what is wrong, "" if nothing is
 */
function useAnswer(path, body, of = body) {
  const wanted = JSON.stringify(body && of);
  const [[asked, ...answer], setAnswer] = useState(/** @type {any[]} */ ([]));
  useSoon(PAUSE, [wanted], async (signal) => {
    const shown = await (body && postJson(API + path, body, signal).catch((error) => error));
    if (!signal.aborted) setAnswer(shown instanceof Error ? [wanted, null, shown.message] : [wanted, shown, ""]);
  });
  return /** @type {[any, string]} */ (asked === wanted ? answer : [null, ""]);
}

/**
 * Return what the data are, with the first rows as they would be learned; and a function that reads the rows again,
 * with other settings. There is nothing without data.
 */
function useFound(draft, options) {
  const [turn, setTurn] = useState(0);
  const data = dataOf(draft);
  const isThere = data.texts.length + data.uploads.length > 0;
  const [seen, wrong] = useAnswer("look", isThere ? data : null);
  const looked = seen && draft.again?.kept.reward ? { ...seen, kind: "prompts" } : seen;
  const isKnown = looked && looked.kind !== "table" && rolesAreSet(draft);
  const body = isKnown && asked(draft, options, looked.kind);
  const of = [data, draft.base, turn];
  const reads = isKnown && looked.kind !== "prompts"; // else the run writes the answers
  const [preview, problem] = useAnswer("preview", reads ? { ...body, name: body.name || "preview" } : null, of);
  const state =
    wrong || problem ? "failed" : !looked ? "looking" : !isKnown ? "unknown" : preview || !reads ? "known" : "reading";
  const found = { rows: [], ...looked, state, preview, problem: wrong || problem };
  return [isThere ? found : null, () => setTurn(turn + 1)];
}

/** The name, the base, and the settings for this kind of data: the simple ones, and the others folded. */
function Run({ options, draft, change, kind }) {
  const isLength = ({ name }) => LENGTHS.includes(name);
  const settings = offered(options, draft, kind);
  const rest = settings.filter((one) => !isLength(one));
  const draw = (one, more = {}) =>
    html`<${Setting} key=${one.name} ...${{ setting: one, draft, change, options, kind, ...more }} />`;
  const lengths = options.settings.filter(isLength).map(({ name, label }) => [name, label]);
  return html`<section class="sheet">
    <h2>${t("run")}</h2>
    <div class="grid">
      <${Field} label=${t("name")} required maxlength="100" value=${draft.name} set=${(name) => change({ name })} />
      <div class="field">
        <span>${t("length")}</span>
        <div class="length">
          ${settings.filter(isLength).map((one) => draw(one, { bare: true }))}
          <${Input} aria-label=${t("length")} options=${lengths} value=${draft.length}
            set=${(length) => change({ length })} />
        </div>
      </div>
      <${Field} label=${t("base")} value=${draft.base} set=${(base) => change({ base })}
        options=${[...new Set([...options.bases, draft.base])].map((one) => [one, one])} />
    </div>
    ${rest.filter((one) => one.simple).map((one) => draw(one))}
    <details open=${draft.isAdvanced} onToggle=${(event) => change({ isAdvanced: event.target.open })}>
      <summary>${t("more")}</summary>
      <div class="grid">${rest.filter((one) => !one.simple).map((one) => draw(one))}</div>
      <details class="help">
        <summary>${t("help")}</summary><${Terms} of=${rest.map(({ label, help }) => [label, help])} />
      </details>
    </details>
  </section>`;
}

/** What will run, and the buttons that plan and start it. */
function Launch({ options, draft, change, found, show }) {
  const body = asked(draft, options, found?.kind);
  const missing = whatIsMissing(draft, found);
  const [checked, problem] = useAnswer("settings", missing ? null : body);
  const post = (path, more = {}) => postJson(API + path, { ...body, ...more });
  const plan = async () => show({ of: "plan", ...(await post("plan")) });
  const compare = async () => {
    const rows = [];
    let headers = [];
    for (const base of options.bases) {
      const planned = await post("plan", { base }).catch((error) => error);
      headers = planned.headers ?? headers;
      rows.push([base, ...(planned.rows?.[0] ?? [planned.message])]);
      show({ of: "compare", headers: [t("base"), ...headers], rows });
    }
  };
  const start = async () => {
    const { run } = await postJson("/v1/fine_tuning/jobs", { settings: body });
    change({ name: "" });
    go("runs", run.name);
  };
  const said = missing ? t(missing) : problem;
  return html`<section class="sheet launch">
    <h2>${t("what")}</h2>
    ${draft.again && html`<h3>${t("kept", { name: draft.again.again })}</h3>
      <${Terms} of=${Object.entries(draft.again.kept).map(([name, value]) => [name, JSON.stringify(value)])} />
      <${Actions} of=${[[true, t("kept.leave"), () => change({ again: null }), "quiet"]]} />`}
    ${said && html`<p class=${missing ? "note faint" : "note"} role="status">${said}</p>`}
    ${!said && checked && html`<${Will} ...${checked} />`}
    <${Actions} isOff=${missing || !checked} of=${[
      [true, t("plan"), plan, "", { during: t("busy") }],
      [options.bases.length > 1, t("compare"), compare, "", { during: t("busy") }],
      [true, t("start"), start, "primary"],
    ]} />
    <p class="faint small">${t("survives")}</p>
  </section>`;
}

/** The command and the settings of the run. */
function Will({ command, file, yaml }) {
  return html`<div class="will">
    <h3>${t("command")}</h3>
    <pre tabindex="0">${command}</pre>
    <h3>${t("settings")} <span class="mono">${file}</span></h3>
    <pre tabindex="0">${yaml}</pre>
  </div>`;
}

/** Return the key of what a reader has to do first; "": nothing. */
function whatIsMissing(draft, found) {
  const first = { failed: "mend", unknown: "columns.first", looking: "looking" };
  return found ? (first[found.state] ?? (draft.name.trim() ? "" : "give_name")) : "choose";
}

/** @param {any} props what was planned; lines, and a table: the ways to run, or the first one of each base */
function Plans({ of, lines = [], headers, rows, fits = true }) {
  return html`<section class="sheet" data-result=${of}>
    <h2>${t(of)}</h2>
    ${lines.map((line) => html`<p class="small">${line}</p>`)}
    ${!fits && html`<p class="note">${t("plan.none")}</p>`}
    <${Table} headers=${headers} rows=${rows} />
  </section>`;
}
