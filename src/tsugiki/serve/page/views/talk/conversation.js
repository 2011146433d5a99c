/**
 * What was said, and what is being asked. It outlives the view, so that answers go on while another one is shown.
 *
 * All turns of a conversation are in one list, and `path` returns those that are shown. A turn that was edited or asked
 * again stands beside the other one, after the same turn. Turns of a chat have their own followers; of a text that is
 * continued, which no other turn depends on, they are the same.
 */

import { postJson } from "../../api.js";
import { useEffect, useReducer } from "../../ui.js";
import { generate } from "./generate.js";
import { conversations, keepConversation, lastOpen } from "./history.js";
import { namesIn, requestOf } from "./models.js";
import { loadSettings, samplingOf, saveSettings } from "./settings.js";

const LETTERS = "ABCDEF";
const DRAFT = "tsugiki.talk.draft";

/**
 * @typedef {object} Turn
 * @property {string} id
 * @property {string} key by which turns name it as the one before them
 * @property {string} after the key of the turn before; "": none
 * @property {string} prompt
 * @property {string} system message of the system in a chat; "": none
 * @property {boolean} isChat
 * @property {boolean} isBlind the models are hidden until the reader has voted
 * @property {boolean} hasVoted
 * @property {number} seed
 * @property {Answer[]} answers
 * @property {{ added: number, left_out: number }} [pairs] what its vote gave
 */

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
 * @property {number} version another one after each change
 */

export const talk = {
  /** Of the conversation in the history. */
  id: newId(),
  /** @type {Turn[]} */
  turns: [],
  /** @type {Record<string, string>} key of a turn -> id of the turn that is shown after it, otherwise the newest is */
  shown: {},
  draft: sessionStorage.getItem(DRAFT) ?? "",
  settings: loadSettings(),
  /** What the server has. @type {import("./models.js").Known | null} */
  known: null,
  /** The id of a turn that the page has to scroll to. */
  fresh: "",
};

/** @type {Set<(action: null) => void>} */
const views = new Set();
let frame = 0;

/** Draw what is new, once for all changes before the next picture. */
export function changed() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const draw of views) draw(null);
  });
}

/** Draw a component again after each change. */
export function useTalk() {
  const [, draw] = useReducer((count) => count + 1, 0);
  useEffect(() => {
    views.add(draw);
    return () => views.delete(draw);
  }, []);
}

/** @param {Partial<import("./settings.js").Settings>} settings those that change */
export function setSettings(settings) {
  saveSettings(Object.assign(talk.settings, settings));
  changed();
}

/** @param {string} text */
export function setDraft(text) {
  talk.draft = text;
  sessionStorage.setItem(DRAFT, text);
  changed();
}

/** @param {Answer} answer */
export function textOf(answer) {
  return answer.parts.map((part) => part.text).join("");
}

/** @param {Answer} answer */
export function isOpen(answer) {
  return answer.state === "waiting" || answer.state === "running";
}

export function isBusy() {
  return talk.turns.some((turn) => turn.answers.some(isOpen));
}

/** @returns {Turn[]} the turns that are shown */
export function path() {
  /** @type {Turn[]} */
  const found = [];
  while (found.length < talk.turns.length) {
    const after = found.at(-1)?.key ?? "";
    const next = talk.turns.filter((turn) => turn.after === after);
    if (!next.length) break;
    found.push(next.find((turn) => turn.id === talk.shown[after]) ?? next[next.length - 1]);
  }
  return found;
}

/** @param {Turn} turn @returns {Turn[]} it and those that it can be changed for */
export function versions(turn) {
  return talk.turns.filter((other) => other.after === turn.after);
}

/** @param {Turn} turn shown in place of its other versions */
export function show(turn) {
  talk.shown[turn.after] = turn.id;
  keep();
}

/** @param {string} prompt asked after the last turn */
export function say(prompt) {
  const { mode, blind, seed, system, models } = talk.settings;
  const asked = models ?? [];
  const after = path().at(-1)?.key ?? "";
  const isChat = mode === "chat";
  const isBlind = blind && asked.length > 1;
  add(newTurn({ prompt, isChat, isBlind, seed, system: isChat ? system : "", after }, asked));
}

/** @param {Turn} turn asked again with the next seed, or with another prompt @param {string} [prompt] */
export function again(turn, prompt) {
  stop([turn]);
  const { isChat, isBlind, system, after, key } = turn;
  const seed = prompt === undefined ? Math.max(...versions(turn).map((one) => one.seed)) + 1 : turn.seed;
  const models = turn.answers.toSorted((a, b) => a.colour - b.colour).map((answer) => answer.model);
  const next = newTurn({ prompt: prompt ?? turn.prompt, isChat, isBlind, seed, system, after }, models);
  if (!isChat) next.key = key;
  add(next);
}

/** @param {Turn} turn */
function add(turn) {
  talk.turns.push(turn);
  talk.shown[turn.after] = turn.id;
  talk.fresh = turn.id;
  ask(turn, turn.answers);
}

/** @param {Turn} turn @param {Answer} answer asked from its beginning, with the same seed */
export function retry(turn, answer) {
  Object.assign(answer, { parts: [], tokens: 0, seconds: 0, left: 0 });
  goOn(turn, answer);
}

/** @param {Turn} turn @param {Answer} answer whose text goes on */
export function goOn(turn, answer) {
  Object.assign(answer, { state: "waiting", reason: null, error: "", controller: new AbortController() });
  touch(answer);
  ask(turn, [answer]);
}

/** @param {Turn[]} turns whose answers end */
export function stop(turns = talk.turns) {
  for (const turn of turns) turn.answers.forEach((answer) => answer.controller.abort());
}

/** Begin a conversation; answers of the one before end. */
export function begin() {
  keep();
  stop();
  Object.assign(talk, { id: newId(), turns: [], shown: {} });
  keepConversation(talk.id, [], {});
  changed();
}

/** @param {import("./history.js").Conversation} kept */
export function open(kept) {
  begin();
  const answerOf = ({ text, state, ...rest }) => ({
    ...rest,
    parts: text ? [{ text, tokens: [] }] : [],
    state: state === "failed" ? state : state === "done" || state === undefined ? "done" : "stopped",
    controller: new AbortController(),
    version: 0,
  });
  talk.turns = kept.turns.map((turn, index, all) => {
    const place = { id: `${index}`, key: `${index}`, after: index ? all[index - 1].key ?? `${index - 1}` : "" };
    return { system: "", ...place, ...turn, answers: turn.answers.map(answerOf) };
  });
  talk.id = kept.id;
  talk.shown = { ...kept.shown };
  keepConversation(kept.id, [], {});
}

/** Keep the conversation in the browser, and draw it. */
export function keep() {
  if (talk.turns.length && !isLeaving) keepConversation(talk.id, talk.turns, talk.shown);
  changed();
}

/** Ask the models of a turn for answers, all at once. @param {Turn} turn @param {Answer[]} answers */
async function ask(turn, answers) {
  const own = talk.id;
  keep();
  await Promise.all(answers.map((answer) => receive(turn, answer)));
  if (own === talk.id) keep();
}

/** @param {Turn} turn @param {Answer} answer */
async function receive(turn, answer) {
  const { seconds } = answer;
  let first = 0;
  try {
    const { signal } = answer.controller;
    const { model, given, sampling } = await requestFor(turn, answer, signal);
    for await (const { parts, reason } of generate(model, given, sampling, signal)) {
      first ||= performance.now();
      answer.state = "running";
      answer.tokens += 1;
      answer.seconds = seconds + (performance.now() - first) / 1000;
      answer.parts.push(...parts);
      answer.reason ??= reason;
      touch(answer);
    }
    answer.state = "done";
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    answer.error = error.message;
  }
  touch(answer);
}

/** @param {Answer} answer */
function touch(answer) {
  answer.version += 1;
  changed();
}

/**
 * Return what is asked: the fields that choose the model, the prompt or the messages, and the sampling. Of an answer
 * that goes on, what is written stands at their end.
 *
 * @param {Turn} turn
 * @param {Answer} answer
 * @param {AbortSignal} signal
 */
async function requestFor(turn, answer, signal) {
  const { base, models, context } = /** @type {import("./models.js").Known} */ (talk.known);
  const written = textOf(answer);
  const model = requestOf(answer.model, base.name);
  const sampling = samplingOf(talk.settings, turn.seed + (written ? answer.tokens : 0));
  if (!turn.isChat) return { model, given: turn.prompt + written, sampling };
  const templateIn = (name) => namesIn(name, base.name).find((part) => models.find((one) => one.name === part)?.chat);
  const own = templateIn(answer.model);
  const beside = turn.answers.map((other) => templateIn(other.model)).find(Boolean);
  const other = own ? undefined : (beside ?? models.find((one) => one.chat)?.name);
  const chosen = { model: model.model, chat_template_of: own ?? other };
  const { messages, left, room } = await fitted(messagesFor(turn, answer.model), chosen, context, signal);
  answer.left = left;
  sampling.max_tokens = Math.max(1, Math.min(sampling.max_tokens, room - (written ? answer.tokens : 0)));
  const asked = { ...model, chat_template_of: other };
  if (!written) return { model: asked, given: messages, sampling };
  const given = [...messages, { role: "assistant", content: written }];
  return { model: { ...asked, continue_final_message: true }, given, sampling };
}

/**
 * Leave out the oldest turns of a conversation until it fits in the context with a part of the answer.
 *
 * @returns {Promise<{ messages: import("./generate.js").Message[], left: number, room: number }>} what remains, and its
 *   tokens for the answer
 */
async function fitted(messages, chosen, context, signal) {
  const first = messages[0].role === "system" ? 1 : 0;
  const wanted = Math.min(talk.settings.max_tokens, Math.floor(context / 4));
  for (let left = 0; ; left++) {
    const { count } = await postJson("/tokenize", { ...chosen, messages }, signal);
    const room = Math.max(1, context - count);
    if (room >= wanted || messages.length - first < 3) return { messages, left, room };
    messages = [...messages.slice(0, first), ...messages.slice(first + 2)];
  }
}

/**
 * Return what a model is told: its own conversation so far, and the prompt. A blind comparison begins anew, because the
 * conversation would tell which model is which.
 *
 * @param {Turn} turn
 * @param {string} [model] undefined: what all are told in a blind comparison
 * @returns {import("./generate.js").Message[]}
 */
export function messagesFor(turn, model) {
  /** @type {import("./generate.js").Message[]} */
  const messages = turn.system ? [{ role: "system", content: turn.system }] : [];
  for (const earlier of turn.isBlind ? [] : path()) {
    if (earlier === turn) break; // it may be an earlier one that is asked again
    const answer = earlier.answers.find((one) => one.model === model && one.state !== "failed" && textOf(one));
    if (!earlier.isChat || earlier.isBlind || !answer) continue;
    messages.push({ role: "user", content: earlier.prompt }, { role: "assistant", content: textOf(answer) });
  }
  return [...messages, { role: "user", content: turn.prompt }];
}

/**
 * @param {Pick<Turn, "prompt" | "isChat" | "isBlind" | "seed" | "system" | "after">} given
 * @param {string[]} models
 * @returns {Turn} with answers that have not begun; hidden ones are shuffled
 */
function newTurn(given, models) {
  const order = models.map((model, index) => ({ model, colour: index + 1, lot: Math.random() }));
  if (given.isBlind) order.sort((a, b) => a.lot - b.lot);
  const answers = order.map(({ model, colour }, index) => ({
    model, colour, letter: LETTERS[index], parts: [], state: /** @type {Answer["state"]} */ ("waiting"), reason: null,
    error: "", tokens: 0, seconds: 0, left: 0, controller: new AbortController(), version: 0,
  }));
  const id = newId();
  return { ...given, id, key: id, hasVoted: false, answers };
}

function newId() {
  return `${Date.now()}-${Math.random().toString(36).slice(2)}`;
}

let isLeaving = false;
const before = conversations().find((one) => one.id === lastOpen());
if (before) open(before);
// What is written when the page is left or put away can be continued; requests that end with the page have not failed.
document.addEventListener("visibilitychange", () => isBusy() && keep());
addEventListener("pagehide", () => (isBusy() && keep(), (isLeaving = true)));
addEventListener("pageshow", () => (isLeaving = false));
