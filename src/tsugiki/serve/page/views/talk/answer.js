/** An answer on the page: its text, whose tokens show their probabilities, and what can be done with it. */

import { button, fill, h } from "../../dom.js";
import { hasMarkup, markdown } from "./markdown.js";
import { labelOf } from "./models.js";

/**
 * @typedef {object} Answer
 * @property {string} model
 * @property {number} colour 1 to 6
 * @property {string} letter what it is called while the model is hidden
 * @property {import("./generate.js").Part[]} parts
 * @property {"waiting" | "running" | "done" | "stopped" | "failed"} state
 * @property {string | null} reason why it has ended
 * @property {string} error why it has failed
 * @property {number} tokens
 * @property {number} seconds from the first token to the last one
 * @property {number} left turns of the conversation that were left out, because they did not fit in the context
 * @property {AbortController} controller stops it
 * @property {() => void} changed draws what is new
 */

/** @param {Answer} answer */
export function textOf(answer) {
  return answer.parts.map((part) => part.text).join("");
}

/** @param {Answer} answer */
export function isOpen(answer) {
  return answer.state === "waiting" || answer.state === "running";
}

/**
 * Draw an answer, which then draws what is new by itself.
 *
 * @param {Answer} answer
 * @param {import("../../app.js").App} app
 * @param {() => boolean} isHidden whether its model is hidden
 * @param {(text: string) => void} say tell it to readers who do not see the page
 * @param {boolean} isChat whether Markdown in it is shown as such
 * @param {() => void} retry ask for it again, with the same seed
 * @returns {HTMLElement}
 */
export function drawAnswer(answer, app, isHidden, say, isChat, retry) {
  const { t } = app;
  const name = h("h2");
  const rich = h("div.rich", { dir: "auto" });
  let isPlain = false;
  const text = h("div.text", { tabindex: 0, dir: "auto" });
  const tip = h("div.tip", { role: "status", hidden: true });
  const note = h("p.note");
  const actions = h("div.actions");
  const body = h("div.body", {}, text, rich, tip);
  const card = h("section.answer", {}, h("header", {}, name), body, h("footer", {}, note, actions));
  let drawn = 0;

  answer.changed = () => {
    const called = isHidden() ? answer.letter : labelOf(answer.model);
    fill(name, h("i.dot", { dataset: { colour: isHidden() ? 0 : answer.colour } }), called);
    card.setAttribute("aria-label", called);
    card.setAttribute("aria-busy", String(isOpen(answer)));
    card.dataset.state = answer.state;
    if (drawn > answer.parts.length) {
      fill(text);
      fill(rich);
      drawn = 0;
    }
    for (; drawn < answer.parts.length; drawn++) text.append(span(answer.parts[drawn], drawn));
    fill(note, describe(answer, app, isHidden()));
    const isMarked = isChat && !isOpen(answer) && hasMarkup(textOf(answer));
    body.toggleAttribute("data-rich", isMarked && !isPlain);
    if (isMarked && !rich.hasChildNodes()) fill(rich, markdown(textOf(answer)));
    const change = () => ((isPlain = !isPlain), answer.changed());
    fill(
      actions,
      isMarked && button(t(isPlain ? "formatted" : "plain"), change, { class: "quiet" }),
      (answer.state === "failed" || answer.state === "stopped") && button(t("retry"), retry, { class: "quiet" }),
      isOpen(answer) && button(t("stop"), () => answer.controller.abort(), { class: "quiet" }),
      !isOpen(answer) && drawn > 0 && button(t("copy"), copy, { class: "quiet" }),
    );
  };

  async function copy() {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(textOf(answer));
      say(t("copied"));
    } else {
      getSelection().selectAllChildren(text); // a page that is not from this machine may not write to the clipboard
      say(t("selected"));
    }
  }

  /** @type {HTMLElement | null} */
  let marked = null;
  /** @param {HTMLElement | null} next the token whose probability is shown; null: none */
  function mark(next) {
    marked?.classList.remove("marked");
    marked = next;
    tip.hidden = !next || !answer.parts[Number(next.dataset.part)].tokens.length; // of an earlier visit there are none
    if (next === null) return;
    next.classList.add("marked");
    fill(tip, explain(answer.parts[Number(next.dataset.part)], app));
    const place = next.getClientRects()[0];
    const frame = body.getBoundingClientRect();
    const left = Math.min(place.left - frame.left, frame.width - tip.offsetWidth);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${place.bottom - frame.top + 6}px`;
  }
  const tokenOf = (event) => event.target.closest("[data-part]");
  text.addEventListener("pointerover", (event) => mark(tokenOf(event)));
  text.addEventListener("click", (event) => mark(tokenOf(event)));
  text.addEventListener("pointerleave", () => mark(null));
  text.addEventListener("blur", () => mark(null));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (step) {
      event.preventDefault();
      mark((marked ? marked[step] : text.firstElementChild) ?? marked);
    } else if (event.key === "Escape") mark(null);
  });

  answer.changed();
  return card;
}

/**
 * @param {import("./generate.js").Part} part
 * @param {number} index
 */
function span(part, index) {
  const probability = Math.exp(part.tokens.reduce((sum, token) => sum + token.logprob, 0));
  const level = [0.5, 0.2, 0.05, 0.01].filter((bound) => probability < bound).length;
  return h("span", { dataset: { part: index, level } }, part.text);
}

/**
 * @param {Answer} answer
 * @param {import("../../app.js").App} app
 * @param {boolean} hidden whether nothing may be said that tells its model
 * @returns {string} how it goes, or how it ended
 */
function describe(answer, { t }, hidden) {
  if (answer.state === "failed") return answer.error;
  if (answer.state === "waiting") return t("waiting");
  if (answer.state === "running" || (hidden && answer.parts.length)) return "";
  const speed = answer.seconds > 0 ? (answer.tokens - 1) / answer.seconds : 0;
  if (!answer.parts.length) return answer.state === "stopped" ? t("stopped") : t("nothing");
  const facts = [answer.tokens === 1 ? t("one_token") : t("tokens", { count: answer.tokens })];
  if (speed > 0) facts.push(t("speed", { speed: Number(speed.toPrecision(3)) }));
  if (answer.left) facts.push(t("left_out", { count: answer.left }));
  if (answer.state === "stopped") facts.push(t("stopped"));
  else if (answer.reason === "length") facts.push(t("at_limit"));
  return facts.join(" · ");
}

/**
 * @param {import("./generate.js").Part} part
 * @param {import("../../app.js").App} app
 * @returns {HTMLElement} the probabilities of its token and of others there, or of each of its tokens
 */
function explain(part, { t, lang }) {
  const single = part.tokens.length === 1;
  const [token] = part.tokens;
  let rows = part.tokens.map((one) => [one.text, one.logprob]);
  if (single) {
    rows = token.top.some(([text]) => text === token.text) ? token.top : [...token.top, [token.text, token.logprob]];
  }
  return h(
    "table",
    {},
    h("caption", {}, single ? t("probability") : t("several_tokens")),
    rows.map(([text, logprob]) => {
      const bar = h("i.bar");
      bar.style.width = `${Math.max(2, 100 * Math.exp(logprob))}%`;
      return h(
        "tr",
        { "aria-current": single && text === token.text },
        h("td.mono", {}, visible(text)),
        h("td", {}, bar),
        h("td.number", {}, percent(Math.exp(logprob), lang)),
      );
    }),
  );
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
