/**
 * What answers: the base, an adapter, a run, or a mix of adapters. Each is a text: a name, or MIX and the factors of
 * the adapters as JSON. No adapter's name has a colon.
 */

import { Field, html, openDialog, Quiet, useEffect, useRef, useState } from "../../ui.js";

const MIX = "mix:";
const MOST_IN_MIX = 8; // as the server allows
export const MOST = 6; // models that answer a prompt

/** @typedef {{ name: string, chat: boolean, given?: boolean }} Model */

/**
 * @typedef {object} Known what the server has
 * @property {Model & { repetition_penalty: number }} base
 * @property {Model[]} adapters
 * @property {Model[]} runs
 * @property {number} context tokens
 * @property {Model[]} models the base, the adapters and the runs
 */

/**
 * @param {any} answer of the server
 * @param {string} lang
 * @returns {Known} with the adapters in the order of their names
 */
export function knownOf(answer, lang) {
  const collator = new Intl.Collator(lang, { numeric: true });
  const adapters = answer.adapters.toSorted((a, b) => collator.compare(a.name, b.name));
  return { ...answer, adapters, models: [answer.base, ...adapters, ...answer.runs] };
}

/**
 * Return what the settings become when the view is opened: the models that the address, the command or the last visit
 * names, and chat where one of them can.
 *
 * @param {import("./settings.js").Settings} settings
 * @param {Known} known
 * @param {string | undefined} opened the model that the address names
 * @returns {Partial<import("./settings.js").Settings>}
 */
export function chosenAtFirst(settings, known, opened) {
  const names = known.models.map((one) => one.name);
  const commanded = known.adapters.filter((one) => one.given).map((one) => one.name);
  const given = commanded.join("/");
  let { models: wanted, mode } = settings;
  if (given !== settings.given && given) {
    wanted = [names[0], ...commanded].slice(0, MOST);
    mode = null;
  }
  if (opened) wanted = [names[0], opened];
  let models = (wanted ?? names.slice(0, 2)).filter((model) => isKnown(model, names));
  if (!models.length) models = names.slice(0, 1);
  if (opened || !mode) mode = known.models.some((one) => one.chat && models.includes(one.name)) ? "chat" : "continue";
  if (!known.models.some((one) => one.chat)) mode = "continue";
  return { given, models, mode };
}

/**
 * @param {string} model
 * @returns {Record<string, number> | null} the factors of a mix; null: it is none
 */
function factorsOf(model) {
  if (!model.startsWith(MIX)) return null;
  try {
    return JSON.parse(model.slice(MIX.length));
  } catch {
    return {};
  }
}

/** @param {string} model what readers call it: "kyoka", or "0.7 kyoka + 0.3 haiku" */
export function labelOf(model) {
  const factors = factorsOf(model);
  if (!factors) return model;
  return Object.entries(factors).map(([name, factor]) => `${factor} ${name}`).join(" + ");
}

/**
 * @param {string} model
 * @param {string} base the base's name
 * @returns {{ model: string, adapters?: Record<string, number> }} the fields of a request that choose it
 */
export function requestOf(model, base) {
  const factors = factorsOf(model);
  return factors ? { model: base, adapters: factors } : { model };
}

/**
 * @param {string} model
 * @param {string[]} names of the base and the adapters
 * @returns {boolean} whether it can be asked
 */
function isKnown(model, names) {
  const factors = factorsOf(model);
  const used = factors ? Object.keys(factors) : [model];
  return used.length > 0 && used.every((name) => names.includes(name));
}

/**
 * @param {string} model
 * @param {string} base the base's name
 * @returns {string[]} the names of what it is made of; the base is part of a mix
 */
export function namesIn(model, base) {
  const factors = factorsOf(model);
  return factors ? [...Object.keys(factors), base] : [model];
}

/**
 * Let the reader choose a model, by a search among all or as a mix.
 *
 * @param {Known} known
 * @param {string} model the one that is chosen; "": none
 * @param {import("../../messages.js").Translate} t
 * @returns {Promise<string | undefined>} undefined: the reader does not want another one
 */
export async function chooseModel(known, model, t) {
  const picked = await openDialog(t("choose"), (close) => html`<${Picker} ...${{ known, model, t, close }} />`);
  if (picked !== MIX) return picked;
  const names = [...known.adapters, ...known.runs].map((one) => one.name);
  return openDialog(t("mix"), (close) => html`<${MixForm} ...${{ names, given: factorsOf(model) ?? {}, t, close }} />`);
}

function Picker({ known, model, t, close }) {
  const [sought, setSought] = useState("");
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  const words = plain(sought).split(/\s+/);
  const groups = [[t("base"), [known.base]], [t("adapters"), known.adapters], [t("runs"), known.runs]]
    .map(([title, models]) => [title, models.filter(({ name }) => words.every((word) => plain(name).includes(word)))])
    .filter(([, models]) => models.length);
  const submit = (event) => {
    event.preventDefault();
    if (sought.trim() && groups.length) close(groups[0][1][0].name);
  };
  const item = (/** @type {Model} */ { name }) => html`<li>
    <button type="button" class="link" aria-current=${name === model ? "true" : null} onClick=${() => close(name)}>
      ${name}
    </button>
  </li>`;
  return html`<form class="in-dialog" data-view="talk" onSubmit=${submit}>
    <${Field} label=${t("search")}>
      <input type="search" autofocus value=${sought} onInput=${(event) => setSought(event.target.value)} />
    <//>
    <div class="listed" role="status" aria-live="off">
      ${groups.map(([title, models]) => html`<h3>${title}</h3><ul>${models.map(item)}</ul>`)}
      ${!groups.length && html`<p class="faint">${t("search.none")}</p>`}
    </div>
    <div class="actions">
      ${known.models.length > 1 && html`<button type="button" onClick=${() => close(MIX)}>${t("mix")}</button>`}
      <${Quiet} act=${() => close()}>${t("cancel")}<//>
    </div>
  </form>`;
}

function MixForm({ names, given, t, close }) {
  const form = useRef();
  const inputs = () => [...form.current.querySelectorAll("input")];
  const mixed = () => inputs().filter((input) => input.value && input.valueAsNumber !== 0);
  const check = () => {
    const count = mixed().length;
    const problem = count < 1 || count > MOST_IN_MIX ? t("mix.count", { most: MOST_IN_MIX }) : "";
    inputs()[0].setCustomValidity(problem);
  };
  const submit = (event) => {
    event.preventDefault();
    close(MIX + JSON.stringify(Object.fromEntries(mixed().map((input) => [input.name, input.valueAsNumber]))));
  };
  useEffect(check, []);
  const field = (name) => html`<${Field} label=${name}>
    <input type="number" step="any" min="-100" max="100" name=${name} defaultValue=${given[name] ?? ""} />
  <//>`;
  return html`<form class="in-dialog" data-view="talk" ref=${form} onInput=${check} onSubmit=${submit}>
    <p>${t("mix.explanation")}</p>
    <div class="listed">${names.map(field)}</div>
    <div class="actions">
      <${Quiet} act=${() => close()}>${t("cancel")}<//>
      <button class="primary">${t("mix.use")}</button>
    </div>
  </form>`;
}
