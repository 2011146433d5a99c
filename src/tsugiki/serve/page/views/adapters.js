/** The view Adapters: the library as a table, a page for each adapter, and mixes of several. */

import { getBlob, postJson } from "../api.js";
import { Sections } from "../sections.js";
import { Actions, ask, fail, Field, Form, go, html, Input, lang, Quiet, saveFile, t } from "../ui.js";
import { useChoice, useJson, useSoon, useState } from "../ui.js";
import { generate } from "./talk/generate.js";

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

/** @typedef {Record<string, number>} Weights names of adapters and the factors on their updates */
/** @typedef {{ prompt: string, seed: string, length: string }} Wanted */

/** In the address in place of a name; no adapter can be called so. */
const MIX = "*mix";
const MOST = 8; // adapters, as the server allows
const PAUSE = 350; // ms without a change before the mix writes again
const LARGEST = 100; // weight, as the server allows
const KEPT = "tsugiki.mix.prompt";

const COLUMNS = ["name", "method", "size", "perplexity", "change", "origin", "changed"];
const OPERATIONS = ["train", "combine", "scale", "truncate", "extract", "import"];

/** @param {{ path: string[] }} props nothing, an adapter, or MIX and adapters; the library is loaded for each */
export default function Adapters({ path }) {
  return html`<${Loaded} key=${path.join("/")} path=${path} />`;
}

function Loaded({ path }) {
  const [library] = useJson("/page/api/adapters");
  const [first, ...names] = path;
  if (!library) return null;
  if (!first) return html`<${List} ...${library} />`;
  return first === MIX ? html`<${Mix} ...${{ ...library, names }} />` : html`<${One} ...${library} name=${first} />`;
}

/** @param {Library} props */
function List({ adapters, base }) {
  const { filter, found, tick, chosen } = useChoice(adapters, MOST);
  const heading = html`<div class="heading"><h1>${t("title")}</h1>${filter}</div>`;
  const nothing = html`<p>${t("none")}</p><p class="faint"><a href="#train">${t("none.hint")}</a></p>`;
  if (!adapters.length) return [heading, nothing];
  return html`
    ${heading}
    <p class="faint lead">${t(adapters.length === 1 ? "one" : "count", { count: adapters.length, base })}</p>
    <table class="library">
      <thead>
        <tr>
          <th><span class="unseen">${t("choose")}</span></th>
          ${COLUMNS.map((key) => html`<th scope="col">${t(`column.${key}`)}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${found.map((one) => html`<${Row} key=${one.name} one=${one} tick=${tick} />`)}
        ${!found.length && html`<tr><td colspan="8">${t("no_match")}</td></tr>`}
      </tbody>
    </table>
    ${chosen(1, t("mix_them"), (...names) => go("adapters", MIX, ...names))}
    <p class="faint small note">${t("explained")}</p>
  `;
}

/** @param {{ one: Adapter, tick: (name: string, label: string) => any }} props */
function Row({ one, tick }) {
  const { name, broken, held_out: held } = one;
  const problem = html`<p class="broken">${t("broken", { problem: broken ?? "" })}</p>`;
  if (broken) return html`<tr><td></td><td colspan="7"><span class="name">${name}</span>${problem}</td></tr>`;
  const cells = {
    name: html`<a class="name" href=${`#adapters/${encodeURIComponent(name)}`}>${name}</a><${Tags} one=${one} />`,
    method: html`${one.method}<span class="faint"> r\u00a0${one.rank}</span>`,
    size: one.size,
    perplexity: held
      ? html`<${Figure} text=${held.before} /><span class="arrow">→</span><${Figure} text=${held.after} />`
      : "–",
    change: held ? html`<${Figure} text=${held.change} title=${held.described} />` : "–",
    origin: html`<${Origin} one=${one} />`,
    changed: new Date(one.changed * 1000).toLocaleDateString(lang, { dateStyle: "medium" }),
  };
  const label = (key) => (key === "name" ? null : t(`column.${key}`));
  return html`<tr>
    <td data-column="box">${one.mixes && !one.other_base && tick(name, t("choose_one", { name }))}</td>
    ${COLUMNS.map((key) => html`<td data-label=${label(key)} data-column=${key}>${cells[key]}</td>`)}
  </tr>`;
}

/** @param {{ text: string, title?: string }} props a number, and its interval below it, if it has one */
function Figure({ text, title }) {
  const [value, interval] = text.split(/\s(?=\[)/);
  return html`<span class="figure" title=${title}>
    ${value}${interval && html`<span class="interval">${interval}</span>`}
  </span>`;
}

/** @param {{ one: Adapter }} props where an adapter comes from, in a few words */
function Origin({ one }) {
  if (!one.origin) return "–";
  const { operation, data, sources } = one.origin;
  const names = sources
    .map(({ name, weight }) => (weight === null ? name : `${Number(weight.toPrecision(4))} ${name}`))
    .join(" + ");
  const isKnown = OPERATIONS.includes(operation);
  return isKnown ? t(`origin.${operation}`, { data: lastPart(data ?? ""), names }) : `${operation}: ${names}`;
}

/** @param {string} path its last part; a name stays as it is */
function lastPart(path) {
  return path.split(/[/\\]/).filter(Boolean).at(-1) ?? path;
}

/** @param {{ one: Adapter }} props its peculiarities */
function Tags({ one }) {
  const known = ["loaded", "given", "chat"].filter((key) => one[key]);
  const tag = (key) => html`<span class="tag" title=${t(`${key}.title`)}>${t(key)}</span>`;
  const base = lastPart(one.base ?? "?");
  return html`${known.map(tag)}
    ${one.other_base && html`<span class="tag other" title=${one.other_base}>${t("other_base", { base })}</span>`}`;
}

/** @param {Library & { name: string }} props the page of an adapter */
function One({ adapters, name }) {
  const one = adapters.find((adapter) => adapter.name === name);
  const isFine = one && !one.broken;
  const address = `/page/api/adapters/${encodeURIComponent(name)}`;
  const [details] = useJson(isFine ? address : null);
  const problem = one?.broken ? t("broken", { problem: one.broken }) : t("unknown", { name });
  return html`
    <p class="back"><a href="#adapters">${t("back")}</a></p>
    <div class="heading">
      <div>
        <h1>${name}</h1>
        ${isFine
          ? html`<p class="faint small"><${Origin} one=${one} /></p><p><${Tags} one=${one} /></p>`
          : html`<p class="broken">${problem}</p>`}
      </div>
      ${one && html`<${Buttons} ...${{ one, address }} />`}
    </div>
    ${details &&
    html`<div class="sections">
      <${Sections} sections=${details.sections} />
      ${details.card &&
      html`<section>
        <details><summary><h2>${t("card")}</h2></summary><pre tabindex="0">${details.card}</pre></details>
      </section>`}
    </div>`}
  `;
}

/** @param {{ one: Adapter, address: string }} props */
function Buttons({ one, address }) {
  const { name, given, mixes, broken } = one;
  const isFine = !broken;
  const isServed = isFine && !one.other_base;
  const save = (kind, path, body) => async () => saveFile(`${name}.${kind}`, await getBlob(path, body));
  const exported = (kind) => save(kind, "/page/api/export-adapter", { name, kind });
  const renameTo = async (to) => {
    if (to !== name) go("adapters", (await postJson("/page/api/rename-adapter", { name, to })).name);
  };
  const rename = () => ask(t("new_name"), t("rename"), renameTo, name);
  const removeIt = () => postJson("/page/api/remove-adapter", { name }).then(() => go("adapters"));
  const remove = () => ask(t("remove.question", { name }), t("remove"), removeIt);
  return html`<${Actions} of=${[
    [isServed, t("talk"), () => go("talk", name), "primary"],
    [isServed && mixes, t("mix_it"), () => go("adapters", MIX, name)],
    [isFine, t("save_report"), save("html", `${address}/report`)],
    [isFine, t("save_zip"), exported("zip")],
    [isFine && mixes, t("save_gguf"), exported("gguf")],
    [isFine && !given, t("rename"), rename],
    [!given, t("remove"), remove, "danger"],
  ]} />`;
}

/** A mix: weights, what it writes, and its place in the library. @param {Library & { names: string[] }} props */
function Mix({ adapters, base, names }) {
  const [models] = useJson("/page/api/models");
  const usable = adapters.filter((one) => !one.broken && one.mixes && !one.other_base);
  const [weights, setWeights] = useState(() => {
    const chosen = names.filter((name) => usable.some((one) => one.name === name)).slice(0, MOST);
    const equal = Math.round(100 / chosen.length) / 100;
    return /** @type {Weights} */ (Object.fromEntries(chosen.map((name) => [name, equal])));
  });
  const [wanted, setWanted] = useState({ prompt: sessionStorage.getItem(KEPT) ?? "", seed: "1", length: "120" });
  if (!models) return null;
  const chats = models.base.chat || usable.some((one) => one.chat && weights[one.name]);
  const change = (more) => setWanted({ ...wanted, ...more });
  const whole = (key, min, max) => html`<${Field} label=${t(key)} type="number" required ...${{ min, max }}
    value=${wanted[key]} set=${(text, target) => target.reportValidity() && change({ [key]: text })} />`;
  const write = (prompt) => (sessionStorage.setItem(KEPT, prompt), change({ prompt }));
  return html`
    <p class="back"><a href="#adapters">${t("back")}</a></p>
    <h1>${t("mix")}</h1>
    <p class="faint lead">${t("mix.explained")}</p>
    <div class="mixing">
      <div class="column">
        <${Rows} ...${{ usable, weights, setWeights }} />
        <${Field} label=${t("prompt")} rows=${2} placeholder=${t("prompt.hint")} value=${wanted.prompt} set=${write} />
        <div class="numbers">${whole("seed", 0, 2 ** 31)}${whole("length", 1, 2000)}</div>
      </div>
      <div class="column">
        <${Written} ...${{ base, weights, wanted, chats, change }} />
        <${Save} weights=${weights} />
      </div>
    </div>
  `;
}

/** The weights. */
function Rows({ usable, weights, setWeights }) {
  const others = usable.filter(({ name }) => !(name in weights)).map(({ name }) => [name, name]);
  const row = ([name, weight]) => {
    const { [name]: _weight, ...rest } = weights;
    const leave = t("leave_out", { name });
    const put = (text, target) => text && target.checkValidity() && setWeights({ ...weights, [name]: Number(text) });
    const common = { "aria-label": t("weight", { name }), value: weight, set: put };
    return html`<div class="weight" key=${name}>
      <a href=${`#adapters/${encodeURIComponent(name)}`}>${name}</a>
      <${Input} type="range" min="-1" max="2" step="0.05" ...${common} />
      <${Input} type="number" min=${-LARGEST} max=${LARGEST} step="any" ...${common} />
      <${Quiet} aria-label=${leave} title=${leave} act=${() => setWeights(rest)}>×<//>
    </div>`;
  };
  const used = Object.entries(weights);
  return html`<div class="weights">
    ${used.map(row)}
    ${others.length > 0 && used.length < MOST &&
    html`<div class="add">
      <${Input} key=${others.length} aria-label=${t("add")} value="" options=${[["", t("add")], ...others]}
        set=${(name) => setWeights({ ...weights, [name]: 0.5 })} />
    </div>`}
  </div>`;
}

/**
 * What the mix writes, again after each change.
 *
 * @param {{ base: string, weights: Weights, wanted: Wanted, chats: boolean, change: (more: any) => void }} props
 */
function Written({ base, weights, wanted, chats, change }) {
  const [[before, text], show] = useState(/** @type {[string, string | null]} */ (["", null]));
  const [isBusy, setBusy] = useState(false);
  const { prompt, seed, length } = wanted;
  const sampling = { seed: Number(seed), max_tokens: Number(length), temperature: 0.8 };
  const asked = chats ? { messages: [{ role: "user", content: prompt }] } : { prompt };
  const body = { model: base, adapters: weights, ...sampling, ...asked };
  const write = async (signal) => {
    setBusy(true);
    let written = "";
    for await (const { parts } of generate(body, signal)) {
      written += parts.map((part) => part.text).join("");
      if (written) show([asked.prompt ?? "", written]);
    }
    show([asked.prompt ?? "", written]);
  };
  useSoon(PAUSE, [JSON.stringify(body)], async (signal) => {
    if (Object.keys(weights).length) await write(signal).catch(fail);
    if (!signal.aborted) setBusy(false);
  });
  return html`<div class="sheet written">
    <h2>${sumText(weights)}</h2>
    <p class="text" aria-live="polite" aria-busy=${String(isBusy)}>
      ${text === "" && html`<span class="faint">${t("nothing")}</span>`}
      ${text && html`<span class="faint">${before}</span>${text}`}
    </p>
    <${Actions} of=${[[true, t("again"), () => change({ seed: String(Number(seed) + 1) })]]} />
  </div>`;
}

/** @param {{ weights: Weights }} props */
function Save({ weights }) {
  const [name, setName] = useState("");
  const adapters = Object.fromEntries(Object.entries(weights).filter(([, weight]) => weight));
  const save = async () => go("adapters", (await postJson("/page/api/save-mix", { adapters, name })).name);
  return html`<${Form} class="save" act=${save}>
    <${Field} label=${t("save.name")} required maxlength="100" spellcheck=${false} value=${name} set=${setName} />
    <button>${t("save")}</button>
    <p class="faint small">${t("save.explained")}</p>
  <//>`;
}

/** @param {Weights} weights */
function sumText(weights) {
  const terms = Object.entries(weights).filter(([, weight]) => weight);
  const sign = (weight, index) => (weight < 0 ? (index ? " − " : "−") : index ? " + " : "");
  return terms.map(([name, weight], index) => `${sign(weight, index)}${Math.abs(weight)} ${name}`).join("");
}
