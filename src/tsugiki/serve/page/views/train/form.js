/** Fields for the settings of a run, drawn from what the server says of them. */

import { Field, html, Select, useApp } from "../../ui.js";

/** One of them is asked for. */
export const LENGTHS = ["epochs", "minutes"];

/** What the data that a page recognises are called where settings say what they belong to. */
const KINDS = { labels: ["pairs"], mixed: ["texts", "questions", "conversations"] };

/** Return the settings that have an effect with this kind of data and with what is chosen. */
export function offered(options, draft, kind) {
  const kinds = KINDS[kind] ?? [kind];
  const isLora = options.lora_methods.includes(draft.values.method ?? "lora");
  return options.settings.filter(({ name, section, data }) => {
    if (LENGTHS.includes(name)) return name === draft.length;
    if (section === "lora" && !isLora) return false;
    return !data || kinds.some((one) => data.includes(one));
  });
}

/** Return the preference loss that is chosen; answers that are no pairs have one alone. */
export function lossOf(values, kind) {
  return kind === "labels" ? "kto" : values.preference || "dpo";
}

/** A setting with its label; `bare`: without one beside it. */
export function Setting({ setting, draft, change, options, kind, bare }) {
  const { label, help, name } = setting;
  const value = draft.values[name];
  const keep = (given) => change((now) => ({ values: { ...now.values, [name]: given } }));
  if (setting.kind === "numbers") return html`<${Numbers} ...${{ draft, keep, value, options, kind }} />`;
  if (setting.kind === "flag") {
    return html`<label class="check" title=${help}>
      <input type="checkbox" checked=${Boolean(value)} onChange=${(event) => keep(event.target.checked)} />
      <span>${label}</span>
    </label>`;
  }
  const control = html`<${Control} ...${{ setting, value: value ?? "", keep, kind, label: bare ? label : null }} />`;
  return bare ? control : html`<${Field} label=${label} title=${help}>${control}<//>`;
}

function Control({ setting, value, keep, kind, label }) {
  const { t } = useApp();
  const { name, choices, default: start } = setting;
  if (setting.kind === "choice") {
    const known = kind === "labels" && name === "preference" ? choices.filter(([one]) => one === "kto") : choices;
    const all = start === null ? [["", t("automatic")], ...known] : known;
    return html`<${Select} options=${all} value=${value || (start ?? "")} onChoose=${keep} />`;
  }
  const onInput = (event) => keep(event.target.value);
  if (setting.kind !== "number") {
    return html`<textarea rows=${setting.kind === "texts" ? 2 : 1} value=${value} onInput=${onInput}></textarea>`;
  }
  const shown = typeof start === "number" ? start : name === "minutes" ? 10 : t("automatic");
  return html`<input inputmode="decimal" placeholder=${shown} value=${value} onInput=${onInput} aria-label=${label} />`;
}

/** The settings of the preference loss that is chosen. */
function Numbers({ draft, keep, value, options, kind }) {
  const draw = ([name, start]) =>
    html`<${Field} key=${name} label=${name}>
      <input inputmode="decimal" placeholder=${start} value=${value?.[name] ?? ""}
        onInput=${(event) => keep({ ...value, [name]: event.target.value })} />
    <//>`;
  return html`<div class="grid">${Object.entries(options.losses[lossOf(draft.values, kind)]).map(draw)}</div>`;
}
