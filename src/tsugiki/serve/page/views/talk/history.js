/** Conversations of earlier visits. They are kept in this browser, and can be exported and imported as JSON. */

const STORED = "tsugiki.history";
const OPEN = "tsugiki.talk.open";
const FORMAT = "tsugiki-conversations-1";
const MOST = 100; // conversations

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {number} when it was changed, in milliseconds since 1970
 * @property {object[]} turns as `plain` makes them
 */

/** @returns {Conversation[]} the last changed first */
export function conversations() {
  try {
    return JSON.parse(localStorage.getItem(STORED) ?? "[]").filter(isConversation);
  } catch {
    return [];
  }
}

/** @param {string} id @param {import("../talk.js").Turn[]} turns whose answers are finished */
export function keep(id, turns) {
  sessionStorage.setItem(OPEN, id);
  store([{ id, when: Date.now(), turns: turns.map(plain) }, ...conversations().filter((one) => one.id !== id)]);
}

/** @param {string | null} id of one that is forgotten; null: of all */
export function forget(id) {
  store(id === null ? [] : conversations().filter((one) => one.id !== id));
}

/** @returns {Conversation | undefined} the one that was open before the page was loaded again */
export function lastOpen() {
  const id = sessionStorage.getItem(OPEN);
  return conversations().find((one) => one.id === id);
}

/** @returns {Blob} all conversations */
export function exported() {
  const content = JSON.stringify({ format: FORMAT, conversations: conversations() }, null, 1);
  return new Blob([content], { type: "application/json" });
}

/**
 * Add the conversations of a file.
 *
 * @param {string} text of the file
 * @returns {number | null} how many; null: it is no such file
 */
export function imported(text) {
  try {
    const content = JSON.parse(text);
    if (content.format !== FORMAT || !content.conversations.every(isConversation)) return null;
    const ids = content.conversations.map((one) => one.id);
    store([...content.conversations, ...conversations().filter((one) => !ids.includes(one.id))]);
    return ids.length;
  } catch {
    return null;
  }
}

/** @param {Conversation[]} all the oldest are left out until the browser has room */
function store(all) {
  const kept = all.sort((a, b) => b.when - a.when).slice(0, MOST);
  for (;;) {
    try {
      localStorage.setItem(STORED, JSON.stringify(kept));
      return;
    } catch (error) {
      if (!kept.length) throw error;
      kept.pop();
    }
  }
}

/** @param {import("../talk.js").Turn} turn @returns {object} without the probabilities, which take too much room */
function plain({ prompt, isChat, isBlind, hasVoted, seed, answers }) {
  const kept = answers.map(({ model, colour, letter, parts, state, reason, error, tokens, seconds, left }) => {
    const text = parts.map((part) => part.text).join("");
    return { model, colour, letter, text, state, reason, error, tokens, seconds, left };
  });
  return { prompt, isChat, isBlind, hasVoted, seed, answers: kept };
}

/** @param {any} one @returns {boolean} whether it has the fields of a conversation, of the right types */
function isConversation(one) {
  const isAnswer = (answer) => typeof answer?.model === "string" && typeof answer.text === "string";
  const isTurn = (turn) => typeof turn?.prompt === "string" && isListOf(turn.answers, isAnswer);
  return typeof one?.id === "string" && Number.isFinite(one.when) && isListOf(one.turns, isTurn);
}

function isListOf(list, isRight) {
  return Array.isArray(list) && list.every(isRight);
}
