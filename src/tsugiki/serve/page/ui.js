/**
 * What the components of all views share: Preact, what the shell gives a view, and controls.
 *
 * Texts in a template are text and never markup, so that what a model writes cannot act.
 */

import {
  createContext, html, render, useContext, useEffect, useErrorBoundary, useRef, useState,
} from "./vendor/preact.js";
import { getJson } from "./api.js";

export { html, render, useEffect, useErrorBoundary, useRef, useState };
export { useCallback, useLayoutEffect, useMemo, useReducer } from "./vendor/preact.js";

/** @typedef {import("./vendor/preact.js").Child} Child */
/** @typedef {import("./app.js").App} App */

export const AppContext = createContext(/** @type {App} */ (/** @type {unknown} */ (null)));

/** Return what the shell gives a view: texts, language, path, and how to go elsewhere or to show an error. */
export function useApp() {
  return useContext(AppContext);
}

/**
 * Make the `mount` of a view from its component.
 *
 * @param {() => Child} View gets what it needs by `useApp`
 * @returns {(root: HTMLElement, app: App) => void} draws it, also again with another path; `null` as app takes it away
 */
export function mountOf(View) {
  return (root, app) => render(app && html`<${AppContext.Provider} value=${app}><${Guarded} View=${View} /><//>`, root);
}

/** A view whose errors are shown above it. */
function Guarded({ View }) {
  useErrorBoundary(useApp().fail);
  return html`<${View} />`;
}

/**
 * Load JSON, and again with another address. An error is shown above the view.
 *
 * @param {string | null} path null: nothing
 * @returns {[any, () => Promise<void>, import("./vendor/preact.js").SetState<any>]} what the server answered, null
 *   before; a function that loads it again; and one that puts something else in its place
 */
export function useJson(path) {
  const { signal, fail } = useApp();
  const [loaded, setLoaded] = useState(/** @type {any} */ (null));
  const asked = useRef(path);
  asked.current = path;
  const load = async () => {
    if (!path) return;
    try {
      const answer = await getJson(path, signal);
      if (asked.current === path) setLoaded(answer);
    } catch (error) {
      fail(error);
    }
  };
  useEffect(() => {
    load();
  }, [path]);
  return [loaded, load, setLoaded];
}

/**
 * Return a function that does something which takes a while, and whose error is shown above the view; and what is
 * being done, "" if nothing is. While it is, nothing else is begun.
 *
 * @returns {[string, (what: string, act: () => Promise<void>) => Promise<void>]}
 */
export function useWork() {
  const { fail } = useApp();
  const [busy, setBusy] = useState("");
  const now = useRef("");
  const set = (what) => setBusy((now.current = what));
  const work = async (what, act) => {
    if (now.current) return;
    set(what);
    try {
      await act();
    } catch (error) {
      fail(error);
    } finally {
      set("");
    }
  };
  return [busy, work];
}

/** @param {{ act: (event: Event) => void, [attribute: string]: any }} props a button without a frame */
export function Quiet({ act, children, ...others }) {
  return html`<button type="button" class="quiet" onClick=${act} ...${others}>${children}</button>`;
}

/** @param {{ label: Child, children?: Child, [attribute: string]: any }} props a labelled control */
export function Field({ label, children, ...others }) {
  return html`<label class="field" ...${others}><span>${label}</span>${children}</label>`;
}

/**
 * A list to choose from, of values and their texts.
 *
 * @param {{ options: [string, string][], value: string, onChoose: (value: string) => void, [name: string]: any }} props
 */
export function Select({ options, value, onChoose, ...others }) {
  return html`<select value=${value} onChange=${(event) => onChoose(event.target.value)} ...${others}>
    ${options.map(([name, text]) => html`<option value=${name}>${text}</option>`)}
  </select>`;
}

/** Entries of a list above which there is a field to filter them. */
export const MANY = 8;

/** @param {{ label: string, value: string, onInput: (value: string) => void }} props a field that filters a list */
export function Filter({ label, value, onInput }) {
  return html`<input class="filter" type="search" placeholder=${label} aria-label=${label} value=${value}
    onInput=${(event) => onInput(event.target.value)} />`;
}

/**
 * Names that are chosen from a list, and what can be done with them.
 *
 * @param {{ names: string[], least: number, text: string, act: (...names: string[]) => void }} props
 */
export function Chosen({ names, least, text, act }) {
  const { lang } = useApp();
  if (!names.length) return null;
  return html`<div class="selection">
    <span>${names.join(lang === "ja" ? "、" : ", ")}</span>
    <button type="button" class="primary" disabled=${names.length < least} onClick=${() => act(...names)}>
      ${text}
    </button>
  </div>`;
}

/** @param {{ headers: Child[], rows: Child[][] }} props a table that can be scrolled, also by keyboard */
export function Table({ headers, rows }) {
  const heads = headers.map((text) => (text ? html`<th scope="col">${text}</th>` : html`<td></td>`));
  return html`<div class="scroll" tabindex="0">
    <table class="data">
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
    const holder = document.createElement("div");
    document.body.append(holder);
    let result;
    const close = (value) => {
      result = value;
      holder.querySelector("dialog")?.close();
    };
    const done = () => {
      render(null, holder);
      holder.remove();
      resolve(result);
    };
    const cancel = (event) => mayCancel || event.preventDefault();
    render(html`<dialog aria-label=${label} onClose=${done} onCancel=${cancel}>${content(close)}</dialog>`, holder);
    holder.querySelector("dialog")?.showModal();
  });
}

/**
 * Ask a question and wait for the answer.
 *
 * @param {string} question
 * @param {string} yes what the button says that does it
 * @param {string} no what the button says that does not
 * @returns {Promise<boolean>}
 */
export async function ask(question, yes, no) {
  const answer = await openDialog(
    question,
    (close) => html`<p>${question}</p>
      <div class="actions">
        <button type="button" class="quiet" autofocus onClick=${() => close()}>${no}</button>
        <button type="button" class="primary" onClick=${() => close(true)}>${yes}</button>
      </div>`,
  );
  return Boolean(answer);
}

/**
 * Ask for a name; what is wrong with it is shown in the question.
 *
 * @param {string} label
 * @param {string} value proposed
 * @param {string} yes what the button says that does it
 * @param {string} no what the button says that does not
 * @param {(name: string) => Promise<void>} act what is done with the name
 */
export function askName(label, value, yes, no, act) {
  return openDialog(yes, (close) => html`<${NameForm} ...${{ label, value, yes, no, act, close }} />`);
}

function NameForm({ label, value, yes, no, act, close }) {
  const [name, setName] = useState(value);
  const [problem, setProblem] = useState("");
  const submit = async (event) => {
    event.preventDefault();
    try {
      await act(name);
      close();
    } catch (error) {
      setProblem(error.message);
    }
  };
  const select = (event) => event.target.select();
  return html`<form onSubmit=${submit}>
    <${Field} label=${label}>
      <input value=${name} required maxlength="100" spellcheck=${false} autofocus onFocus=${select}
        onInput=${(event) => setName(event.target.value)} />
    <//>
    <p class="broken" role="alert">${problem}</p>
    <div class="actions">
      <button type="button" class="quiet" onClick=${() => close()}>${no}</button>
      <button class="primary">${yes}</button>
    </div>
  </form>`;
}

/**
 * Let the browser save a file.
 *
 * @param {string} name
 * @param {Blob} content
 */
export function saveFile(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
