/**
 * What was said, and what is being asked. It outlives the view, so that answers go on while another one is shown.
 *
 * All turns of a conversation are in one list, and `path` returns those that are shown. A turn that was edited or asked
 * again stands beside the other one, after the same turn. Turns of a chat have their own followers; of a text that is
 * continued, which no other turn depends on, they are the same.
 */

import { postJson } from "../../api.js";
import { useReducer } from "../../ui.js";
import { generate } from "./generate.js";
import { keepConversation, lastOpen } from "./history.js";
import { factorsOf, namesIn } from "./models.js";

const LETTERS = "ABCDEF";
const DRAFT = "tsugiki.talk.draft";
const SETTINGS = "tsugiki.talk";

/**
 * How a prompt is answered; it is kept in the browser.
 *
 * @typedef {object} Settings also by the names of NUMBERS
 * @property {string} stop texts, one a line
 * @property {string} system
 * @property {"chat" | "continue" | null} mode
 * @property {boolean} blind
 * @property {boolean} shaded
 * @property {string[] | null} models
 * @property {string} given the adapters of --adapter when the page was last open
 */

/** Fields of a request: what they are at first, and their limits. @type {Record<string, [number | null, object]>} */
export const NUMBERS = {
  temperature: [0.7, { min: 0, max: 2, step: "any" }],
  top_p: [0.9, { min: 0.01, max: 1, step: "any" }],
  top_k: [0, { min: 0, max: 100000, step: 1 }],
  min_p: [0, { min: 0, max: 1, step: "any" }],
  repetition_penalty: [null, { min: 0.5, max: 2, step: "any" }], // null: that of the base's generation settings
  max_tokens: [120, { min: 1, max: 100000, step: 1 }],
  seed: [1, { min: 0, max: 2 ** 31, step: 1 }],
};
const NUMBERS_AT_FIRST = Object.fromEntries(Object.entries(NUMBERS).map(([name, [start]]) => [name, start]));
/** @type {Settings} */
const AT_FIRST = { stop: "", system: "", mode: null, blind: false, shaded: false, models: null, given: "" };

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
 */

export const talk = {
  /** Of the conversation in the history. */
  id: newId(),
  /** @type {Turn[]} */
  turns: [],
  /** @type {Record<string, string>} key of a turn -> id of the turn that is shown after it, otherwise the newest is */
  shown: {},
  draft: sessionStorage.getItem(DRAFT) ?? "",
  /** @type {Settings & Record<string, any>} */
  settings: { ...NUMBERS_AT_FIRST, ...AT_FIRST, ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") },
  /** What the server has. @type {import("./models.js").Known | null} */
  known: null,
  /** The id of a turn that the page has to scroll to. */
  fresh: "",
};

let redraw = () => {}; // the view
let picture = 0;

/** Draw what is new, once for all changes before the next picture. */
export function changed() {
  picture ||= requestAnimationFrame(() => {
    picture = 0;
    redraw();
  });
}

/** Draw a component again after each change. */
export function useTalk() {
  const [, draw] = useReducer((count) => count + 1, 0);
  redraw = () => draw(null); // without effect after the view is left
}

/** @param {Partial<Settings>} settings those that change */
export function setSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(Object.assign(talk.settings, settings)));
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

/**
 * @param {string} [after] key of a turn
 * @param {number} [most] so many at most, as an imported file can have turns that follow each other in a circle
 * @returns {Turn[]} the turns that are shown after it
 */
export function path(after = "", most = talk.turns.length) {
  const next = talk.turns.filter((turn) => turn.after === after);
  const shown = next.find((turn) => turn.id === talk.shown[after]) ?? next.at(-1);
  return shown && most ? [shown, ...path(shown.key, most - 1)] : [];
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
  add({ prompt, isChat, isBlind: blind && asked.length > 1, seed, system: isChat ? system : "", after }, asked);
}

/** @param {Turn} turn asked again with the next seed, or with another prompt @param {string} [prompt] */
export function again(turn, prompt) {
  stop([turn]);
  const { isChat, isBlind, system, after, key } = turn;
  const seed = prompt === undefined ? Math.max(...versions(turn).map((one) => one.seed)) + 1 : turn.seed;
  const models = turn.answers.toSorted((a, b) => a.colour - b.colour).map((answer) => answer.model);
  const given = { prompt: prompt ?? turn.prompt, isChat, isBlind, seed, system, after };
  add(isChat ? given : { ...given, key }, models);
}

/**
 * Add a turn, and ask for its answers; hidden ones are shuffled.
 *
 * @param {Pick<Turn, "prompt" | "isChat" | "isBlind" | "seed" | "system" | "after"> & { key?: string }} given
 * @param {string[]} models
 */
function add(given, models) {
  const order = models.map((model, index) => ({ model, colour: index + 1, lot: Math.random() }));
  if (given.isBlind) order.sort((a, b) => a.lot - b.lot);
  const answers = order.map(({ model, colour }, index) => newAnswer({ model, colour, letter: LETTERS[index] }));
  const id = newId();
  const turn = { id, key: id, hasVoted: false, ...given, answers };
  talk.turns.push(turn);
  talk.shown[turn.after] = talk.fresh = id;
  ask(turn, answers);
}

/** @param {any} given what is known of it @returns {Answer} one that has not begun */
function newAnswer(given) {
  const none = { parts: [], reason: null, error: "", tokens: 0, seconds: 0, left: 0 };
  return { ...none, state: "waiting", controller: new AbortController(), ...given };
}

/** @param {Turn} turn @param {Answer} answer asked from its beginning, with the same seed */
export function retry(turn, answer) {
  goOn(turn, Object.assign(answer, { parts: [], tokens: 0, seconds: 0, left: 0 }));
}

/** @param {Turn} turn @param {Answer} answer whose text goes on */
export function goOn(turn, answer) {
  Object.assign(answer, { state: "waiting", reason: null, error: "", controller: new AbortController() });
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
  keep();
}

/** @param {import("./history.js").Conversation} kept */
export function open(kept) {
  begin();
  const answerOf = ({ text, state = "done", ...rest }) =>
    newAnswer({
      ...rest,
      parts: text ? [{ text, tokens: [] }] : [],
      state: state === "done" || state === "failed" ? state : "stopped",
    });
  talk.turns = kept.turns.map((turn, index, all) => {
    const place = { id: `${index}`, key: `${index}`, after: index ? (all[index - 1].key ?? `${index - 1}`) : "" };
    return { system: "", ...place, ...turn, answers: turn.answers.map(answerOf) };
  });
  talk.id = kept.id;
  talk.shown = { ...kept.shown };
  keepConversation(kept.id, [], {});
}

/** Keep the conversation in the browser, and draw it. */
export function keep() {
  if (!isLeaving) keepConversation(talk.id, talk.turns, talk.shown);
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
  const { signal } = answer.controller;
  let first = 0;
  try {
    for await (const { parts, reason } of generate(await requestFor(turn, answer, signal), signal)) {
      first ||= performance.now();
      answer.state = "running";
      answer.tokens += 1;
      answer.seconds = seconds + (performance.now() - first) / 1000;
      answer.parts.push(...parts);
      answer.reason ??= reason;
      changed();
    }
    answer.state = "done";
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    answer.error = error.message;
  }
  changed();
}

/**
 * Return what is asked. Of an answer that goes on, what is written stands at the end of the prompt or the messages.
 *
 * @param {Turn} turn
 * @param {Answer} answer
 * @param {AbortSignal} signal
 */
async function requestFor(turn, answer, signal) {
  const { base, models, context } = /** @type {import("./models.js").Known} */ (talk.known);
  const { settings } = talk;
  const written = textOf(answer);
  const used = written ? answer.tokens : 0;
  const factors = factorsOf(answer.model);
  const stops = settings.stop.split("\n").filter(Boolean);
  const body = {
    ...(factors ? { model: base.name, adapters: factors } : { model: answer.model }),
    ...Object.fromEntries(Object.keys(NUMBERS).map((name) => [name, settings[name]])),
    seed: turn.seed + used,
    stop: stops.length ? stops : undefined, // which JSON leaves out
  };
  if (!turn.isChat) return { ...body, prompt: turn.prompt + written };
  const templateIn = (name) => namesIn(name, base.name).find((part) => models.find((one) => one.name === part)?.chat);
  const own = templateIn(answer.model);
  const beside = turn.answers.map((other) => templateIn(other.model)).find(Boolean);
  const other = own ? undefined : (beside ?? models.find((one) => one.chat)?.name);
  const chosen = { model: body.model, chat_template_of: own ?? other };
  const { messages, left, room } = await fitted(messagesFor(turn, answer.model), chosen, context, signal);
  answer.left = left;
  return {
    ...body,
    messages: written ? [...messages, { role: "assistant", content: written }] : messages,
    max_tokens: Math.max(1, Math.min(settings.max_tokens, room - used)),
    chat_template_of: other,
    continue_final_message: written ? true : undefined,
  };
}

/**
 * Leave out the oldest turns of a conversation until it fits in the context with a part of the answer.
 *
 * @returns {Promise<{ messages: import("./generate.js").Message[], left: number, room: number }>} what remains, and its
 *   tokens for the answer
 */
async function fitted(messages, chosen, context, signal, left = 0) {
  const first = messages[0].role === "system" ? 1 : 0;
  const wanted = Math.min(talk.settings.max_tokens, Math.floor(context / 4));
  const { count } = await postJson("/tokenize", { ...chosen, messages }, signal);
  const room = Math.max(1, context - count);
  if (room >= wanted || messages.length - first < 3) return { messages, left, room };
  return fitted(messages.toSpliced(first, 2), chosen, context, signal, left + 1);
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

function newId() {
  return `${Date.now()}-${Math.random().toString(36).slice(2)}`;
}

let isLeaving = false;
const before = lastOpen();
if (before) open(before);
// What is written when the page is left or put away can be continued; requests that end with the page have not failed.
document.addEventListener("visibilitychange", () => isBusy() && keep());
addEventListener("pagehide", () => (isBusy() && keep(), (isLeaving = true)));
addEventListener("pageshow", () => (isLeaving = false));
