/** What has been filled in. It stays when the view is left, or the language changes. */

import { useState } from "../../ui.js";
import { lossOf, offered } from "./form.js";

/** What a column can be, by what each row is. */
export const ROLES = {
  questions: ["prompt", "completion"],
  texts: ["text"],
  pairs: ["prompt", "chosen", "rejected"],
};

/** @typedef {typeof kept} Draft */
let kept = {
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
};

/** @returns {[Draft, (more: Partial<Draft> | ((now: Draft) => Partial<Draft>)) => void]} */
export function useDraft(options) {
  const [draft, setDraft] = useState(() => {
    if (!options.bases.includes(kept.base)) kept = { ...kept, base: options.bases[0] };
    return kept;
  });
  return [draft, (more) => setDraft((kept = { ...kept, ...(typeof more === "function" ? more(kept) : more) }))];
}

/** @param {Draft} draft @returns {boolean} whether all columns have been chosen, or none */
export function rolesAreSet({ rows, columns }) {
  const roles = Object.keys(columns);
  return !roles.length || ROLES[rows].every((role) => roles.includes(role));
}

/** @param {Draft} draft @returns {{ texts: string[], uploads: string[], columns: Record<string, string> }} */
export function dataOf(draft) {
  const { texts, uploads, columns } = draft;
  return { texts, uploads, columns: rolesAreSet(draft) ? columns : {} };
}

/** Return the body of a request for what is filled in; `kind` is that of the data. */
export function asked(draft, options, kind) {
  const body = { ...dataOf(draft), name: draft.name.trim(), base: draft.base };
  for (const setting of offered(options, draft, kind)) {
    const value = valueOf(setting, draft.values, options, kind);
    if (value !== undefined) body[setting.name] = value;
  }
  return body;
}

/** Return the value of a setting for the server; undefined: its default. */
function valueOf({ name, kind, sends, default: start }, values, { losses }, data) {
  const given = values[name];
  if (name === "preference") return lossOf(values, data);
  if (kind === "numbers") {
    const known = losses[lossOf(values, data)];
    const numbers = Object.entries(given ?? {}).filter(([one, value]) => one in known && value.trim());
    return numbers.length ? Object.fromEntries(numbers.map(([one, value]) => [one, Number(value)])) : undefined;
  }
  if (kind === "flag") return given || undefined;
  const text = (given ?? "").trim();
  if (!text) return sends ? start : undefined;
  if (kind === "texts") return text.split("\n").filter((line) => line.trim());
  return kind === "number" ? Number(text) : text;
}
