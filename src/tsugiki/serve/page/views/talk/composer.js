/** The form below the turns: the models, the prompt, and how it is answered. */

import { Check, Field, Form, html, Quiet, t, useEffect, useRef, useState } from "../../ui.js";
import { isBusy, NUMBERS, open, say, setDraft, setSettings, stop, talk } from "./conversation.js";
import { chooseConversation } from "./history.js";
import { chooseModel, labelOf, MOST } from "./models.js";

/** @param {{ known: import("./models.js").Known }} props */
export function Composer({ known }) {
  const { settings, turns } = talk;
  const [unfolded, unfold] = useState(/** @type {"" | "options" | "settings"} */ (""));
  const prompt = useRef();
  const shown = useRef(talk.id);
  const isChat = settings.mode === "chat";
  const busy = isBusy();
  useEffect(() => {
    if (shown.current !== talk.id) prompt.current.focus(); // another conversation
    shown.current = talk.id;
  }, [talk.id]);
  const submit = () => {
    const { draft } = talk;
    if (isBusy()) return stop();
    if (!draft.trim()) return prompt.current.focus();
    say(isChat ? draft.trim() : draft);
    if (isChat) setDraft("");
    return unfold("");
  };
  const key = (event) => {
    if (!isSending(event, isChat)) return;
    event.preventDefault();
    if (!isBusy()) event.target.form.requestSubmit();
  };
  return html`<${Form} class="composer" data-folded=${String(turns.length > 0 && !unfolded)} act=${submit}>
    <${Chips} known=${known} />
    <textarea rows="1" aria-label=${t("prompt")} value=${talk.draft} ref=${prompt} onKeyDown=${key}
      placeholder=${t(isChat ? "prompt.chat" : "prompt.continue")}
      onInput=${(event) => setDraft(event.target.value)} />
    ${unfolded === "settings" && html`<${SettingsFields} penalty=${known.base.repetition_penalty} />`}
    <div class="row">
      ${turns.length > 0 &&
      html`<${Quiet} class="quiet fold" aria-expanded=${String(unfolded !== "")}
        act=${() => unfold(unfolded ? "" : "options")}>${t("options")}<//>`}
      <${Options} ...${{ known, unfolded, unfold }} />
      <button class=${busy ? null : "primary"}>${t(busy ? "stop" : isChat ? "send" : "continue")}</button>
    </div>
    <p class="hint faint">${t(isChat ? "hint.chat" : "hint.continue")}</p>
  <//>`;
}

/** @param {KeyboardEvent} event @param {boolean} isChat Enter sends there; Ctrl+Enter always, an input method never */
export function isSending(event, isChat) {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return false;
  return event.ctrlKey || event.metaKey || (isChat && !event.shiftKey);
}

/** The models that answer. */
function Chips({ known }) {
  const models = /** @type {string[]} */ (talk.settings.models);
  const put = (at, ...names) => setSettings({ models: models.toSpliced(at, 1, ...names) });
  const choose = async (at) => {
    const name = await chooseModel(known, models[at] ?? "");
    if (name !== undefined) put(at, name);
  };
  const chip = (model, at) => {
    const name = labelOf(model);
    const label = t("model_number", { number: at + 1, name });
    const remove = html`<${Quiet} aria-label=${t("remove_model", { name })} act=${() => put(at)}>×<//>`;
    return html`<span class="chip">
      <i class="dot" data-colour=${at + 1}></i>
      <${Quiet} class="quiet name" aria-haspopup="dialog" aria-label=${label} act=${() => choose(at)}>${name}<//>
      ${models.length > 1 && remove}
    </span>`;
  };
  return html`<div class="chips" role="group" aria-label=${t("models")}>
    ${models.map(chip)}
    ${models.length < MOST && known.models.length > 1 &&
    html`<${Quiet} aria-haspopup="dialog" act=${() => choose(models.length)}>${t("add")}<//>`}
  </div>`;
}

/** How a prompt is answered, and the conversations before. */
function Options({ known, unfolded, unfold }) {
  const { settings } = talk;
  const isOpen = unfolded === "settings";
  const mode = (name) => html`<${Check} type="radio" name="mode" checked=${settings.mode === name}
    set=${() => setSettings({ mode: name })}>${t(`mode.${name}`)}<//>`;
  const check = (name) =>
    html`<${Check} checked=${settings[name]} set=${(isOn) => setSettings({ [name]: isOn })}>${t(name)}<//>`;
  const choose = () => chooseConversation().then((chosen) => chosen && open(chosen));
  return html`<div class="options">
    ${known.models.some((one) => one.chat) && html`<span class="modes">${mode("chat")}${mode("continue")}</span>`}
    ${check("blind")}${check("shaded")}
    <${Quiet} aria-expanded=${String(isOpen)} act=${() => unfold(isOpen ? "options" : "settings")}>${t("settings")}<//>
    <${Quiet} aria-haspopup="dialog" act=${choose}>${t("history")}<//>
  </div>`;
}

/**
 * How tokens are chosen.
 *
 * @param {{ penalty: number }} props the base's own repetition penalty, which an empty field stands for
 */
function SettingsFields({ penalty }) {
  const { settings } = talk;
  const number = ([name, [, limits]]) => html`<${Field} label=${t(name)} type="number" inputmode="decimal" ...${limits}
    defaultValue=${settings[name]} required=${name !== "repetition_penalty"}
    placeholder=${name === "repetition_penalty" ? penalty : null}
    set=${(text, target) => target.checkValidity() && setSettings({ [name]: text ? Number(text) : null })} />`;
  const text = (name, label, hint = "") => html`<${Field} label=${label} rows=${2} placeholder=${hint}
    defaultValue=${settings[name]} set=${(value) => setSettings({ [name]: value })} />`;
  return html`<div class="settings">
    ${Object.entries(NUMBERS).map(number)}
    ${text("stop", t("stop_strings"), t("stop_strings_hint"))}
    ${settings.mode === "chat" && text("system", t("system"))}
  </div>`;
}
