/** How tokens are chosen. The settings are kept in the browser. */

import { Field, html, useApp } from "../../ui.js";

const STORED = "tsugiki.talk";

const DEFAULTS = {
  temperature: 0.7,
  top_p: 0.9,
  top_k: 0,
  min_p: 0,
  /** @type {number | null} null: that of the base's generation settings */
  repetition_penalty: null,
  max_tokens: 200,
  seed: 1,
  stop: "",
  system: "",
  /** @type {"chat" | "continue" | null} */
  mode: null,
  blind: false,
  shaded: false,
  /** @type {string[] | null} */
  models: null,
  /** The adapters of --adapter when the page was last open. */
  given: "",
};

/** @typedef {typeof DEFAULTS} Settings */

/** @type {[string, { min: number, max: number, step: number | "any" }][]} */
const NUMBERS = [
  ["temperature", { min: 0, max: 2, step: "any" }],
  ["top_p", { min: 0.01, max: 1, step: "any" }],
  ["top_k", { min: 0, max: 100000, step: 1 }],
  ["min_p", { min: 0, max: 1, step: "any" }],
  ["repetition_penalty", { min: 0.5, max: 2, step: "any" }],
  ["max_tokens", { min: 1, max: 100000, step: 1 }],
  ["seed", { min: 0, max: 2 ** 31, step: 1 }],
];

/** @returns {Settings} those of the last visit */
export function loadSettings() {
  return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(STORED) ?? "{}") };
}

/** @param {Settings} settings */
export function saveSettings(settings) {
  localStorage.setItem(STORED, JSON.stringify(settings));
}

/**
 * @param {Settings} settings
 * @param {number} seed
 * @returns {{ max_tokens: number, [field: string]: any }} fields of a request
 */
export function samplingOf(settings, seed) {
  const { temperature, top_p, top_k, min_p, repetition_penalty, max_tokens } = settings;
  const stop = settings.stop.split("\n").filter(Boolean);
  return { temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed, ...(stop.length && { stop }) };
}

/**
 * @param {object} props
 * @param {Settings} props.settings
 * @param {number} props.penalty the base's own repetition penalty, which an empty field stands for
 * @param {(settings: Partial<Settings>) => void} props.change
 */
export function SettingsFields({ settings, penalty, change }) {
  const { t } = useApp();
  const set = (name) => (/** @type {any} */ { target }) => {
    const value = target.type !== "number" ? target.value : target.value === "" ? null : target.valueAsNumber;
    if (target.checkValidity()) change({ [name]: value });
    else target.value = settings[name];
  };
  const number = ([name, limits]) => html`<${Field} label=${t(name)}>
    <input type="number" inputmode="decimal" ...${limits} defaultValue=${settings[name]} onChange=${set(name)}
      required=${name !== "repetition_penalty"} placeholder=${name === "repetition_penalty" ? penalty : null} />
  <//>`;
  const text = (name, label, hint = "") =>
    html`<${Field} label=${label}>
      <textarea rows="2" placeholder=${hint} defaultValue=${settings[name]} onChange=${set(name)} />
    <//>`;
  return html`<div class="settings">
    ${NUMBERS.map(number)}
    ${text("stop", t("stop_strings"), t("stop_strings_hint"))}
    ${settings.mode === "chat" && text("system", t("system"))}
  </div>`;
}
