/** How tokens are chosen. The settings are kept in the browser. */

import { field, h } from "../../dom.js";

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

const NUMBERS = {
  temperature: { min: 0, max: 2, step: "any" },
  top_p: { min: 0.01, max: 1, step: "any" },
  top_k: { min: 0, max: 100000, step: 1 },
  min_p: { min: 0, max: 1, step: "any" },
  repetition_penalty: { min: 0.5, max: 2, step: "any" },
  max_tokens: { min: 1, max: 100000, step: 1 },
  seed: { min: 0, max: 2 ** 31, step: 1 },
};

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
 * @returns {object} fields of a request
 */
export function samplingOf(settings, seed) {
  const { temperature, top_p, top_k, min_p, repetition_penalty, max_tokens } = settings;
  const stop = settings.stop.split("\n").filter(Boolean);
  return { temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed, ...(stop.length && { stop }) };
}

/**
 * @param {Settings} settings changed by the fields
 * @param {number} penalty the base's own repetition penalty, which an empty field stands for
 * @param {import("../../messages.js").Translate} t
 * @param {() => void} changed
 * @returns {HTMLElement}
 */
export function settingsFields(settings, penalty, t, changed) {
  const labels = {
    temperature: t("temperature"),
    top_p: t("top_p"),
    top_k: t("top_k"),
    min_p: t("min_p"),
    repetition_penalty: t("repetition_penalty"),
    max_tokens: t("max_tokens"),
    seed: t("seed"),
  };
  const number = (name) =>
    field(
      labels[name],
      h("input", {
        type: "number",
        inputmode: "decimal",
        required: name !== "repetition_penalty",
        placeholder: name === "repetition_penalty" ? String(penalty) : null,
        ...NUMBERS[name],
        value: settings[name],
        onchange: ({ target }) => {
          if (target.checkValidity()) settings[name] = target.value === "" ? null : target.valueAsNumber;
          else target.value = settings[name];
          changed();
        },
      }),
    );
  const text = (name, label, hint) =>
    field(
      label,
      h("textarea", {
        rows: 2,
        placeholder: hint,
        value: settings[name],
        onchange: ({ target }) => {
          settings[name] = target.value;
          changed();
        },
      }),
    );
  return h(
    "div.settings",
    {},
    Object.keys(NUMBERS).map(number),
    text("stop", t("stop_strings"), t("stop_strings_hint")),
    settings.mode === "chat" && text("system", t("system"), ""),
  );
}
