/** A prompt and its answers, side by side; it can be edited, asked again, and changed for its other versions. */

import { html, Quiet, useApp, useEffect, useRef, useState } from "../../ui.js";
import { AnswerCard } from "./answer.js";
import { again, begin, isOpen, show, stop, talk, versions } from "./conversation.js";
import { vote } from "./votes.js";

/**
 * @param {object} props
 * @param {import("./conversation.js").Turn} props.turn
 * @param {boolean} props.isLast
 * @param {(text: string) => void} props.announce tell it to readers who do not see the page
 * @param {() => void} props.voted called after a vote
 */
export function TurnCard({ turn, isLast, announce, voted }) {
  const frame = useRef();
  const foot = useRef();
  const editor = useRef();
  const [edited, edit] = useState(""); // the id of a turn; another version can take this place
  const close = () => (edit(""), editor.current.focus());
  const isRunning = turn.answers.some(isOpen);
  const isHidden = turn.isBlind && !turn.hasVoted;
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  useEffect(() => {
    if (talk.fresh !== turn.id) return;
    talk.fresh = "";
    frame.current?.scrollIntoView({ block: "start", behavior });
  }, [turn.id]);
  useEffect(() => {
    if (isLast && isHidden && !isRunning) foot.current?.scrollIntoView({ block: "nearest", behavior });
  }, [isRunning]);
  return html`<article class="turn" ref=${frame}>
    <header>
      ${edited === turn.id
        ? html`<${Edit} turn=${turn} close=${close} />`
        : html`<p class="prompt" dir="auto">${turn.prompt}</p>`}
      <${Bar} ...${{ turn, isLast, isRunning, editor, edit: () => edit(turn.id) }} />
    </header>
    <div class="answers" data-count=${turn.answers.length}>
      ${turn.answers.map(
        (answer) => html`<${AnswerCard} key=${`${turn.id} ${answer.letter}`} isShaded=${talk.settings.shaded}
          ...${{ turn, answer, isHidden, announce }} />`,
      )}
    </div>
    <div class="actions foot" ref=${foot}>
      ${isHidden && !isRunning && html`<${Ballot} ...${{ turn, voted }} />`}
      <${Given} turn=${turn} />
    </div>
  </article>`;
}

/** What can be done with a turn. */
function Bar({ turn, isLast, isRunning, editor, edit }) {
  const { t } = useApp();
  const others = versions(turn);
  const at = others.indexOf(turn);
  const step = (by, sign, label) =>
    html`<${Quiet} aria-label=${label} disabled=${!others[at + by]} act=${() => show(others[at + by])}>${sign}<//>`;
  return html`<div class="actions">
    <span class="small faint">${t("seed_is", { seed: String(turn.seed) })}</span>
    ${others.length > 1 &&
    html`<span class="versions">
      ${step(-1, "‹", t("version.before"))}
      <span class="small faint">${t("version", { number: at + 1, count: others.length })}</span>
      ${step(1, "›", t("version.after"))}
    </span>`}
    <button type="button" class="quiet" title=${t("edit_title")} ref=${editor} onClick=${edit}>${t("edit")}</button>
    ${isRunning
      ? html`<${Quiet} act=${() => stop([turn])}>${t("stop")}<//>`
      : html`<${Quiet} title=${t("again_title")} act=${() => again(turn)}>${t("again")}<//>`}
    ${isLast && !isRunning && html`<${Quiet} act=${begin}>${t("clear")}<//>`}
  </div>`;
}

/** The prompt of a turn to change; the new one gets a version of its own. */
function Edit({ turn, close }) {
  const { t } = useApp();
  const [text, setText] = useState(turn.prompt);
  const field = useRef();
  useEffect(() => field.current?.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    if (!text.trim()) return;
    close();
    again(turn, turn.isChat ? text.trim() : text);
  };
  const key = (event) => {
    if (event.key === "Escape") close();
    else if (isSending(event, turn.isChat)) submit(event);
  };
  return html`<form class="edit" onSubmit=${submit}>
    <textarea rows="2" dir="auto" aria-label=${t("edit.label")} value=${text} ref=${field} onKeyDown=${key}
      onInput=${(event) => setText(event.target.value)} />
    <div class="actions">
      <button class="primary">${t("edit.ask")}</button>
      <${Quiet} act=${close}>${t("cancel")}<//>
    </div>
  </form>`;
}

/** @param {KeyboardEvent} event @param {boolean} isChat Enter sends there; Ctrl+Enter always, an input method never */
export function isSending(event, isChat) {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return false;
  return event.ctrlKey || event.metaKey || (isChat && !event.shiftKey);
}

/** The question which answer is best, while the models are hidden. */
function Ballot({ turn, voted }) {
  const { t, fail } = useApp();
  const base = talk.known?.base.name ?? "";
  const choose = (best) => vote(base, turn, best).catch(fail).then(voted);
  const button = (text, best) => html`<button type="button" onClick=${() => choose(best)}>${text}</button>`;
  return html`<span>${t("which")}</span>
    ${turn.answers.map((answer, index) => button(answer.letter, index))} ${button(t("no_difference"), null)}`;
}

/** What a vote gave: pairs, or why there are none. */
function Given({ turn }) {
  const { t } = useApp();
  if (!turn.pairs) return null;
  const { added, left_out: without } = turn.pairs;
  return html`<p class="small faint" role="status">
    ${added > 0 && t("pairs.added", { count: added })} ${without > 0 && t("pairs.none", { count: without })}
  </p>`;
}
