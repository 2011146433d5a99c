/** What the parts of the view Runs share: the state of a run in words, and answers that are asked for again. */

import { html, useApp, useEffect, useState } from "../../ui.js";

/**
 * @typedef {object} Run as the server describes it
 * @property {string} name its path below the working directory
 * @property {string} state a key of STATES
 * @property {number} changed in seconds since 1970
 * @property {boolean} can_stop
 * @property {boolean} can_resume
 * @property {number | null} place in the queue, counted from 1
 * @property {string | null} [waits_for] the run before it
 * @property {number | null} checkpoint the step of the last one
 * @property {string | null} reason why it has failed
 * @property {"resume" | "again" | null} mend what most likely makes it a success
 * @property {boolean} talks whether it has an adapter
 * @property {boolean} [is_served] whether its base is the server's
 * @property {string} [error] what is wrong with its record
 * @property {string} [data]
 * @property {string} [method]
 * @property {string | null} [model] its base
 * @property {number | null} [learning_rate]
 * @property {number} [step] not there before there is a record
 * @property {number | null} [steps]
 * @property {number | null} [loss]
 * @property {number | null} [memory] bytes at most
 * @property {(number | null)[]} [held_out] losses before and after
 * @property {number | null} [tokens_per_second]
 * @property {number | null} [seconds_left]
 * @property {import("../../sections.js").Section[]} [sections]
 * @property {string} [log]
 */

export const API = "/page/api/";
/** In the address in place of a name; no run can be called so. */
export const COMPARED = "*compare";
const SOON = 2000; // milliseconds between two looks at a run that goes on
const LATER = 10000;
const STATES = {
  queued: "state.queued",
  starting: "state.starting",
  running: "state.running",
  stopping: "state.stopping",
  stopped: "state.stopped",
  finished: "state.finished",
  failed: "state.failed",
  unreadable: "state.unreadable",
};

/** @param {Run} run */
export function goesOn({ state }) {
  return ["starting", "running", "stopping"].includes(state);
}

/**
 * Ask for something again and again, soon while a run goes on or waits. Errors are shown above the view, apart from a
 * server that does not answer for a while.
 *
 * @param {() => Promise<any>} get
 * @param {(answer: any) => Run[]} runsIn
 * @returns {[any, () => Promise<void>]} the last answer, null before; and a function that asks at once
 */
export function useLive(get, runsIn) {
  const { fail } = useApp();
  const [answer, setAnswer] = useState(/** @type {any} */ (null));
  const look = async () => setAnswer(await get());
  const lookAgain = () => document.hidden || look().catch((error) => error.code === "unreachable" || fail(error));
  const pause = answer && runsIn(answer).some((run) => goesOn(run) || run.place) ? SOON : LATER;
  useEffect(() => {
    look().catch(fail);
  }, []);
  useEffect(() => {
    const timer = setInterval(lookAgain, pause);
    return () => clearInterval(timer);
  }, [pause]);
  return [answer, look];
}

/** @param {{ run: Run }} props */
export function Tag({ run }) {
  return html`<span class="tag" data-state=${run.state}>${useApp().t(STATES[run.state])}</span>`;
}

/** @param {{ run: Run }} props a bar that is full where a run has finished, also one that has ended early */
export function Progress({ run }) {
  const { t } = useApp();
  const value = run.state === "finished" ? run.steps : run.step;
  return html`<progress max=${run.steps} value=${value} aria-label=${t("progress")}></progress>`;
}

/** @param {Run} run */
export function stepText(run, t) {
  const isEarly = run.state === "finished" && Number(run.step) < Number(run.steps);
  return t(isEarly ? "ended_early" : "step_of", { step: run.step, steps: run.steps });
}

/** @param {Run} run the loss on the held-out text before and after, null without */
export function heldOut(run, { t, lang }) {
  const [before, after] = run.held_out ?? [];
  const isKnown = typeof before === "number" && typeof after === "number";
  return isKnown ? t("held_out_change", { before: digits(before, lang), after: digits(after, lang) }) : null;
}

/** @param {Run} run what it learns, how and on which base */
export function whatText(run) {
  return [run.data, run.method, run.model].filter(Boolean).join(" · ");
}

export function digits(value, lang) {
  return new Intl.NumberFormat(lang, { minimumFractionDigits: 3, maximumFractionDigits: 3 }).format(value);
}

/** @param {Run} run its largest memory, null if it is not known */
export function memoryText(run, { t, lang }) {
  const number = new Intl.NumberFormat(lang, { maximumSignificantDigits: 2 });
  return run.memory ? t("memory", { size: number.format(run.memory / 1e9) }) : null;
}

/** @param {number} seconds that a run still takes */
export function leftText(seconds, t) {
  const [unit, size] = seconds < 90 ? ["seconds", 1] : seconds < 5400 ? ["minutes", 60] : ["hours", 3600];
  return t("left", { time: t(unit, { count: Number((seconds / size).toPrecision(2)) }) });
}
