/**
 * Talk: one prompt, answered by the base and by adapters side by side with the same seed.
 *
 * What was said stays, and answers go on, while other views are shown. Conversations are kept in the browser.
 */

import { getJson, postJson } from "../api.js";
import { button, fill, h, saveFile, select } from "../dom.js";
import { drawAnswer, isOpen, percent, textOf } from "./talk/answer.js";
import { generate } from "./talk/generate.js";
import { conversations, exported, forget as forgetConversation, imported, keep, lastOpen } from "./talk/history.js";
import { askMix, isKnown, labelOf, namesIn, requestOf } from "./talk/models.js";
import { loadSettings, samplingOf, saveSettings, settingsFields } from "./talk/settings.js";
import { forget, interval, tallies, vote } from "./talk/votes.js";

const MOST = 6; // answers to a prompt
const LETTERS = "ABCDEF";

/**
 * @typedef {object} Turn
 * @property {string} prompt
 * @property {boolean} isChat
 * @property {boolean} isBlind the models are hidden until the reader has voted
 * @property {boolean} hasVoted
 * @property {number} seed
 * @property {import("./talk/answer.js").Answer[]} answers
 * @property {() => void} changed draws what depends on all answers
 */

const settings = loadSettings();
/** @type {Turn[]} */
const turns = [];
/** Of the conversation in the history. */
let id = newId();
let draft = "";
/** The models when the server last answered. */
let lastModels = null;
const before = lastOpen();
if (before) open(before);
/** Called when all answers are finished; what it draws is the form that is on the page by then. */
let finished = () => {};

/**
 * @param {HTMLElement} root
 * @param {import("../app.js").App} app
 */
export async function render(root, app) {
  const { t, lang, signal } = app;
  /**
   * @type {{ base: { name: string, chat: boolean, repetition_penalty: number },
   *   adapters: { name: string, chat: boolean, given: boolean }[], runs: { name: string, chat: boolean }[],
   *   context: number }}
   */
  const { base, adapters: kept, runs, context } = await getJson("/page/api/models", signal).catch((error) => {
    if (!lastModels || error.code !== "unreachable") throw error;
    app.fail(error);
    return lastModels;
  });
  lastModels = { base, adapters: kept, runs, context };
  const collator = new Intl.Collator(lang, { numeric: true });
  const adapters = [...kept.sort((a, b) => collator.compare(a.name, b.name)), ...runs];
  const known = [base, ...adapters];
  const names = known.map((one) => one.name);
  const canChat = known.some((one) => one.chat);
  const given = adapters.filter((one) => one.given).map((one) => one.name);
  if (given.join("/") !== settings.given) {
    settings.given = given.join("/");
    if (given.length) Object.assign(settings, { models: [base.name, ...given].slice(0, MOST), mode: null });
  }
  const wanted = app.path.length ? [base.name, app.path[0]] : (settings.models ?? names.slice(0, 2));
  let models = wanted.filter((model) => isKnown(model, names));
  if (!models.length) models = [base.name];
  if (app.path.length || !settings.mode) {
    settings.mode = known.some((one) => one.chat && models.includes(one.name)) ? "chat" : "continue";
  }
  if (!canChat) settings.mode = "continue";

  const status = h("p.unseen", { role: "status" });
  const log = h("div.turns");
  const chips = h("div.chips", { role: "group", "aria-label": t("models") });
  const options = h("div.options");
  const hint = h("p.hint.faint.small");
  const more = h("div", { hidden: true });
  const opener = button(t("settings"), () => showSettings(more.hidden), { class: "quiet" });
  const prompt = h("textarea", {
    rows: 1,
    "aria-label": t("prompt"),
    value: draft,
    oninput: () => (draft = prompt.value),
    onkeydown: onKey,
  });
  const send = h("button.primary", { type: "submit" });
  const row = h("div.row", {}, options, send);
  const composer = h("form.composer", { onsubmit: onSubmit }, chips, prompt, more, row, hint);
  root.append(h("h1.unseen", {}, t("title")), log, composer, status);

  const say = (text) => fill(status, text);
  const last = () => turns.at(-1);
  const isBusy = () => turns.some((turn) => turn.answers.some(isOpen));

  function keepSettings() {
    settings.models = models;
    saveSettings(settings);
  }

  /** Draw the form for the models, the mode and what is going on. */
  function drawForm() {
    fill(
      chips,
      models.map(drawChip),
      models.length < MOST && adapters.length > 0 && button(t("add"), add, { class: "quiet" }),
    );
    const history = button(t("history"), showHistory, { class: "quiet" });
    const checks = [drawCheck("blind", t("blind")), drawCheck("shaded", t("shaded"))];
    fill(options, canChat && drawModes(), checks, opener, history);
    fill(hint, settings.mode === "chat" ? t("hint.chat") : t("hint.continue"));
    fill(more, settingsFields(settings, base.repetition_penalty, t, keepSettings));
    prompt.placeholder = settings.mode === "chat" ? t("prompt.chat") : t("prompt.continue");
    root.classList.toggle("shaded", settings.shaded);
    drawSend();
  }

  /** @param {boolean} isShown */
  function showSettings(isShown) {
    more.hidden = !isShown;
    opener.setAttribute("aria-expanded", String(isShown));
  }

  function drawSend() {
    fill(send, isBusy() ? t("stop") : settings.mode === "chat" ? t("send") : t("continue"));
    send.classList.toggle("primary", !isBusy());
  }

  /**
   * @param {string} model
   * @param {number} index
   */
  function drawChip(model, index) {
    const choose = async (name) => {
      models[index] = (name === "" ? await askMix(model, names.slice(1), t) : name) ?? model;
      keepSettings();
      drawForm();
      chips.children[index].querySelector("select").focus();
    };
    const listed = (names.includes(model) ? names : [...names, model]).map((one) => [one, labelOf(one)]);
    if (adapters.length > 0) listed.push(["", t("mix")]);
    const list = select(listed, model, choose, { "aria-label": t("model_number", { number: index + 1 }) });
    const remove = () => {
      models.splice(index, 1);
      keepSettings();
      drawForm();
    };
    const removal = t("remove_model", { name: labelOf(model) });
    return h(
      "span.chip",
      {},
      h("i.dot", { dataset: { colour: index + 1 } }),
      list,
      models.length > 1 && button("×", remove, { class: "quiet", "aria-label": removal }),
    );
  }

  function add() {
    models.push(names.find((name) => !models.includes(name)) ?? base.name);
    keepSettings();
    drawForm();
    chips.querySelector(".chip:last-of-type select").focus();
  }

  function drawModes() {
    const radio = (mode, label) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: "mode",
          checked: settings.mode === mode,
          onchange: () => {
            settings.mode = mode;
            keepSettings();
            drawForm();
          },
        }),
        label,
      );
    return h("span.modes", {}, radio("chat", t("mode.chat")), radio("continue", t("mode.continue")));
  }

  function drawCheck(name, label) {
    const input = h("input", {
      type: "checkbox",
      checked: settings[name],
      onchange: () => {
        settings[name] = input.checked;
        keepSettings();
        root.classList.toggle("shaded", settings.shaded);
      },
    });
    return h("label.check", {}, input, label);
  }

  /** @param {KeyboardEvent} event Enter sends in a chat, Ctrl+Enter always; an input method's Enter never does */
  function onKey(event) {
    if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
    if (event.ctrlKey || event.metaKey || (settings.mode === "chat" && !event.shiftKey)) {
      event.preventDefault();
      if (!isBusy()) composer.requestSubmit();
    }
  }

  /** @param {Event} event */
  function onSubmit(event) {
    event.preventDefault();
    if (isBusy()) {
      for (const turn of turns) turn.answers.forEach((answer) => answer.controller.abort());
      return;
    }
    if (!prompt.value.trim()) {
      prompt.focus();
      return;
    }
    const isChat = settings.mode === "chat";
    const text = isChat ? prompt.value.trim() : prompt.value;
    turns.push(newTurn(text, isChat, settings.blind && models.length > 1, settings.seed, models));
    if (isChat) prompt.value = draft = "";
    showSettings(false);
    drawTurns();
    log.lastElementChild.scrollIntoView({ block: "start", behavior: "smooth" });
    ask(last());
  }

  /** Ask the models of a turn for their answers, all at once. */
  async function ask(turn, answers = turn.answers) {
    const own = id;
    drawSend();
    await Promise.all(answers.map((answer) => receive(turn, answer)));
    turn.changed();
    if (own === id) keep(id, turns);
    finished();
  }

  /** Ask for one answer again. */
  function retry(turn, answer) {
    Object.assign(answer, { parts: [], state: "waiting", reason: null, error: "", tokens: 0, seconds: 0 });
    answer.controller = new AbortController();
    answer.changed();
    ask(turn, [answer]);
  }

  /** Return the name in a model that has a chat template. */
  const templateIn = (model) => namesIn(model, base.name).find((name) => known.find((one) => one.name === name)?.chat);

  /**
   * Leave out the oldest turns of a conversation until it fits in the context with a part of the answer.
   *
   * @returns {Promise<{ messages: object[], left: number, room: number }>} what remains, and its tokens for the answer
   */
  async function fitted(messages, chosen, signal) {
    const first = messages[0].role === "system" ? 1 : 0;
    const wanted = Math.min(settings.max_tokens, Math.floor(context / 4));
    for (let left = 0; ; left++) {
      const { count } = await postJson("/tokenize", { ...chosen, messages }, signal);
      const room = Math.max(1, context - count);
      if (room >= wanted || messages.length - first < 3) return { messages, left, room };
      messages = [...messages.slice(0, first), ...messages.slice(first + 2)];
    }
  }

  async function receive(turn, answer) {
    let first = 0;
    try {
      let given = turn.prompt;
      const asked = requestOf(answer.model, base.name);
      const sampling = samplingOf(settings, turn.seed);
      const { signal } = answer.controller;
      if (turn.isChat) {
        const own = templateIn(answer.model);
        const beside = turn.answers.map((other) => templateIn(other.model)).find(Boolean);
        asked.chat_template_of = own ? undefined : (beside ?? known.find((one) => one.chat)?.name);
        const chosen = { model: asked.model, chat_template_of: own ?? asked.chat_template_of };
        const fit = await fitted(conversation(turn, answer.model), chosen, signal);
        given = fit.messages;
        answer.left = fit.left;
        sampling.max_tokens = Math.min(sampling.max_tokens, fit.room);
      }
      for await (const { parts, reason } of generate(asked, given, sampling, signal)) {
        first ||= performance.now();
        answer.state = "running";
        answer.tokens += 1;
        answer.seconds = (performance.now() - first) / 1000;
        answer.parts.push(...parts);
        answer.reason ??= reason;
        answer.changed();
      }
      answer.state = "done";
    } catch (error) {
      answer.state = error.name === "AbortError" ? "stopped" : "failed";
      answer.error = error.message;
    }
    answer.changed();
  }

  function drawTurns() {
    const isNew = turns.length === 0;
    fill(log, isNew ? drawWelcome() : turns.map(drawTurn), !isNew && drawVotes());
  }

  function drawWelcome() {
    return h(
      "div.welcome",
      {},
      h("h2", {}, t("title")),
      h("p", {}, t("welcome")),
      adapters.length === 0 && h("p.faint", {}, h("a", { href: "#train" }, t("no_adapters"))),
    );
  }

  /** @param {Turn} turn */
  function drawTurn(turn) {
    const bar = h("div.actions");
    const foot = h("div.actions");
    const isHidden = () => turn.isBlind && !turn.hasVoted;
    const answers = turn.answers.map((answer) =>
      drawAnswer(answer, app, isHidden, say, turn.isChat, () => retry(turn, answer)),
    );
    turn.changed = () => {
      const isDone = !turn.answers.some(isOpen);
      fill(
        bar,
        h("span.small.faint", {}, t("seed_is", { seed: String(turn.seed) })),
        isDone && turn === last() && button(t("again"), () => again(turn), { class: "quiet", title: t("again_title") }),
        isDone && turn === last() && button(t("clear"), clear, { class: "quiet" }),
      );
      fill(foot, isDone && isHidden() && drawBallot(turn));
      turn.answers.forEach((answer) => answer.changed());
    };
    turn.changed();
    return h(
      "article.turn",
      {},
      h("header", {}, h("p.prompt", { dir: "auto" }, turn.prompt), bar),
      h("div.answers", { dataset: { count: answers.length } }, answers),
      foot,
    );
  }

  /** @param {Turn} turn whose models are hidden */
  function drawBallot(turn) {
    const choose = (best) => {
      turn.hasVoted = true;
      vote(base.name, turn.answers.map((answer) => labelOf(answer.model)), best);
      keep(id, turns);
      drawTurns();
    };
    return [
      h("span", {}, t("which")),
      turn.answers.map((answer) => button(answer.letter, () => choose(labelOf(answer.model)))),
      button(t("no_difference"), () => choose(null)),
    ];
  }

  /** The votes so far, if there are any. */
  function drawVotes() {
    const tally = Object.entries(tallies(base.name));
    if (!tally.length) return null;
    const share = ({ won, lost }) => {
      if (won + lost === 0) return "–";
      const [low, high] = interval(won, won + lost).map((value) => percent(value, lang));
      return t("share_is", { share: percent(won / (won + lost), lang), low, high });
    };
    const heads = [t("model"), t("won"), t("lost"), t("tied"), t("share")];
    return h(
      "details.votes",
      { open: last().hasVoted },
      h("summary", {}, t("votes")),
      h(
        "div.scroll",
        { tabindex: 0 },
        h(
          "table",
          {},
          h("tr", {}, heads.map((text, index) => h(index ? "th.number" : "th", { scope: "col" }, text))),
          tally.map(([model, one]) =>
            h(
              "tr",
              {},
              h("td", {}, model),
              [one.won, one.lost, one.tied, share(one)].map((value) => h("td.number", {}, value)),
            ),
          ),
        ),
      ),
      button(
        t("forget"),
        () => {
          forget(base.name);
          drawTurns();
        },
        { class: "quiet" },
      ),
    );
  }

  /** @param {Turn} turn the last one; it is asked again with the next seed */
  function again(turn) {
    turns.pop();
    turns.push(newTurn(turn.prompt, turn.isChat, turn.isBlind, turn.seed + 1, turn.answers.map((one) => one.model)));
    drawTurns();
    ask(last());
  }

  function clear() {
    begin([]);
    drawTurns();
    drawSend();
    prompt.focus();
  }

  /** Show the conversations of earlier visits. */
  function showHistory() {
    const list = h("ul.history");
    const found = h("p.small", { role: "status" });
    const file = h("input", { type: "file", accept: ".json", onchange: () => read(file.files[0]) });
    const draw = () => fill(list, conversations().map(item));
    const item = (one) => {
      const when = new Date(one.when).toLocaleString(lang, { dateStyle: "medium", timeStyle: "short" });
      const title = one.turns[0]?.prompt.slice(0, 40) || "…";
      const show = () => {
        begin([]);
        open(one);
        dialog.close();
        drawTurns();
      };
      const remove = () => (forgetConversation(one.id), draw());
      const attributes = { class: "quiet", "aria-label": t("history.remove", { title }) };
      return h("li", {}, button(title, show, { class: "link" }), h("span.faint.small", {}, when),
        button("×", remove, attributes));
    };
    const read = async (chosen) => {
      const count = imported(await chosen.text());
      fill(found, count === null ? t("history.wrong") : t("history.imported", { count }));
      draw();
    };
    const dialog = h(
      "dialog.talk",
      { "aria-label": t("history"), onclose: () => dialog.remove() },
      h("h2", {}, t("history")),
      h("p.faint.small", {}, t("history.where")),
      list,
      found,
      h("label.field", {}, h("span", {}, t("history.import")), file),
      h(
        "div.actions",
        {},
        button(t("history.forget"), () => (forgetConversation(null), draw()), { class: "danger" }),
        button(t("history.export"), () => saveFile("tsugiki-conversations.json", exported())),
        button(t("close"), () => dialog.close(), { class: "primary" }),
      ),
    );
    draw();
    document.body.append(dialog);
    dialog.showModal();
  }

  finished = () => {
    drawSend();
    say(t("finished"));
  };
  showSettings(false);
  drawForm();
  drawTurns();
}

/** Begin a conversation with these turns; answers of the one before end. */
function begin(others, called = newId()) {
  for (const turn of turns) turn.answers.forEach((answer) => answer.controller.abort());
  turns.splice(0, turns.length, ...others);
  id = called;
}

/** @returns {string} of a conversation */
function newId() {
  return `${Date.now()}-${Math.random().toString(36).slice(2)}`;
}

/** @param {import("./talk/history.js").Conversation} kept */
function open(kept) {
  const answerOf = ({ text, ...rest }) => ({
    ...rest,
    parts: text ? [{ text, tokens: [] }] : [],
    state: rest.state === "failed" || rest.state === "stopped" ? rest.state : "done",
    controller: new AbortController(),
    changed: () => {},
  });
  const turnOf = (turn) => ({ ...turn, answers: turn.answers.map(answerOf), changed: () => {} });
  begin(kept.turns.map(turnOf), kept.id);
}

/**
 * @param {string} prompt
 * @param {boolean} isChat
 * @param {boolean} isBlind
 * @param {number} seed
 * @param {string[]} models
 * @returns {Turn} with answers that have not begun; hidden ones are shuffled
 */
function newTurn(prompt, isChat, isBlind, seed, models) {
  const answers = models.map((model, index) => ({
    model,
    colour: index + 1,
    letter: "",
    parts: [],
    state: "waiting",
    reason: null,
    error: "",
    tokens: 0,
    seconds: 0,
    left: 0,
    controller: new AbortController(),
    changed: () => {},
  }));
  if (isBlind) {
    for (let index = answers.length - 1; index > 0; index--) {
      const other = Math.floor(Math.random() * (index + 1));
      [answers[index], answers[other]] = [answers[other], answers[index]];
    }
  }
  answers.forEach((answer, index) => (answer.letter = LETTERS[index]));
  return { prompt, isChat, isBlind, hasVoted: false, seed, answers, changed: () => {} };
}

/**
 * Return what a model is told: its own conversation so far, and the prompt. A blind comparison begins anew, because the
 * conversation would tell which model is which.
 *
 * @param {Turn} turn
 * @param {string} model
 * @returns {import("./talk/generate.js").Message[]}
 */
function conversation(turn, model) {
  const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const earlier of turns) {
    if (earlier === turn) break; // it may be an earlier one that is asked again
    const answer = earlier.answers.find((one) => one.model === model && one.state !== "failed" && textOf(one));
    if (turn.isBlind || !earlier.isChat || earlier.isBlind || !answer) continue;
    messages.push({ role: "user", content: earlier.prompt }, { role: "assistant", content: textOf(answer) });
  }
  return [...messages, { role: "user", content: turn.prompt }];
}
