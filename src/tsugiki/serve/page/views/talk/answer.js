/** An answer on the page: its text, whose tokens show their probabilities, and what can be done with it. */

import { html, Quiet, useApp, useLayoutEffect, useMemo, useRef, useState } from "../../ui.js";
import { goOn, isOpen, retry, textOf } from "./conversation.js";
import { hasMarkup, markdown } from "./markdown.js";
import { labelOf } from "./models.js";

/** @typedef {import("./conversation.js").Answer} Answer */
/** @typedef {import("./conversation.js").Turn} Turn */

/**
 * An answer; it is drawn again only after a change.
 *
 * @param {object} props
 * @param {Turn} props.turn
 * @param {Answer} props.answer
 * @param {boolean} props.isHidden whether its model is hidden
 * @param {boolean} props.isShaded whether tokens are shaded, which Markdown does not show
 * @param {(text: string) => void} props.announce tell it to readers who do not see the page
 */
export function AnswerCard(props) {
  const { answer, isHidden, isShaded } = props;
  return useMemo(() => html`<${Card} ...${props} />`, [answer, answer.version, answer.state, isHidden, isShaded]);
}

function Card({ turn, answer, isHidden, isShaded, announce }) {
  const app = useApp();
  const { t } = app;
  const [isPlain, setPlain] = useState(false);
  const body = useRef();
  const text = textOf(answer);
  const isMarked = turn.isChat && !isShaded && hasMarkup(text);
  const isRunning = isOpen(answer);
  const called = isHidden ? answer.letter : labelOf(answer.model);
  const isCut = answer.state === "stopped" || answer.state === "failed";
  const quiet = (label, act) => html`<${Quiet} key=${label} act=${act}>${label}<//>`;
  const copy = async () => {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    // a page that is not from this machine may not write to the clipboard
    else if (body.current) getSelection()?.selectAllChildren(body.current);
    announce(navigator.clipboard ? t("copied") : t("selected"));
  };
  const marks = { "aria-label": called, "aria-busy": String(isRunning), "data-state": answer.state };
  return html`<div class="answer" role="group" ...${marks}>
    <header><h2><i class="dot" data-colour=${isHidden ? 0 : answer.colour}></i>${called}</h2></header>
    <div class="body" ref=${body}>
      ${isMarked && !isPlain
        ? html`<div class="rich" dir="auto">${markdown(text)}</div>`
        : html`<${Tokens} answer=${answer} />`}
    </div>
    <footer>
      <p class="note">${describe(answer, app, isHidden)}</p>
      <div class="actions">
        ${isMarked && quiet(t(isPlain ? "formatted" : "plain"), () => setPlain(!isPlain))}
        ${((isCut && text) || answer.reason === "length") && quiet(t("go_on"), () => goOn(turn, answer))}
        ${isCut && quiet(t("retry"), () => retry(turn, answer))}
        ${isRunning && quiet(t("stop"), () => answer.controller.abort())}
        ${!isRunning && text && quiet(t("copy"), copy)}
      </div>
    </footer>
  </div>`;
}

/** The text of an answer, token by token; one of them can show its probability. */
function Tokens({ answer }) {
  const [marked, mark] = useState(-1);
  const frame = useRef();
  const tip = useRef();
  const part = answer.parts[marked];
  useLayoutEffect(() => {
    const token = frame.current?.querySelector(".marked");
    if (!tip.current || !frame.current || !token) return;
    const place = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const around = frame.current.getBoundingClientRect();
    const left = Math.min(place.left - around.left, around.width - tip.current.offsetWidth);
    tip.current.style.left = `${Math.max(0, left)}px`;
    tip.current.style.top = `${place.bottom - around.top + 6}px`;
  }, [marked, answer.version]);
  const point = (event) => mark(Number(event.target.closest("[data-part]")?.dataset.part ?? -1));
  const step = (event) => {
    const change = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (change) {
      event.preventDefault();
      mark(Math.min(Math.max(0, marked + change), answer.parts.length - 1));
    } else if (event.key === "Escape") mark(-1);
  };
  const close = () => mark(-1);
  return html`<div ref=${frame}>
    <div class="text" tabindex="0" dir="auto" onPointerOver=${point} onClick=${point} onPointerLeave=${close}
      onBlur=${close} onKeyDown=${step}>
      ${answer.parts.map((one, index) => drawToken(one, index, index === marked))}
    </div>
    <div class="tip" role="status" ref=${tip} hidden=${!part?.tokens.length}>
      ${part?.tokens.length > 0 && html`<${Probabilities} part=${part} />`}
    </div>
  </div>`;
}

/** Parts that are drawn already, so that a long text costs little for each new token. @type {WeakMap<object, any>} */
const drawn = new WeakMap();

/** @param {import("./generate.js").Part} part @param {number} index @param {boolean} isMarked */
function drawToken(part, index, isMarked) {
  const probability = Math.exp(part.tokens.reduce((sum, token) => sum + token.logprob, 0));
  const level = [0.5, 0.2, 0.05, 0.01].filter((bound) => probability < bound).length;
  if (isMarked) return html`<span class="marked" data-part=${index} data-level=${level}>${part.text}</span>`;
  if (!drawn.has(part)) drawn.set(part, html`<span data-part=${index} data-level=${level}>${part.text}</span>`);
  return drawn.get(part);
}

/**
 * @param {Answer} answer
 * @param {import("../../app.js").App} app
 * @param {boolean} isHidden whether nothing may be said that tells its model
 * @returns {string} how it goes, or how it ended
 */
function describe(answer, { t }, isHidden) {
  if (answer.state === "failed") return answer.error;
  if (answer.state === "waiting") return t("waiting");
  if (answer.state === "running" || (isHidden && answer.parts.length)) return "";
  const speed = answer.seconds > 0 ? (answer.tokens - 1) / answer.seconds : 0;
  if (!answer.parts.length) return answer.state === "stopped" ? t("stopped") : t("nothing");
  const facts = [answer.tokens === 1 ? t("one_token") : t("tokens", { count: answer.tokens })];
  if (speed > 0) facts.push(t("speed", { speed: Number(speed.toPrecision(3)) }));
  if (answer.left) facts.push(t("left_out", { count: answer.left }));
  if (answer.state === "stopped") facts.push(t("stopped"));
  else if (answer.reason === "length") facts.push(t("at_limit"));
  return facts.join(" · ");
}

/** The probabilities of the token of a part and of others there, or of each of its tokens. */
function Probabilities({ part }) {
  const { t, lang } = useApp();
  const single = part.tokens.length === 1;
  const [token] = part.tokens;
  let rows = part.tokens.map((one) => [one.text, one.logprob]);
  if (single) {
    rows = token.top.some(([text]) => text === token.text) ? token.top : [...token.top, [token.text, token.logprob]];
  }
  const row = ([text, logprob]) => html`<tr aria-current=${single && text === token.text ? "true" : null}>
    <td class="mono">${visible(text)}</td>
    <td><i class="bar" style=${{ width: `${Math.max(2, 100 * Math.exp(logprob))}%` }}></i></td>
    <td class="number">${percent(Math.exp(logprob), lang)}</td>
  </tr>`;
  return html`<table>
    <caption>${single ? t("probability") : t("several_tokens")}</caption>
    <tbody>${rows.map(row)}</tbody>
  </table>`;
}

/** @param {string} text of a token; spaces and line ends become visible */
function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

/**
 * @param {number} value
 * @param {string} lang
 */
export function percent(value, lang) {
  const digits = 0 < value && value < 0.1 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: 0 };
  return 0 < value && value < 0.0001 ? "<0.01%" : value.toLocaleString(lang, { style: "percent", ...digits });
}
