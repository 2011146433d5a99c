/** Runs: all below the working directory, with their queue; one, also while it trains; several in one chart. */

import { postJson } from "../api.js";
import { Charts, Sections } from "../sections.js";
import { Actions, ask, go, html, lang, Quiet, t, Table } from "../ui.js";
import { useChoice, useJson, useState, useWork } from "../ui.js";

/**
 * @typedef {object} Run as the server describes it
 * @property {string} id of its job
 * @property {string} name its path below the working directory
 * @property {string} state "queued", "starting", "running", "stopping", "stopped", "finished", "failed", "unreadable"
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
 * @property {string | null} [memory] at most
 * @property {(number | null)[]} [held_out] losses before and after
 * @property {number | null} [tokens_per_second]
 * @property {string | null} [time_left]
 * @property {import("../sections.js").Section[]} [sections]
 * @property {string} [log]
 */

const API = "/page/api/";
const JOBS = "/v1/fine_tuning/jobs";
const COMPARED = "*compare"; // in the address in place of a name; no run can be called so
const LISTED = 200; // runs
const MOST = 4; // runs in one chart
const SOON = 2000; // milliseconds between two looks at a run that goes on
const LATER = 10000;
const DIGITS = { minimumFractionDigits: 3, maximumFractionDigits: 3 }; // of a loss

/** @param {{ path: string[] }} props nothing, a run, or COMPARED and runs */
export default function Runs({ path }) {
  const [first, ...rest] = path;
  if (first === COMPARED) return html`<${Compare} key=${rest.join(" ")} names=${rest} />`;
  const name = path.filter(Boolean).join("/");
  return name ? html`<${One} key=${name} name=${name} />` : html`<${List} />`;
}

/** @param {Run} run */
function goesOn({ state }) {
  return ["starting", "running", "stopping"].includes(state);
}

/** @param {(Run | null)[]} runs @returns {number} milliseconds until they are looked at again */
function pauseFor(runs) {
  return runs.some((run) => run && (goesOn(run) || run.place)) ? SOON : LATER;
}

/** @param {string} name */
function useRun(name) {
  return useJson(`${API}run?name=${encodeURIComponent(name)}`, (run) => pauseFor([run]));
}

function Link({ name, children = name, ...others }) {
  return html`<a href=${`#runs/${encodeURIComponent(name)}`} ...${others}>${children}</a>`;
}

/** @param {{ run: Run }} props */
function Tag({ run }) {
  return html`<span class="tag" data-state=${run.state}>${t(`state.${run.state}`)}</span>`;
}

/** @param {{ run: Run }} props a bar that is full where a run has finished, also one that has ended early */
function Progress({ run }) {
  const value = run.state === "finished" ? run.steps : run.step;
  return html`<progress max=${run.steps} value=${value} aria-label=${t("progress")}></progress>`;
}

/** What pages say of a run's figures; "" where one is not known. @type {Record<string, (run: Run) => string>} */
const SAID = {
  what: (run) => [run.data, run.method, run.model].filter(Boolean).join(" · "),
  step: ({ state, step = 0, steps }) =>
    steps ? t(state === "finished" && step < steps ? "ended_early" : "step_of", { step, steps }) : "",
  rate: ({ learning_rate: rate }) => (rate ? t("rate", { rate }) : ""),
  left: ({ time_left: time }) => (time ? t("left", { time }) : ""),
  loss: ({ loss }) => (typeof loss === "number" ? t("mean_loss", { loss: loss.toLocaleString(lang, DIGITS) }) : ""),
  speed: ({ tokens_per_second: speed }) => (speed ? t("speed", { speed: Math.round(speed) }) : ""),
  memory: ({ memory: size }) => (size ? t("memory", { size }) : ""),
  held: ({ held_out: [before, after] = [] }) => {
    const [from, to] = [before, after].map((loss) => loss?.toLocaleString(lang, DIGITS));
    return from && to ? t("held_out_change", { before: from, after: to }) : "";
  },
};

function List() {
  const runsOf = (loaded) => (loaded?.data ?? []).map((job) => job.run);
  const [answer, reload] = useJson(`${JOBS}?limit=${LISTED}`, (loaded) => pauseFor(runsOf(loaded)));
  const all = runsOf(answer);
  const { filter, found, tick, chosen } = useChoice(all, MOST);
  const waiting = all.filter((run) => run.place).sort((a, b) => a.place - b.place);
  const others = found.filter((run) => !run.place);
  const item = (run) => html`<li key=${run.name}>
    ${tick(run.name, t("choose", { name: run.name }), Boolean(run.steps))}<${Card} run=${run} />
  </li>`;
  return html`
    <div class="heading">
      <h1>${t("title")}</h1>
      ${filter}
      <button type="button" class="primary" onClick=${() => go("train")}>${t("new")}</button>
    </div>
    ${waiting.length > 0 && html`<${Queue} waiting=${waiting} reload=${reload} />`}
    ${answer && !all.length &&
    html`<div class="sheet empty">
      <p>${t("none")}</p>
      <p class="faint small">${t("none.hint")}</p>
      <pre>tsugiki quickstart</pre>
    </div>`}
    <ul class="runs">${others.map(item)}</ul>
    ${chosen(2, t("compare"), (...names) => go("runs", COMPARED, ...names))}
    ${others.length > 1 && html`<p class="faint small">${t("compare.hint")}</p>`}
    ${answer?.has_more && html`<p class="faint small">${t("more")}</p>`}
  `;
}

/** @param {{ run: Run }} props */
function Card({ run }) {
  const date = new Date(run.changed * 1000).toLocaleString(lang, { dateStyle: "medium", timeStyle: "short" });
  return html`<${Link} name=${run.name} class="sheet run">
    <span class="top"><strong>${run.name}</strong><${Tag} run=${run} /></span>
    <span class="faint small">${(run.error ?? run.reason ?? SAID.what(run)) || t("no_record")}</span>
    ${run.steps &&
    html`<${Progress} run=${run} />
      <span class="bottom small">
        <span>${SAID.step(run)}</span><span>${SAID.left(run) || SAID.held(run) || date}</span>
      </span>`}
  <//>`;
}

/** @param {{ waiting: Run[], reload: () => Promise<void> }} props */
function Queue({ waiting, reload }) {
  const [, work] = useWork();
  const item = ({ id, name, place }) => {
    const takeOut = () => work(id, () => postJson(`${JOBS}/${id}/cancel`, {}).then(reload));
    return html`<li key=${name}>
      <span class="number">${place}</span><${Link} name=${name} />
      <${Quiet} aria-label=${t("take_out", { name })} title=${t("take_out", { name })} act=${takeOut}>×<//>
    </li>`;
  };
  return html`<section class="queue">
    <h2>${t("queue")}</h2>
    <ol class="sheet">${waiting.map(item)}</ol>
    <p class="faint small">${t("queue.hint")}</p>
  </section>`;
}

/** @param {{ name: string }} props */
function One({ name }) {
  const [run, reload] = useRun(name);
  return html`
    <p class="small"><a href="#runs">← ${t("title")}</a></p>
    <h1>${name}</h1>
    ${run &&
    html`<div class="state">
        <div class="heading">
          <p aria-live="polite"><${Tag} run=${run} /> <span class="faint small">${SAID.what(run)}</span></p>
          <${Buttons} run=${run} reload=${reload} />
        </div>
        <${Figures} run=${run} />
        <${Notes} run=${run} />
      </div>
      <div class="sections"><${Sections} sections=${run.sections ?? []} /></div>
      ${run.state !== "finished" && run.state !== "unreadable" && html`<${Plan} name=${name} />`}
      ${run.log && html`<${Output} log=${run.log} isOpen=${!run.sections?.length} />`}`}
  `;
}

/** @param {{ run: Run, reload: () => Promise<void> }} props the buttons; the main one is what most likely comes next */
function Buttons({ run, reload }) {
  const { name, state } = run;
  const isQueued = state === "queued";
  const ended = !goesOn(run);
  const act = (what) => postJson(`${JOBS}/${run.id}/${what}`, {}).then(reload);
  const stopIt = () => act("cancel");
  const stop = () => (isQueued ? stopIt() : ask(t("stop.question", { name }), t("stop"), stopIt));
  const remove = async () => {
    if (!(await ask(t("delete.question", { name }), t("delete")))) return;
    if (!(await ask(t("delete.again", { name }), t("delete.certain")))) return;
    await postJson(`${API}runs/remove`, { name });
    go("runs");
  };
  const keepAs = async (to) => {
    await postJson(`${API}keep-run`, { name, to });
    go("adapters", to);
  };
  const keep = () => ask(t("keep.name"), t("keep"), keepAs, name.split("/").at(-1));
  const kind = (key) => (key === (run.mend ?? (run.can_resume ? "resume" : "talk")) ? "primary" : "");
  const canStop = isQueued || (run.can_stop && state !== "stopping");
  return html`<${Actions} of=${[
    [run.talks && run.is_served, t("talk"), () => go("talk", name), kind("talk")],
    [run.talks, t("keep"), keep],
    [run.can_resume, t(run.step === undefined ? "start" : "resume"), () => act("resume"), kind("resume")],
    [ended && !isQueued, t("again"), () => go("train", "again", name), kind("again")],
    [canStop, t(isQueued ? "take_out.short" : "stop"), stop, "danger"],
    [ended, t("delete"), remove, "danger"],
  ]} />`;
}

/** @param {{ run: Run }} props */
function Figures({ run }) {
  if (!run.steps) return null;
  const texts = ["step", "rate", "left", "loss", "speed", "memory"].map((key) => SAID[key](run)).filter(Boolean);
  return html`<${Progress} run=${run} />
    <p class="small figures">${texts.map((text) => html`<span>${text}</span>`)}</p>`;
}

/** @param {{ run: Run }} props what a reader should know about the state, and what helps */
function Notes({ run }) {
  const { state, place, waits_for: before, reason, error } = run;
  const notes = {
    queued: () => (place && before ? t("queued.note", { place, before }) : t("queued.soon")),
    starting: () => t("starting.note"),
    stopping: () => t("stopping.note"),
    failed: () => whatNow(run),
    stopped: () => whatNow(run),
  };
  const other = run.talks && !run.is_served && t("other_base", { base: run.model ?? "?" });
  return html`
    ${reason && html`<p class="note bad" role="alert">${reason}</p>`}
    ${error && html`<p class="note">${error}</p>`}
    ${[notes[state]?.(), other].filter(Boolean).map((text) => html`<p class="note faint">${text}</p>`)}
  `;
}

/** @param {Run} run one that has ended before its end */
function whatNow({ step, can_resume: canResume, checkpoint, mend }) {
  const begun = checkpoint === null ? t("ended.first_step") : t("ended.checkpoint", { step: checkpoint });
  const kept = step !== undefined && canResume ? begun : t("ended.start");
  return mend === "again" ? `${kept} ${t("ended.again")}` : kept;
}

/** @param {{ name: string }} props memory and time, which are computed when a reader wants to see them */
function Plan({ name }) {
  const [plan, setPlan] = useState(/** @type {any} */ (null));
  const open = (event) => {
    if (!event.target.open || (plan && !plan.problem)) return;
    setPlan({ lines: [t("plan.busy")] });
    postJson(`${API}runs/plan`, { name }).then(setPlan, (error) => setPlan({ problem: error.message }));
  };
  return html`<section>
    <details onToggle=${open}>
      <summary>${t("plan")}</summary>
      <div class="plan" aria-live="polite">
        ${plan?.problem && html`<p class="broken">${plan.problem}</p>`}
        ${plan?.lines?.map((line) => html`<p class="small">${line}</p>`)}
        ${plan?.headers && html`<${Table} ...${plan} />`}
      </div>
    </details>
  </section>`;
}

/** @param {{ log: string, isOpen: boolean }} props what its process has printed; `isOpen` counts at first only */
function Output({ log, isOpen }) {
  const [open] = useState(isOpen);
  return html`<section>
    <details open=${open}><summary>${t("output")}</summary><pre tabindex="0">${log.trimEnd()}</pre></details>
  </section>`;
}

/** The columns of a comparison, by the keys of their texts. @type {Record<string, (run: Run) => any>} */
const COLUMNS = {
  "column.run": (run) => html`<${Link} name=${run.name} />`,
  "column.state": (run) => html`<${Tag} run=${run} />`,
  "column.data": (run) => run.data,
  "column.method": (run) => run.method,
  "column.base": (run) => run.model,
  "column.rate": (run) => run.learning_rate,
  "column.steps": SAID.step,
  "column.held_out": SAID.held,
  "column.memory": SAID.memory,
};

/** Two to four runs in one chart for each figure, and in a table. @param {{ names: string[] }} props */
function Compare({ names }) {
  const runs = names.map((name) => useRun(name)[0]); // as many each time: the names are the component's key
  const rows = runs.filter(Boolean).map((run) => Object.values(COLUMNS).map((cell) => cell(run) || "–"));
  return html`
    <p class="small"><a href="#runs">← ${t("title")}</a></p>
    <h1>${t("compared")}</h1>
    ${rows.length === runs.length &&
    html`<${Table} headers=${Object.keys(COLUMNS).map((key) => t(key))} rows=${rows} />
      <div class="sections">
        <section>
          <h2>${t("curves")}</h2>
          <${Charts} curves=${together(runs)} />
        </section>
      </div>`}
  `;
}

/**
 * Return the curves of runs as one chart for each figure and text, such as the loss on the held-out text. Lines for the
 * same text have the same colour in all runs; here, the lines of a run have.
 *
 * @param {Run[]} runs
 * @returns {import("../chart.js").Curves[]}
 */
function together(runs) {
  const curvesOf = (run) => (run.sections ?? []).flatMap(({ parts }) => parts.filter(({ kind }) => kind === "curves"));
  const lines = runs.flatMap((run, colour) =>
    curvesOf(run).flatMap(({ caption, series }) =>
      series
        .filter((one) => !one.faint)
        .map((one) => [`${caption} ${one.colour}`, `${caption} · ${one.name}`, { ...one, name: run.name, colour }]),
    ),
  );
  return [...new Set(lines.map(([key]) => key))].map((key) => {
    const own = lines.filter((line) => line[0] === key);
    return { caption: own[0][1], series: own.map((line) => line[2]), kept: null };
  });
}
