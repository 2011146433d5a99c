/** What has been filled in, and the fields for the settings of a run, drawn from what the server says of them. */

import { Check, Field, html, Input, t, useState } from "../../ui.js";

/** One of them is asked for. */
export const LENGTHS = ["epochs", "minutes", "max_steps"];

/** What a column can be, by what each row is. */
export const ROLES = {
  questions: ["prompt", "completion"],
  texts: ["text"],
  pairs: ["prompt", "chosen", "rejected"],
};

/** What the data that a page recognises are called where settings say what they belong to. */
const KINDS = { labels: ["pairs"], prompts: ["pairs"], mixed: ["texts", "questions", "conversations"] };

const KEPT = "tsugiki.train";

const AT_FIRST = {
  folder: "",
  texts: /** @type {string[]} */ ([]),
  /** Those that were sent. */
  uploads: /** @type {string[]} */ ([]),
  /** What a row of a table is, a key of `ROLES`, and its columns by their roles. */
  rows: "questions",
  columns: /** @type {Record<string, string>} */ ({}),
  pasted: "",
  base: "",
  name: "",
  length: "epochs",
  /** By the names of settings. */
  values: /** @type {Record<string, any>} */ ({}),
  aozora: { author: "", title: "", kana: "", name: "" },
  isAdvanced: false,
  /** What the server says of a run that is started again. */
  again: /** @type {any} */ (null),
};
/** @typedef {typeof AT_FIRST} Draft It stays when the view is left, the language changes or the page is reloaded. */
/** @type {Draft} */
let kept = { ...AT_FIRST, ...JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") };

/** @returns {[Draft, (more: Partial<Draft> | ((now: Draft) => Partial<Draft>)) => void]} */
export function useDraft(options) {
  const [draft, setDraft] = useState(() => (kept = { ...kept, base: kept.base || options.bases[0] }));
  const change = (more) => {
    kept = { ...kept, ...(typeof more === "function" ? more(kept) : more) };
    keep(kept);
    setDraft(kept);
  };
  return [draft, change];
}

/** Keep what has been filled in for a reload. A browser keeps some MB, which a text that is pasted can exceed. */
function keep(draft) {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(draft));
  } catch {
    if (draft.pasted) keep({ ...draft, pasted: "" });
  }
}

/** @param {Draft} draft @returns {boolean} whether all columns have been chosen, or none, or they are as they were */
export function rolesAreSet({ rows, columns, again }) {
  return [{}, again?.columns].some((one) => isLike(one, columns)) || ROLES[rows].every((role) => role in columns);
}

/** @param {Draft} draft @returns {any} what of a request says which data there are */
export function dataOf(draft) {
  const { texts, uploads, columns, again } = draft;
  return { texts, uploads, columns: rolesAreSet(draft) ? columns : {}, again: again?.again };
}

/** Return the settings that have an effect with this kind of data and with what is chosen. */
export function offered(options, draft, kind) {
  const isLora = options.lora_methods.includes(draft.values.method ?? "lora");
  return options.settings.filter(({ name, section, data }) => {
    if (LENGTHS.includes(name)) return name === draft.length;
    return (section !== "lora" || isLora) && (!data || (KINDS[kind] ?? [kind]).some((one) => data.includes(one)));
  });
}

/**
 * Return the body of a request for what is filled in; `kind` is that of the data. JSON has no undefined, and what is
 * left out is as it was in a run that is started again. A setting that is not shown has its default.
 */
export function asked(draft, options, kind) {
  const { again, values, name, base } = draft;
  const isKept = (of) => again && of !== "preference" && isLike(values[of], again.values[of]);
  const valueIn = (one) => (isKept(one.name) ? undefined : valueOf(one, values, options, kind));
  const shown = offered(options, draft, kind);
  const all = options.settings.map((one) => [one.name, shown.includes(one) ? valueIn(one) : null]);
  return { ...dataOf(draft), name: name.trim(), base, ...Object.fromEntries(all) };
}

const isLike = (one, other) => JSON.stringify(one) === JSON.stringify(other);
/** The number that a text is; the server refuses a text that is none. */
const numberOf = (text) => (Number.isFinite(Number(text)) ? Number(text) : text);

/** Return the value of a setting for the server; null: its default. */
function valueOf({ name, kind, sends, default: start }, values, { losses }, data) {
  const given = values[name];
  if (name === "preference") return lossOf(values, data);
  if (kind === "numbers") {
    const known = losses[lossOf(values, data)];
    const numbers = Object.entries(given ?? {}).filter(([one, value]) => one in known && value.trim());
    return numbers.length ? Object.fromEntries(numbers.map(([one, value]) => [one, numberOf(value)])) : null;
  }
  if (kind === "flag") return given || null;
  const text = (given ?? "").trim();
  if (!text) return sends ? start : null;
  if (kind === "texts") return text.split("\n").filter((line) => line.trim());
  return kind === "number" ? numberOf(text) : text;
}

/** Return the preference loss that is chosen; answers that are no pairs have one alone. */
function lossOf(values, kind) {
  return kind === "labels" ? "kto" : values.preference || "dpo";
}

/** A setting with its label; `bare`: without one beside it. */
export function Setting({ setting, draft, change, options, kind, bare }) {
  const { label, help, name, default: start } = setting;
  const value = draft.values[name];
  const set = (given) => change((now) => ({ values: { ...now.values, [name]: given } }));
  if (setting.kind === "flag") {
    return html`<${Check} title=${help} checked=${Boolean(value)} set=${set}><span>${label}</span><//>`;
  }
  if (setting.kind === "numbers") { // of the preference loss that is chosen
    const known = Object.entries(options.losses[lossOf(draft.values, kind)]);
    const number = ([one, usual]) => html`<${Field} key=${one} label=${one} inputmode="decimal" placeholder=${usual}
      value=${value?.[one] ?? ""} set=${(text) => set({ ...value, [one]: text })} />`;
    return html`<div class="grid">${known.map(number)}</div>`;
  }
  const usual = typeof start === "number" ? start : name === "minutes" ? 10 : t("automatic");
  const kinds = {
    choice: () => ({ options: choicesOf(setting, kind, draft), value: value ?? start ?? "" }),
    number: () => ({ inputmode: "decimal", placeholder: usual }),
    texts: () => ({ rows: 2 }),
  };
  const given = { value: value ?? "", set, ...(kinds[setting.kind]?.() ?? { rows: 1 }) };
  return bare
    ? html`<${Input} aria-label=${label} ...${given} />`
    : html`<${Field} label=${label} title=${help} ...${given} />`;
}

/** Return what can be chosen, and what a run had that is started again. */
function choicesOf({ name, choices, default: start }, kind, { again }) {
  const known = kind === "labels" && name === "preference" ? choices.filter(([one]) => one === "kto") : choices;
  const had = [start, again?.values[name] ?? start].filter((one) => known.every(([of]) => of !== one));
  return [...new Set(had)].map((one) => [one ?? "", one ?? t("automatic")]).concat(known);
}
