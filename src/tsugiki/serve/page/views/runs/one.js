/** One run: its state, what can be done with it, and its curves, samples, plan and output, also while it trains. */

import { getJson, postJson } from "../../api.js";
import { Sections } from "../../sections.js";
import { ask, askName, html, Table, useApp, useState, useWork } from "../../ui.js";
import { API, digits, goesOn, leftText, memoryText, Progress, stepText, Tag, useLive, whatText } from "./parts.js";

/** @typedef {import("./parts.js").Run} Run */

/** @param {{ name: string }} props */
export function One({ name }) {
  const { t, signal } = useApp();
  const get = () => getJson(`${API}run?name=${encodeURIComponent(name)}`, signal);
  const [run, reload] = useLive(get, (one) => [one]);
  return html`
    <p class="small"><a href="#runs">← ${t("title")}</a></p>
    <h1>${name}</h1>
    ${run &&
    html`<div class="state">
        <div class="heading">
          <p aria-live="polite"><${Tag} run=${run} /> <span class="faint small">${whatText(run)}</span></p>
          <${Actions} run=${run} reload=${reload} />
        </div>
        <${Figures} run=${run} />
        <${Notes} run=${run} />
      </div>
      <div class="sections"><${Sections} sections=${run.sections ?? []} keys=${t("keys")} /></div>
      ${["queued", "starting", "running", "stopped", "failed"].includes(run.state) && html`<${Plan} name=${name} />`}
      ${run.log && html`<${Output} log=${run.log} isOpen=${!run.sections?.length} />`}`}
  `;
}

/** @param {{ run: Run, reload: () => Promise<void> }} props the buttons; the main one is what most likely comes next */
function Actions({ run, reload }) {
  const { t, go, signal } = useApp();
  const [busy, work] = useWork();
  const { name, state } = run;
  const isQueued = state === "queued";
  const post = (path) => postJson(`${API}runs/${path}`, { name }, signal);
  const stop = () =>
    work("stop", async () => {
      if (isQueued || (await ask(t("stop.question", { name }), t("stop"), t("cancel")))) await post("stop");
      await reload();
    });
  const resume = () => work("resume", async () => (await post("resume"), await reload()));
  const remove = () =>
    work("remove", async () => {
      if (!(await ask(t("delete.question", { name }), t("delete"), t("cancel")))) return;
      if (!(await ask(t("delete.again", { name }), t("delete.certain"), t("cancel")))) return;
      await post("remove");
      go("runs");
    });
  const keep = () =>
    askName(t("keep.name"), name.split("/").at(-1) ?? name, t("keep"), t("cancel"), async (to) => {
      await postJson(`${API}keep-run`, { name, to }, signal);
      go("adapters", to);
    });
  const main = run.mend ?? (run.can_resume ? "resume" : "talk");
  const act = (key, does, text, kind = key === main ? "primary" : "") =>
    html`<button type="button" class=${kind} disabled=${Boolean(busy)} onClick=${does}>${text}</button>`;
  const hasBegun = run.step !== undefined;
  const canStop = isQueued || (run.can_stop && state !== "stopping");
  return html`<div class="actions">
    ${run.talks && run.is_served && act("talk", () => go("talk", name), t("talk"))}
    ${run.talks && act("keep", keep, t("keep"))}
    ${run.can_resume && act("resume", resume, t(hasBegun ? "resume" : "start"))}
    ${!goesOn(run) && !isQueued && act("again", () => go("train", "again", name), t("again"))}
    ${canStop && act("stop", stop, t(isQueued ? "take_out.short" : "stop"), "danger")}
    ${!goesOn(run) && act("delete", remove, t("delete"), "danger")}
  </div>`;
}

/** @param {{ run: Run }} props */
function Figures({ run }) {
  const app = useApp();
  const { t, lang } = app;
  if (!run.steps) return null;
  const texts = [
    stepText(run, t),
    run.learning_rate && t("rate", { rate: run.learning_rate }),
    typeof run.seconds_left === "number" && leftText(run.seconds_left, t),
    typeof run.loss === "number" && t("mean_loss", { loss: digits(run.loss, lang) }),
    run.tokens_per_second && t("speed", { speed: Math.round(run.tokens_per_second) }),
    memoryText(run, app),
  ];
  return html`<${Progress} run=${run} />
    <p class="small figures">${texts.filter(Boolean).map((text) => html`<span>${text}</span>`)}</p>`;
}

/** @param {{ run: Run }} props what a reader should know about the state, and what helps */
function Notes({ run }) {
  const { t } = useApp();
  const { place, waits_for: before } = run;
  const waits = place && before ? t("queued.note", { place, before }) : t("queued.soon");
  const notes = [
    run.state === "queued" && waits,
    run.state === "starting" && t("starting.note"),
    run.state === "stopping" && t("stopping.note"),
    ["failed", "stopped"].includes(run.state) && whatNow(run, t),
    run.talks && !run.is_served && t("other_base", { base: run.model ?? "?" }),
  ];
  return html`
    ${run.reason && html`<p class="note bad" role="alert">${run.reason}</p>`}
    ${run.error && html`<p class="note">${run.error}</p>`}
    ${notes.filter(Boolean).map((text) => html`<p class="note faint">${text}</p>`)}
  `;
}

/** @param {Run} run one that has ended before its end */
function whatNow(run, t) {
  const kept =
    run.step === undefined || !run.can_resume
      ? t("ended.start")
      : run.checkpoint === null
        ? t("ended.first_step")
        : t("ended.checkpoint", { step: run.checkpoint });
  return run.mend === "again" ? `${kept} ${t("ended.again")}` : kept;
}

/** @param {{ name: string }} props memory and time, which are computed when a reader wants to see them */
function Plan({ name }) {
  const { t, signal } = useApp();
  const [plan, setPlan] = useState(/** @type {any} */ (null));
  const open = async (event) => {
    if (!event.target.open || (plan && !plan.problem)) return;
    setPlan({ lines: [t("plan.busy")] });
    try {
      setPlan(await postJson(`${API}runs/plan`, { name }, signal));
    } catch (error) {
      setPlan({ problem: error.message });
    }
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
  const { t } = useApp();
  const [open] = useState(isOpen);
  return html`<section>
    <details open=${open}><summary>${t("output")}</summary><pre tabindex="0">${log.trimEnd()}</pre></details>
  </section>`;
}
