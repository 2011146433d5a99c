/**
 * What the components of all views share: Preact, requests with their errors, and controls.
 *
 * Texts in a template are text and never markup, so that what a model writes cannot act.
 */

import { fail, getJson } from "./api.js";
import { lang, t } from "./messages.js";
import { html, render, useEffect, useRef, useState } from "./vendor/preact.js";

export { fail } from "./api.js";
export { lang, t } from "./messages.js";
export * from "./vendor/preact.js";

/** @typedef {import("./vendor/preact.js").Child} Child */

/** Show a view, or what is below it: go("adapters", "kyoka"). @param {...string} path */
export function go(...path) {
  location.hash = path.map(encodeURIComponent).join("/");
}

/**
 * Load JSON, and again with another address. An error is shown above the view.
 *
 * @param {string | null} path null: nothing
 * @param {(loaded: any) => number} [pauseOf] milliseconds until it is loaded again; 0: it is not. A server that does
 *   not answer for a while is no error then.
 * @returns {[any, () => Promise<void>, import("./vendor/preact.js").SetState<any>]} what the server answered, null
 *   before; a function that loads it again; and one that puts something else in its place
 */
export function useJson(path, pauseOf = () => 0) {
  const [loaded, setLoaded] = useState(/** @type {any} */ (null));
  const asked = useRef(path);
  asked.current = path;
  const load = async (failed = fail) => {
    const answer = path && (await getJson(path).catch(failed));
    if (answer && asked.current === path) setLoaded(answer);
  };
  const pause = pauseOf(loaded);
  useEffect(() => void load(), [path]);
  useEffect(() => {
    const loadAgain = () => document.hidden || load((error) => error.code === "unreachable" || fail(error));
    const timer = pause && setInterval(loadAgain, pause);
    return () => clearInterval(timer);
  }, [path, pause]);
  return [loaded, () => load(), setLoaded];
}

/**
 * Return a function that does something which may take a while, and whose error is shown above the view; and what is
 * being done, "" if nothing is. While it is, nothing else is begun.
 *
 * @returns {[string, (what: string, act: () => any) => Promise<void>]}
 */
export function useWork() {
  const [busy, setBusy] = useState("");
  const now = useRef("");
  const set = (what) => setBusy((now.current = what));
  const work = async (what, act) => {
    if (now.current) return;
    set(what);
    await Promise.resolve().then(act).catch(fail);
    set("");
  };
  return [busy, work];
}

/**
 * Do something a while after the last change; what is being done for the values before is stopped.
 *
 * @param {number} pause milliseconds
 * @param {unknown[]} values
 * @param {(signal: AbortSignal) => Promise<unknown>} act
 */
export function useSoon(pause, values, act) {
  useEffect(() => {
    const controller = new AbortController();
    const timer = setTimeout(() => act(controller.signal), pause);
    return () => (clearTimeout(timer), controller.abort());
  }, values);
}

/** @param {{ act: (event: Event) => void, [attribute: string]: any }} props a button without a frame */
export function Quiet({ act, children, ...others }) {
  return html`<button type="button" class="quiet" onClick=${act} ...${others}>${children}</button>`;
}

/**
 * A row of buttons. While one of them does something, the others do nothing; its error is shown above the view.
 *
 * @param {object} props
 * @param {[any, string, (event: Event) => any, string?, Record<string, any>?][]} props.of for each whether it is there,
 *   its text, what it does, its class, and attributes or `during`, its text while it does it
 * @param {string} [props.kind] the class of those without one
 * @param {any} [props.isOff] whether none can be used
 * @param {Child} [props.children] what stands before them
 */
export function Actions({ of, kind = "", isOff, children }) {
  const [busy, work] = useWork();
  const draw = ([isThere, text, act, own = kind, { during = text, ...others } = {}]) => {
    const state = { class: own, disabled: Boolean(isOff), "aria-disabled": busy ? "true" : null };
    const begin = (event) => work(text, () => act(event));
    return isThere && html`<${Quiet} key=${text} act=${begin} ...${{ ...state, ...others }}>
      ${busy === text ? during : text}
    <//>`;
  };
  return html`<div class="actions">${children}${of.map(draw)}</div>`;
}

/** @param {{ act: (event: Event) => any, [attribute: string]: any }} props a form; `act`: when it is sent, as above */
export function Form({ act, children, ...others }) {
  const [, work] = useWork();
  const submit = (event) => (event.preventDefault(), work("send", () => act(event)));
  return html`<form onSubmit=${submit} ...${others}>${children}</form>`;
}

/**
 * A text, of several lines with `rows`, or one of a list with `options`, which are values and their texts.
 *
 * @param {{ set: (text: string, target: HTMLInputElement) => void, rows?: number, options?: [string, string][],
 *   [attribute: string]: any }} props
 */
export function Input({ set, options, ...others }) {
  const act = ({ target }) => set(target.value, target);
  const choice = ([value, text]) => html`<option value=${value}>${text}</option>`;
  if (options) return html`<select onChange=${act} ...${others}>${options.map(choice)}</select>`;
  return others.rows ? html`<textarea onInput=${act} ...${others} />` : html`<input onInput=${act} ...${others} />`;
}

/** @param {{ label: Child, children?: Child, [attribute: string]: any }} props a labelled control, by default Input */
export function Field({ label, title, children, ...input }) {
  return html`<label class="field" title=${title}>
    <span>${label}</span>${children ?? html`<${Input} ...${input} />`}
  </label>`;
}

/** @param {{ text: string, hint?: string, [attribute: string]: any }} props files; a browser's text has its language */
export function FileField({ text, hint, ...input }) {
  return html`<label class="field files">${hint}<input type="file" ...${input} /><span>${text}</span></label>`;
}

/** @param {{ set: (isOn: boolean) => void, [attribute: string]: any }} props a box to tick, with its text */
export function Check({ set, title, children, ...others }) {
  const box = html`<input type="checkbox" onChange=${(event) => set(event.target.checked)} ...${others} />`;
  return children ? html`<label class="check" title=${title}>${box}${children}</label>` : box;
}

const MANY = 8; // entries of a list above which there is a field to filter them

/**
 * Let the reader find entries of a list by their names, and choose some.
 *
 * @param {any[]} all
 * @param {number} most that can be chosen
 * @returns {{ filter: Child, found: any[], tick: (name: string, label: string, isAllowed?: boolean) => Child,
 *   chosen: (least: number, text: string, act: (...names: string[]) => void) => Child }} a field if there are many; the
 *   entries with its text in their names; a box for an entry; and the chosen ones, with what can be done with them
 */
export function useChoice(all, most) {
  const [wanted, setWanted] = useState("");
  const [ticked, setTicked] = useState(/** @type {string[]} */ ([]));
  const names = ticked.filter((name) => all.some((one) => one.name === name));
  const put = (name) => (isOn) => setTicked([...names.filter((one) => one !== name), ...(isOn ? [name] : [])]);
  return {
    filter: all.length > MANY && html`<${Input} class="filter" type="search" placeholder=${t("filter")}
      aria-label=${t("filter")} value=${wanted} set=${setWanted} />`,
    found: all.filter((one) => one.name.toLowerCase().includes(wanted.toLowerCase())),
    tick: (name, label, isAllowed = true) => html`<${Check} aria-label=${label} checked=${names.includes(name)}
      disabled=${!isAllowed || (!names.includes(name) && names.length >= most)} set=${put(name)} />`,
    chosen: (least, text, act) => names.length > 0 && html`<div class="selection">
      <span>${names.join(lang === "ja" ? "、" : ", ")}</span>
      <${Actions} isOff=${names.length < least} of=${[[true, text, () => act(...names), "primary"]]} />
    </div>`,
  };
}

/** @param {{ headers: Child[], rows: Child[][], class?: string }} props a table to scroll, also by keyboard */
export function Table({ headers, rows, class: kind = "data" }) {
  const heads = headers.map((text) => (text ? html`<th scope="col">${text}</th>` : html`<td></td>`));
  return html`<div class="scroll" tabindex="0">
    <table class=${kind}>
      <thead><tr>${heads}</tr></thead>
      <tbody>${rows.map((row) => html`<tr>${row.map((text) => html`<td>${text}</td>`)}</tr>`)}</tbody>
    </table>
  </div>`;
}

/**
 * Show a dialog and wait until it is closed.
 *
 * @param {string} label
 * @param {(close: (value?: any) => void) => Child} content
 * @param {boolean} [mayCancel] whether the key Escape closes it
 * @returns {Promise<any>} what it is closed with
 */
export function openDialog(label, content, mayCancel = true) {
  return new Promise((resolve) => {
    const holder = document.body.appendChild(document.createElement("div"));
    let result;
    const close = (value) => ((result = value), holder.querySelector("dialog")?.close());
    const done = () => (render(null, holder), holder.remove(), resolve(result));
    const cancel = (event) => mayCancel || event.preventDefault();
    render(html`<dialog aria-label=${label} onClose=${done} onCancel=${cancel}>${content(close)}</dialog>`, holder);
    holder.querySelector("dialog")?.showModal();
  });
}

/** @param {{ act: (event: Event) => void, yes: string, close?: () => void, [name: string]: any }} props of a dialog */
export function DialogForm({ act, yes, close, children, ...others }) {
  return html`<${Form} act=${act} ...${others}>
    ${children}
    <div class="actions">
      ${close && html`<${Quiet} act=${() => close()}>${t("cancel")}<//>`}<button class="primary">${yes}</button>
    </div>
  <//>`;
}

/**
 * Ask a question, or for a name; what goes wrong with the answer is shown in the question.
 *
 * @param {string} text
 * @param {string} yes what the button says that does it
 * @param {(name: string) => any} [act] what is done
 * @param {string} [name] proposed; without, none is asked for
 * @returns {Promise<boolean>} whether the reader wants it, and it is done
 */
export async function ask(text, yes, act = () => {}, name) {
  const label = name === undefined ? text : yes;
  return Boolean(await openDialog(label, (close) => html`<${Question} ...${{ text, yes, act, name, close }} />`));
}

function Question({ text, yes, act, name, close }) {
  const [given, setGiven] = useState(name);
  const [problem, setProblem] = useState("");
  const submit = async () => {
    const error = await Promise.resolve(given).then(act).catch((wrong) => wrong);
    if (error instanceof Error) setProblem(error.message);
    else close(true);
  };
  const select = (event) => event.target.select();
  return html`<${DialogForm} act=${submit} ...${{ yes, close }}>
    ${name === undefined ? html`<p>${text}</p>` : html`<${Field} label=${text} value=${given} required maxlength="100"
      spellcheck=${false} set=${setGiven} onFocus=${select} />`}
    <p class="broken" role="alert">${problem}</p>
  <//>`;
}

/** Let the browser save a file. @param {string} name @param {Blob} content */
export function saveFile(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
