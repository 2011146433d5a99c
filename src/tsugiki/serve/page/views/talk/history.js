/** Conversations of earlier visits. They are kept in this browser, and can be exported and imported as JSON. */

import { Actions, FileField, html, lang, openDialog, Quiet, saveFile, t, useState } from "../../ui.js";

const STORED = "tsugiki.history";
const OPEN = "tsugiki.talk.open";
const FORMAT = "tsugiki-conversations-1";
const MOST = 100; // conversations

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {number} when it was changed, in milliseconds since 1970
 * @property {any[]} turns as `plain` makes them
 * @property {Record<string, string>} [shown] as in conversation.js
 */

/** @returns {Conversation[]} the last changed first */
export function conversations() {
  try {
    return JSON.parse(localStorage.getItem(STORED) ?? "[]").filter(isConversation);
  } catch {
    return [];
  }
}

/** @param {string} id @param {import("./conversation.js").Turn[]} turns @param {Record<string, string>} shown */
export function keepConversation(id, turns, shown) {
  sessionStorage.setItem(OPEN, id);
  const others = conversations().filter((one) => one.id !== id);
  if (turns.length) store([{ id, when: Date.now(), turns: turns.map(plain), shown }, ...others]);
}

/** @returns {Conversation | undefined} the one that was open before the page was loaded again */
export function lastOpen() {
  return conversations().find((one) => one.id === sessionStorage.getItem(OPEN));
}

/** Let the browser save all conversations. */
function save() {
  const content = JSON.stringify({ format: FORMAT, conversations: conversations() }, null, 1);
  saveFile("tsugiki-conversations.json", new Blob([content], { type: "application/json" }));
}

/**
 * Add the conversations of a file.
 *
 * @param {string} text of the file
 * @returns {number | null} how many; null: it is no such file
 */
function imported(text) {
  try {
    const { format, conversations: all } = JSON.parse(text);
    if (format !== FORMAT || !all.every(isConversation)) return null;
    store([...all, ...conversations().filter(({ id }) => !all.some((one) => one.id === id))]);
    return all.length;
  } catch {
    return null;
  }
}

/** @param {Conversation[]} all the oldest are left out until the browser has room */
function store(all) {
  const kept = all.toSorted((a, b) => b.when - a.when).slice(0, MOST);
  try {
    localStorage.setItem(STORED, JSON.stringify(kept));
  } catch (error) {
    if (!kept.length) throw error;
    store(kept.slice(0, -1));
  }
}

/** @param {import("./conversation.js").Turn} turn @returns {object} without the probabilities, which take much room */
function plain({ answers, ...turn }) {
  const plainAnswer = ({ parts, controller, ...rest }) => ({ ...rest, text: parts.map((part) => part.text).join("") });
  return { ...turn, answers: answers.map(plainAnswer) };
}

/** @param {any} one @returns {boolean} whether it has the fields of a conversation, of the right types */
function isConversation(one) {
  const isAnswer = (answer) => typeof answer?.model === "string" && typeof answer.text === "string";
  const isTurn = (turn) => typeof turn?.prompt === "string" && turn.answers?.every?.(isAnswer);
  return typeof one?.id === "string" && Number.isFinite(one.when) && one.turns?.every?.(isTurn);
}

/** Show the conversations of earlier visits. @returns {Promise<Conversation | undefined>} what the reader opens */
export function chooseConversation() {
  return openDialog(t("history"), (close) => html`<${History} close=${close} />`);
}

function History({ close }) {
  const [all, setAll] = useState(conversations);
  const [said, setSaid] = useState("");
  const forget = (rest) => (store(rest), setAll(conversations()));
  const read = async (event) => {
    const count = imported(await event.target.files[0].text());
    setSaid(count === null ? t("history.wrong") : t("history.imported", { count }));
    setAll(conversations());
  };
  const item = (one) => {
    const others = all.filter((other) => other !== one);
    const when = new Date(one.when).toLocaleString(lang, { dateStyle: "medium", timeStyle: "short" });
    const title = one.turns[0]?.prompt.slice(0, 40) || "…";
    return html`<li key=${one.id}>
      <button type="button" class="link" onClick=${() => close(one)}>${title}</button>
      <span class="faint small">${when}</span>
      <${Quiet} aria-label=${t("history.remove", { title })} act=${() => forget(others)}>×<//>
    </li>`;
  };
  return html`<div class="in-dialog" data-view="talk">
    <h2>${t("history")}</h2>
    <p class="faint small">${t("history.where")}</p>
    <ul class="listed">${all.map(item)}</ul>
    <p class="small" role="status">${said}</p>
    <${FileField} text=${t("history.import")} accept=".json" onChange=${read} />
    <${Actions} of=${[
      [true, t("history.forget"), () => forget([]), "danger"],
      [true, t("history.export"), save],
      [true, t("close"), () => close(), "primary"],
    ]} />
  </div>`;
}
