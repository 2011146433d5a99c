/**
 * What answers: the base, an adapter, a run, or a mix of adapters. Each is a text: a name, or MIX and the factors of
 * the adapters as JSON. No adapter's name has a colon.
 */

import { Actions, DialogForm, Field, Form, html, lang, openDialog, t, useState } from "../../ui.js";

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

/** @param {any} answer of the server @returns {Known} with the adapters in the order of their names */
export function knownOf(answer) {
  const collator = new Intl.Collator(lang, { numeric: true });
  const adapters = answer.adapters.toSorted((a, b) => collator.compare(a.name, b.name));
  return { ...answer, adapters, models: [answer.base, ...adapters, ...answer.runs] };
}

/**
 * Return what the settings become when the view is opened: the models that the address, the command or the last visit
 * names, and chat where one of them can.
 *
 * @param {import("./conversation.js").Settings} settings
 * @param {Known} known
 * @param {string | undefined} opened the model that the address names
 * @returns {Partial<import("./conversation.js").Settings>}
 */
export function chosenAtFirst(settings, known, opened) {
  const names = known.models.map((one) => one.name);
  const commanded = known.adapters.filter((one) => one.given).map((one) => one.name);
  const given = commanded.join("/");
  const isNew = given !== settings.given && Boolean(given);
  const before = isNew ? [names[0], ...commanded].slice(0, MOST) : (settings.models ?? names.slice(0, 2));
  const wanted = opened ? [names[0], opened] : before;
  const isKnown = (model) => namesIn(model, names[0]).every((name) => names.includes(name));
  const models = wanted.some(isKnown) ? wanted.filter(isKnown) : names.slice(0, 1);
  const chats = known.models.filter((one) => one.chat).map((one) => one.name);
  const isOpen = opened || isNew || !settings.mode; // the mode
  const wantsChat = isOpen ? models.some((name) => chats.includes(name)) : settings.mode === "chat";
  return { given, models, mode: wantsChat && chats.length ? "chat" : "continue" };
}

/** @param {string} model @returns {Record<string, number> | null} the factors of a mix; null: it is none */
export function factorsOf(model) {
  try {
    return model.startsWith(MIX) ? JSON.parse(model.slice(MIX.length)) : null;
  } catch {
    return null;
  }
}

/** @param {string} model what readers call it: "kyoka", or "0.7 kyoka + 0.3 haiku" */
export function labelOf(model) {
  const factors = Object.entries(factorsOf(model) ?? {});
  return factors.map(([name, factor]) => `${factor} ${name}`).join(" + ") || model;
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
 * @returns {Promise<string | undefined>} undefined: the reader does not want another one
 */
export async function chooseModel(known, model) {
  const picked = await openDialog(t("choose"), (close) => html`<${Picker} ...${{ known, model, close }} />`);
  if (picked !== MIX) return picked;
  const names = [...known.adapters, ...known.runs].map((one) => one.name);
  return openDialog(t("mix"), (close) => html`<${MixForm} ...${{ names, given: factorsOf(model) ?? {}, close }} />`);
}

function Picker({ known, model, close }) {
  const [sought, setSought] = useState("");
  const plain = (text) => text.normalize("NFKC").toLowerCase();
  const words = plain(sought).split(/\s+/);
  const groups = [[t("base"), [known.base]], [t("adapters"), known.adapters], [t("runs"), known.runs]]
    .map(([title, models]) => [title, models.filter(({ name }) => words.every((word) => plain(name).includes(word)))])
    .filter(([, models]) => models.length);
  const first = () => sought.trim() && groups.length && close(groups[0][1][0].name);
  const item = (/** @type {Model} */ { name }) => html`<li>
    <button type="button" class="link" aria-current=${name === model ? "true" : null} onClick=${() => close(name)}>
      ${name}
    </button>
  </li>`;
  return html`<${Form} class="in-dialog" data-view="talk" act=${first}>
    <${Field} label=${t("search")} type="search" value=${sought} set=${setSought} />
    <div class="listed" role="status" aria-live="off">
      ${groups.map(([title, models]) => html`<h3>${title}</h3><ul>${models.map(item)}</ul>`)}
      ${!groups.length && html`<p class="faint">${t("search.none")}</p>`}
    </div>
    <${Actions} of=${[
      [known.models.length > 1, t("mix"), () => close(MIX)],
      [true, t("cancel"), () => close(), "quiet"],
    ]} />
  <//>`;
}

function MixForm({ names, given, close }) {
  const [factors, setFactors] = useState(given);
  const [problem, setProblem] = useState("");
  const used = names.filter((name) => factors[name]);
  const isRight = used.length > 0 && used.length <= MOST_IN_MIX;
  const submit = () => {
    if (!isRight) return setProblem(t("mix.count", { most: MOST_IN_MIX }));
    return close(MIX + JSON.stringify(Object.fromEntries(used.map((name) => [name, factors[name]]))));
  };
  const field = (name) => html`<${Field} label=${name}>
    <input type="number" step="any" min="-100" max="100" defaultValue=${given[name] ?? ""}
      onInput=${({ target }) => setFactors({ ...factors, [name]: target.valueAsNumber })} />
  <//>`;
  return html`<${DialogForm} class="in-dialog" data-view="talk" act=${submit} yes=${t("mix.use")} close=${close}>
    <p>${t("mix.explanation")}</p>
    <div class="listed">${names.map(field)}</div>
    <p class="broken" role="alert">${problem}</p>
  <//>`;
}
