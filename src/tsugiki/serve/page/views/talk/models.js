/**
 * What answers: the base, an adapter, or a mix of adapters. Each is a text: a name, or MIX and the factors of the
 * adapters as JSON. No adapter's name has a colon.
 */

import { button, field, h } from "../../dom.js";

const MIX = "mix:";
const MOST = 8; // adapters in a mix, as the server allows

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
 * @returns {object} the fields of a request that choose it
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
export function isKnown(model, names) {
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
 * Ask for the factors of a mix.
 *
 * @param {string} model an earlier mix, whose factors are shown; another model: none
 * @param {string[]} names of the adapters
 * @param {import("../../messages.js").Translate} t
 * @returns {Promise<string | null>} the mix; null: the reader does not want one
 */
export function askMix(model, names, t) {
  const factors = factorsOf(model) ?? {};
  return new Promise((resolve) => {
    const inputs = names.map((name) =>
      h("input", { type: "number", step: "any", min: -100, max: 100, name, value: factors[name] ?? "" }),
    );
    const mixed = () => inputs.filter((input) => input.value && input.valueAsNumber !== 0);
    const check = () => {
      const count = mixed().length;
      inputs[0].setCustomValidity(count < 1 || count > MOST ? t("mix.count", { most: MOST }) : "");
    };
    const dialog = h(
      "dialog.mix",
      { "aria-label": t("mix"), oninput: check, onclose: () => done() },
      h(
        "form",
        { method: "dialog" },
        h("p", {}, t("mix.explanation")),
        h("div.factors", {}, names.map((name, index) => field(name, inputs[index]))),
        h(
          "div.actions",
          {},
          button(t("cancel"), () => dialog.close(), { class: "quiet" }),
          h("button.primary", { value: "mix" }, t("mix.use")),
        ),
      ),
    );
    const done = () => {
      dialog.remove();
      const chosen = Object.fromEntries(mixed().map((input) => [input.name, input.valueAsNumber]));
      resolve(dialog.returnValue === "mix" ? MIX + JSON.stringify(chosen) : null);
    };
    check();
    document.body.append(dialog);
    dialog.showModal();
  });
}
