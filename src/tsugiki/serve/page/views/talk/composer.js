/** The form below the turns: the models, the prompt, and how it is answered. */

import { html, Quiet, useApp, useEffect, useRef, useState } from "../../ui.js";
import { isBusy, open, say, setDraft, setSettings, stop, talk } from "./conversation.js";
import { chooseConversation } from "./history.js";
import { chooseModel, labelOf, MOST } from "./models.js";
import { SettingsFields } from "./settings.js";
import { isSending } from "./turn.js";

/** @param {{ known: import("./models.js").Known }} props */
export function Composer({ known }) {
  const { t } = useApp();
  const { settings, draft, turns } = talk;
  const [isUnfolded, unfold] = useState(false);
  const [hasSettings, showSettings] = useState(false);
  const prompt = useRef();
  const shown = useRef(talk.id);
  const isChat = settings.mode === "chat";
  useEffect(() => {
    if (shown.current !== talk.id) prompt.current.focus(); // another conversation
    shown.current = talk.id;
  }, [talk.id]);
  const submit = (event) => {
    event.preventDefault();
    if (isBusy()) return stop();
    if (!talk.draft.trim()) return prompt.current?.focus();
    say(isChat ? talk.draft.trim() : talk.draft);
    if (isChat) setDraft("");
    unfold(false);
    showSettings(false);
    return undefined;
  };
  const key = (event) => {
    if (!isSending(event, isChat)) return;
    event.preventDefault();
    if (!isBusy()) event.target.form.requestSubmit();
  };
  const busy = isBusy();
  const sends = busy ? t("stop") : isChat ? t("send") : t("continue");
  return html`<form class="composer" data-folded=${String(turns.length > 0 && !isUnfolded)} onSubmit=${submit}>
    <${Chips} known=${known} />
    <textarea rows="1" aria-label=${t("prompt")} value=${draft} ref=${prompt} onKeyDown=${key}
      placeholder=${isChat ? t("prompt.chat") : t("prompt.continue")}
      onInput=${(event) => setDraft(event.target.value)} />
    ${hasSettings &&
    html`<${SettingsFields} settings=${settings} penalty=${known.base.repetition_penalty} change=${setSettings} />`}
    <div class="row">
      ${turns.length > 0 &&
      html`<${Quiet} class="quiet fold" aria-expanded=${String(isUnfolded)}
        act=${() => (unfold(!isUnfolded), showSettings(false))}>${t("options")}<//>`}
      <${Options} ...${{ known, hasSettings, showSettings }} />
      <button class=${busy ? null : "primary"}>${sends}</button>
    </div>
    <p class="hint faint">${isChat ? t("hint.chat") : t("hint.continue")}</p>
  </form>`;
}

/** The models that answer. */
function Chips({ known }) {
  const { t } = useApp();
  const models = /** @type {string[]} */ (talk.settings.models);
  const put = (at, ...names) =>
    setSettings({ models: models.toSpliced(at, 1, ...names) });
  const choose = async (at) => {
    const name = await chooseModel(known, models[at] ?? "", t);
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
function Options({ known, hasSettings, showSettings }) {
  const app = useApp();
  const { t } = app;
  const { settings } = talk;
  const mode = (name, label) => html`<label>
    <input type="radio" name="mode" checked=${settings.mode === name} onChange=${() => setSettings({ mode: name })} />
    ${label}
  </label>`;
  const check = (name, label) => html`<label class="check">
    <input type="checkbox" checked=${settings[name]} onChange=${() => setSettings({ [name]: !settings[name] })} />
    ${label}
  </label>`;
  const choose = async () => {
    const chosen = await chooseConversation(app);
    if (chosen) open(chosen);
  };
  return html`<div class="options">
    ${known.models.some((one) => one.chat) &&
    html`<span class="modes">${mode("chat", t("mode.chat"))}${mode("continue", t("mode.continue"))}</span>`}
    ${check("blind", t("blind"))}${check("shaded", t("shaded"))}
    <${Quiet} aria-expanded=${String(hasSettings)} act=${() => showSettings(!hasSettings)}>${t("settings")}<//>
    <${Quiet} aria-haspopup="dialog" act=${choose}>${t("history")}<//>
  </div>`;
}
