/** Runs: those below the working directory; one of them with its curves, samples and output, while it trains. */

import { getJson, postJson } from "../api.js";
import { ask, askName, button, fill, h } from "../dom.js";
import { sectionsDrawer } from "../sections.js";

const API = "/page/api/";
const SOON = 2000; // milliseconds between two looks at a run that goes on
const LATER = 10000;
const STATES = {
  starting: "state.starting",
  running: "state.running",
  stopping: "state.stopping",
  stopped: "state.stopped",
  finished: "state.finished",
  failed: "state.failed",
  unreadable: "state.unreadable",
};
const GOING_ON = ["starting", "running", "stopping"];

/**
 * @param {HTMLElement} root
 * @param {import("../app.js").App} app
 */
export async function render(root, app) {
  const name = app.path.join("/");
  const show = name ? details(root, app, name) : list(root, app);
  await show();
  for (;;) {
    await pause(root.dataset.busy ? SOON : LATER, app.signal);
    if (app.signal.aborted) return;
    if (document.hidden) continue;
    try {
      await show();
    } catch (error) {
      if (app.signal.aborted) return;
      if (error.code !== "unreachable") throw error; // the server may come back
    }
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** A part of the view that is drawn again only when what it shows has changed, so that a selection in it stays. */
function part(element, draw) {
  let shown;
  return (data) => {
    const now = JSON.stringify(data) ?? "";
    if (now === shown) return;
    shown = now;
    const focused = document.activeElement;
    fill(element, draw(data));
    if (element.contains(focused)) focused.focus();
  };
}

function list(root, { t, lang, signal, go }) {
  const content = h("div");
  root.append(
    h(
      "div.heading",
      {},
      h("h1", {}, t("title")),
      button(t("new"), () => go("train"), { class: "primary" }),
    ),
    content,
  );
  const drawList = part(content, ({ folder, runs, more }) => [
    runs.length
      ? h(
          "ul.runs",
          {},
          runs.map((run) => h("li", {}, card(run))),
        )
      : h("div.sheet.empty", {}, h("p", {}, t("none")), h("p.faint.small", {}, t("none.hint", { folder }))),
    more && h("p.faint.small", {}, t("more")),
  ]);

  function card(run) {
    return h(
      "a.sheet.run",
      { href: `#runs/${encodeURIComponent(run.name)}` },
      h("span.top", {}, h("strong", {}, run.name), tag(run, t)),
      run.error || run.reason
        ? h("span.faint.small", {}, run.error ?? run.reason)
        : h("span.faint.small", {}, [run.data, run.method, run.model].filter(Boolean).join(" · ") || t("no_record")),
      run.steps && [
        progress(run, t),
        h(
          "span.bottom.small",
          {},
          h("span", {}, stepText(run, t)),
          h("span", {}, run.seconds_left !== null ? t("left", { time: duration(run.seconds_left, t) }) : outcome(run)),
        ),
      ],
    );
  }

  function outcome(run) {
    const [before, after] = run.held_out ?? [];
    if (typeof after === "number")
      return t("held_out_change", { before: digits(before, lang), after: digits(after, lang) });
    return new Date(run.changed * 1000).toLocaleString(lang, { dateStyle: "medium", timeStyle: "short" });
  }

  return async () => {
    const answer = await getJson(`${API}runs`, signal);
    if (answer.runs.some((run) => GOING_ON.includes(run.state))) root.dataset.busy = "yes";
    else delete root.dataset.busy;
    drawList(answer);
  };
}

function details(root, app, name) {
  const { t, lang, signal, fail, go } = app;
  const state = h("div.state", { "aria-live": "polite" });
  const results = h("div.sections");
  const output = h("section");
  root.append(
    h("p.small", {}, h("a", { href: "#runs" }, `← ${t("title")}`)),
    h("h1", {}, name),
    state,
    results,
    output,
  );
  let isStopping = false;

  const drawState = part(state, (run) => [
    h(
      "div.heading",
      {},
      h("p", {}, tag(run, t), " ", h("span.faint.small", {}, facts(run))),
      h(
        "div.actions",
        {},
        run.talks && run.is_served && button(t("talk"), () => go("talk", run.name), { class: "primary" }),
        run.talks && button(t("keep"), keep),
        run.can_stop && run.state !== "stopping" && button(t("stop"), stop, { class: "danger" }),
        run.can_resume && button(t("resume"), resume),
      ),
    ),
    run.steps && progress(run, t),
    run.steps &&
      h(
        "p.small.figures",
        {},
        figures(run).map((text) => h("span", {}, text)),
      ),
    run.state === "starting" && h("p.note.faint", {}, t("starting.note")),
    run.state === "stopping" && h("p.note.faint", {}, t("stopping.note")),
    run.reason && h("p.note.bad", { role: "alert" }, run.reason),
    (run.state === "failed" || run.state === "stopped") && h("p.note.faint", {}, whatNow(run)),
    run.error && h("p.note", {}, run.error),
    run.talks && !run.is_served && h("p.note.faint", {}, t("other_base", { base: run.model ?? "?" })),
  ]);

  function whatNow(run) {
    if (!run.can_resume) return t("again.start");
    return run.checkpoint === null ? t("again.first_step") : t("again.checkpoint", { step: run.checkpoint });
  }

  function facts(run) {
    const rate = run.learning_rate && t("rate", { rate: run.learning_rate });
    return [run.data, run.method, run.model, rate].filter(Boolean).join(" · ");
  }

  function figures(run) {
    return [
      stepText(run, t),
      run.seconds_left !== null && t("left", { time: duration(run.seconds_left, t) }),
      run.loss !== null && t("mean_loss", { loss: digits(run.loss, lang) }),
      run.tokens_per_second && t("speed", { speed: Math.round(run.tokens_per_second) }),
    ].filter(Boolean);
  }

  const drawResults = part(results, sectionsDrawer(app, t("keys")));

  const drawOutput = part(output, ({ log, open }) =>
    log ? h("details", { open }, h("summary", {}, t("output")), h("pre", { tabindex: 0 }, log.trimEnd())) : null,
  );

  async function stop() {
    if (isStopping || !(await ask(t("stop.question", { name }), t("stop"), t("cancel")))) return;
    isStopping = true;
    try {
      await postJson(`${API}runs/stop`, { name }, signal);
      await show();
    } catch (error) {
      fail(error);
    } finally {
      isStopping = false;
    }
  }

  function keep() {
    askName(t("keep.name"), name.split("/").at(-1), t("keep"), t("cancel"), async (to) => {
      await postJson("/page/api/keep-run", { name, to }, signal);
      go("adapters", to);
    });
  }

  async function resume() {
    try {
      await postJson(`${API}runs/resume`, { name }, signal);
      await show();
    } catch (error) {
      fail(error);
    }
  }

  async function show() {
    const run = await getJson(`${API}run?name=${encodeURIComponent(name)}`, signal);
    const goesOn = GOING_ON.includes(run.state);
    if (goesOn) root.dataset.busy = "yes";
    else delete root.dataset.busy;
    const { sections = [], log, changed, ...rest } = run;
    drawState(rest);
    drawResults(sections);
    drawOutput({ log, open: output.querySelector("details")?.open ?? !sections.length });
  }

  return show;
}

function tag(run, t) {
  return h("span.tag", { dataset: { state: run.state } }, t(STATES[run.state]));
}

/** A bar that is full where a run has finished, also one that has ended early. */
function progress(run, t) {
  const value = run.state === "finished" ? run.steps : run.step;
  return h("progress", { max: run.steps, value, "aria-label": t("progress") });
}

function stepText(run, t) {
  const isEarly = run.state === "finished" && run.step < run.steps;
  return t(isEarly ? "ended_early" : "step_of", { step: run.step, steps: run.steps });
}

function digits(value, lang) {
  return new Intl.NumberFormat(lang, { minimumFractionDigits: 3, maximumFractionDigits: 3 }).format(value);
}

function duration(seconds, t) {
  if (seconds < 90) return t("seconds", { count: Math.round(seconds) });
  if (seconds < 5400) return t("minutes", { count: Math.round(seconds / 60) });
  return t("hours", { count: Math.round(seconds / 360) / 10 });
}
