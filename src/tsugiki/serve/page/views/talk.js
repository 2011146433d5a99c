/**
 * Talk: one prompt, answered by the base and by adapters side by side with the same seed.
 *
 * What was said stays, and answers go on, while other views are shown. Conversations are kept in the browser.
 */

import { getJson } from "../api.js";
import { Actions, fail, Form, html, Input, Quiet, t, useEffect, useJson, useRef, useState } from "../ui.js";
import { AnswerCard } from "./talk/answer.js";
import { Composer, isSending } from "./talk/composer.js";
import { again, begin, isBusy, isOpen, path, say, setSettings, show, stop } from "./talk/conversation.js";
import { talk, useTalk, versions } from "./talk/conversation.js";
import { chosenAtFirst, knownOf } from "./talk/models.js";
import { vote, Votes } from "./talk/votes.js";

/** @param {{ path: string[] }} props a model that answers beside the base */
export default function Talk({ path: [opened] }) {
  const [said, announce] = useState("");
  const [kept, loadKept, setKept] = useJson("/page/api/votes");
  const known = useModels(opened);
  useTalk();
  const busy = isBusy();
  useEffect(() => {
    if (busy) announce("");
    return () => busy && announce(t("finished"));
  }, [busy]);
  const title = html`<h1 class="unseen">${t("title")}</h1>`;
  if (!known) return title;
  const turns = path();
  const turn = (one, index) =>
    html`<${TurnCard} turn=${one} isLast=${index === turns.length - 1} ...${{ announce, voted: loadKept }} />`;
  return html`${title}
    <div class=${talk.settings.shaded ? "turns shaded" : "turns"}>
      ${turns.length ? turns.map(turn) : html`<${Welcome} known=${known} />`}
      <${Votes} base=${known.base.name} isOpen=${turns.at(-1)?.hasVoted} ...${{ kept, setKept }} />
    </div>
    <${Composer} known=${known} />
    <p class="unseen" role="status">${said}</p>`;
}

/** Ask what the server has; while it does not answer, what it had stays. */
function useModels(opened) {
  const [known, setKnown] = useState(/** @type {import("./talk/models.js").Known | null} */ (null));
  useEffect(() => {
    const show = () => {
      if (talk.known) setSettings(chosenAtFirst(talk.settings, talk.known, opened));
      setKnown(talk.known);
    };
    const keep = (answer) => (talk.known = knownOf(answer));
    getJson("/page/api/models").then(keep, fail).then(show);
  }, [opened]);
  return known;
}

function Welcome({ known }) {
  const kind = known.base.name === "embedded" ? "embedded" : talk.settings.mode; // that one writes Japanese alone
  const example = t(`example.${kind}`);
  return html`<div class="welcome">
    <h2>${t("title")}</h2>
    <p>${t("welcome")}</p>
    <p><span class="faint small">${t("example")}</span> <${Quiet} class="" act=${() => say(example)}>${example}<//></p>
    ${known.models.length === 1 && html`<p class="faint"><a href="#train">${t("no_adapters")}</a></p>`}
  </div>`;
}

/**
 * A prompt and its answers, side by side; it can be edited, asked again, and changed for its other versions.
 *
 * @param {object} props
 * @param {import("./talk/conversation.js").Turn} props.turn
 * @param {boolean} props.isLast
 * @param {(text: string) => void} props.announce tell it to readers who do not see the page
 * @param {() => void} props.voted called after a vote
 */
function TurnCard({ turn, isLast, announce, voted }) {
  const frame = useRef();
  const foot = useRef();
  const [edited, edit] = useState(""); // the id of a turn; another version can take this place
  const close = () => (edit(""), frame.current.querySelector(".edits").focus());
  const isRunning = turn.answers.some(isOpen);
  const isHidden = turn.isBlind && !turn.hasVoted;
  const { added, left_out: without } = turn.pairs ?? { added: 0, left_out: 0 }; // what a vote gave
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  useEffect(() => {
    if (talk.fresh !== turn.id) return;
    talk.fresh = "";
    frame.current?.scrollIntoView({ block: "start", behavior });
  }, [turn.id]);
  useEffect(() => frame.current?.querySelector(".edit textarea")?.focus(), [edited]);
  useEffect(() => {
    if (isLast && isHidden && !isRunning) foot.current?.scrollIntoView({ block: "nearest", behavior });
  }, [isRunning]);
  const answer = (one) => html`<${AnswerCard} key=${`${turn.id} ${one.letter}`} answer=${one}
    ...${{ turn, isHidden, announce }} />`;
  return html`<article class="turn" ref=${frame}>
    <header>
      ${edited === turn.id
        ? html`<${Edit} turn=${turn} close=${close} />`
        : html`<p class="prompt" dir="auto">${turn.prompt}</p>`}
      <${Bar} ...${{ turn, isLast, isRunning, edit: () => edit(turn.id) }} />
    </header>
    <div class="answers" data-count=${turn.answers.length}>${turn.answers.map(answer)}</div>
    <div class="actions foot" ref=${foot}>
      ${isHidden && !isRunning && html`<${Ballot} ...${{ turn, foot, voted }} />`}
      ${turn.pairs && html`<p class="small faint" role="status">
        ${added > 0 && t("pairs.added", { count: added })} ${without > 0 && t("pairs.none", { count: without })}
      </p>`}
    </div>
  </article>`;
}

/** What can be done with a turn. */
function Bar({ turn, isLast, isRunning, edit }) {
  const others = versions(turn);
  const at = others.indexOf(turn);
  const step = (by, sign, label) =>
    html`<${Quiet} aria-label=${label} disabled=${!others[at + by]} act=${() => show(others[at + by])}>${sign}<//>`;
  return html`<${Actions} kind="quiet" of=${[
    [true, t("edit"), edit, "quiet edits", { title: t("edit_title") }],
    [isRunning, t("stop"), () => stop([turn])],
    [!isRunning, t("again"), () => again(turn), "quiet", { title: t("again_title") }],
    [isLast && !isRunning, t("clear"), begin],
  ]}>
    <span class="small faint">${t("seed_is", { seed: String(turn.seed) })}</span>
    ${others.length > 1 &&
    html`<span class="versions">
      ${step(-1, "‹", t("version.before"))}
      <span class="small faint">${t("version", { number: at + 1, count: others.length })}</span>
      ${step(1, "›", t("version.after"))}
    </span>`}
  <//>`;
}

/** The prompt of a turn to change; the new one gets a version of its own. */
function Edit({ turn, close }) {
  const [text, setText] = useState(turn.prompt);
  const submit = () => {
    if (!text.trim()) return;
    close();
    again(turn, turn.isChat ? text.trim() : text);
  };
  const key = (event) => {
    if (event.key === "Escape") close();
    if (!isSending(event, turn.isChat)) return;
    event.preventDefault();
    submit();
  };
  return html`<${Form} class="edit" act=${submit}>
    <${Input} rows=${2} dir="auto" aria-label=${t("edit.label")} value=${text} set=${setText} onKeyDown=${key} />
    <div class="actions">
      <button class="primary">${t("edit.ask")}</button><${Quiet} act=${close}>${t("cancel")}<//>
    </div>
  <//>`;
}

/** The question which answer is best, while the models are hidden. */
function Ballot({ turn, foot, voted }) {
  const choose = (best) => (event) => {
    vote(talk.known?.base.name ?? "", turn, best).catch(fail).then(voted);
    if (event.detail) return; // a pointer; the button goes away, and the keyboard goes on to the next vote or prompt
    const next = [...document.querySelectorAll(".foot button, .composer textarea")];
    /** @type {HTMLElement | undefined} */ (next.find((one) => !foot.current.contains(one)))?.focus();
  };
  const button = (text, best) => html`<button type="button" onClick=${choose(best)}>${text}</button>`;
  return html`<span>${t("which")}</span>
    ${turn.answers.map((answer, index) => button(answer.letter, index))} ${button(t("no_difference"), null)}`;
}
