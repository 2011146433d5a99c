/** An answer on the page: its text, whose tokens show their probabilities, and what can be done with it. */

import { Actions, html, lang, t, useLayoutEffect, useMemo, useRef, useState } from "../../ui.js";
import { goOn, isOpen, retry, talk, textOf } from "./conversation.js";
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
 * @param {(text: string) => void} props.announce tell it to readers who do not see the page
 */
export function AnswerCard(props) {
  const { answer, isHidden } = props;
  const { shaded } = talk.settings; // tokens are shaded, which Markdown does not show
  return useMemo(() => html`<${Card} ...${props} />`, [answer, answer.parts.length, answer.state, isHidden, shaded]);
}

function Card({ turn, answer, isHidden, announce }) {
  const [isPlain, setPlain] = useState(false);
  const body = useRef();
  const text = textOf(answer);
  const isMarked = turn.isChat && !talk.settings.shaded && hasMarkup(text);
  const isRunning = isOpen(answer);
  const called = isHidden ? answer.letter : labelOf(answer.model);
  const isCut = answer.state === "stopped" || answer.state === "failed";
  const copy = async () => {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    // a page that is not from this machine may not write to the clipboard
    else if (body.current) getSelection()?.selectAllChildren(body.current);
    announce(t(navigator.clipboard ? "copied" : "selected"));
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
      <p class="note">${describe(answer, isHidden)}</p>
      <${Actions} kind="quiet" of=${[
        [isMarked, t(isPlain ? "formatted" : "plain"), () => setPlain(!isPlain)],
        [(isCut && text) || answer.reason === "length", t("go_on"), () => goOn(turn, answer)],
        [isCut, t("retry"), () => retry(turn, answer)],
        [isRunning, t("stop"), () => answer.controller.abort()],
        [!isRunning && text, t("copy"), copy],
      ]} />
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
  }, [marked, answer.parts.length]);
  const point = (event) => mark(Number(event.target.closest("[data-part]")?.dataset.part ?? -1));
  const close = () => mark(-1);
  const step = (event) => {
    if (event.key === "Escape") close();
    const change = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!change) return;
    event.preventDefault();
    mark(Math.min(Math.max(0, marked + change), answer.parts.length - 1));
  };
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

/** Say how an answer goes, or has ended. @param {Answer} answer @param {boolean} isHidden nothing may tell its model */
function describe({ state, error, parts, tokens, seconds, left, reason }, isHidden) {
  if (state === "failed") return error;
  if (state === "waiting") return t("waiting");
  if (state === "running" || (isHidden && parts.length)) return "";
  if (!parts.length) return t(state === "stopped" ? "stopped" : "nothing");
  const speed = seconds > 0 && tokens > 1 && Number(((tokens - 1) / seconds).toPrecision(3));
  const facts = [
    tokens === 1 ? t("one_token") : t("tokens", { count: tokens }),
    speed && t("speed", { speed }),
    left && t("left_out", { count: left }),
    state === "stopped" ? t("stopped") : reason === "length" && t("at_limit"),
  ];
  return facts.filter(Boolean).join(" · ");
}

/** The probabilities of the token of a part and of others there, or of each of its tokens. */
function Probabilities({ part }) {
  const [token, ...more] = part.tokens;
  const isAlone = !more.length;
  const own = isAlone && token.top.some(([text]) => text === token.text) ? [] : part.tokens;
  const rows = [...(isAlone ? token.top : []), ...own.map((one) => [one.text, one.logprob])];
  const row = ([text, logprob]) => html`<tr aria-current=${isAlone && text === token.text ? "true" : null}>
    <td class="mono">${visible(text)}</td>
    <td><i class="bar" style=${{ width: `${Math.max(2, 100 * Math.exp(logprob))}%` }}></i></td>
    <td class="number">${percent(Math.exp(logprob))}</td>
  </tr>`;
  return html`<table>
    <caption>${t(isAlone ? "probability" : "several_tokens")}</caption>
    <tbody>${rows.map(row)}</tbody>
  </table>`;
}

/** @param {string} text of a token; spaces and line ends become visible */
function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

/** @param {number} value */
export function percent(value) {
  const digits = 0 < value && value < 0.1 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: 0 };
  return 0 < value && value < 0.0001 ? "<0.01%" : value.toLocaleString(lang, { style: "percent", ...digits });
}
