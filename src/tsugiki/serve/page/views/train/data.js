/** Bring data: send files, paste a text, or choose from those that are there. */

import { postJson, putFile } from "../../api.js";
import { ask, Field, html, useApp, useJson, useState } from "../../ui.js";

const API = "/page/api/train/";

/** Return the files that were sent, and what can be done with data. */
export function useData(draft, change, work) {
  const { t, signal, fail, lang } = useApp();
  const [sent, load, setSent] = useJson(`${API}uploads`);
  const [status, setStatus] = useState("");
  /** @param {"texts" | "uploads"} where the text is */
  const choose = (path, isChosen, where) => change((now) => chosenWith(now, path, isChosen, where));
  const send = async (files) => {
    for (const file of files) {
      if (file.size > sent.largest) {
        throw new Error(t("sent.too_large", { name: file.name, size: size(sent.largest, lang) }));
      }
      setStatus(t("sent.sending", { name: file.name }));
      const { name } = await putFile(`${API}uploads?name=${encodeURIComponent(file.name)}`, file, signal);
      choose(name, true, "uploads");
    }
  };
  const sendAll = (files, done = () => {}) =>
    work("send", async () => {
      try {
        await send([...files]);
        done();
      } finally {
        setStatus("");
        await load();
      }
    });
  const pasted = () => new File([draft.pasted], `${t("sent.pasted")}.txt`);
  const paste = () => sendAll([pasted()], () => change({ pasted: "" })); // not before the server has it
  const remove = async (name) => {
    if (!(await ask(t("sent.question", { name }), t("sent.remove"), t("cancel")))) return;
    try {
      setSent(await postJson(`${API}remove-upload`, { name }, signal));
      choose(name, false, "uploads");
    } catch (error) {
      fail(error);
    }
  };
  return { sent, status, choose, sendAll, paste, remove, load };
}

/** Return what changes with a text: the chosen ones, the name of the run, and the columns, which belong to a table. */
function chosenWith(draft, path, isChosen, where) {
  const others = draft[where].filter((one) => one !== path);
  const stem = path.split("/").at(-1).replace(/\.[^.]+$/, "");
  const name = isChosen ? draft.name || stem : draft.name === stem ? "" : draft.name;
  return { [where]: isChosen ? [...others, path] : others, name, columns: {} };
}

/** The data that are chosen, each with a button that leaves it out. */
export function ChosenData({ draft, data }) {
  const { t } = useApp();
  const tag = (path, where) => {
    const leave = () => data.choose(path, false, where);
    const label = t("texts.remove", { name: path });
    return html`<li class="tag">
      ${path}<button type="button" class="quiet" aria-label=${label} onClick=${leave}>×</button>
    </li>`;
  };
  return html`<ul class="chosen">
    ${draft.uploads.map((path) => tag(path, "uploads"))}${draft.texts.map((path) => tag(path, "texts"))}
  </ul>`;
}

/** Files that are sent, dropped or pasted, and those that were sent before. */
export function Sent({ draft, change, data }) {
  const { t, lang } = useApp();
  const [isOver, setOver] = useState(false);
  const { sent, status } = data;
  if (!sent) return null;
  const over = (now) => (event) => (event.preventDefault(), setOver(now));
  const drop = (event) => (over(false)(event), data.sendAll(event.dataTransfer.files));
  const label = t("sent.file", { suffixes: sent.suffixes.join(" "), size: size(sent.largest, lang) });
  const file = (one) => html`<li key=${one.name}>
    <${Choice} name=${one.name} size=${one.size} isChosen=${draft.uploads.includes(one.name)}
      onChoose=${(isChosen) => data.choose(one.name, isChosen, "uploads")} />
    <button type="button" class="quiet" aria-label=${t("sent.remove_it", { name: one.name })}
      onClick=${() => data.remove(one.name)}>×</button>
  </li>`;
  return html`<div class="sent">
    <div class=${isOver ? "drop over" : "drop"} onDragOver=${over(true)} onDragLeave=${over(false)} onDrop=${drop}>
      <${Field} label=${label}>
        <input type="file" multiple accept=${sent.suffixes.join()}
          onChange=${(event) => data.sendAll(event.target.files)} />
      <//>
      <${Field} label=${t("sent.paste")}>
        <textarea rows="4" value=${draft.pasted}
          onInput=${(event) => change({ pasted: event.target.value })}></textarea>
      <//>
      <div class="actions">
        <button type="button" disabled=${!draft.pasted.trim()} onClick=${data.paste}>${t("sent.use")}</button>
        <span class="faint small" role="status">${status}</span>
      </div>
    </div>
    ${sent.files.length > 0 &&
    html`<p class="faint small">${t("sent.before")}</p>
      <ul class="entries" tabindex="0">${sent.files.map(file)}</ul>`}
  </div>`;
}

function Choice({ name, size: bytes, isChosen, onChoose }) {
  const { lang } = useApp();
  return html`<label>
    <input type="checkbox" checked=${isChosen} onChange=${(event) => onChoose(event.target.checked)} />
    <span>${name}</span><span class="faint small number">${size(bytes, lang)}</span>
  </label>`;
}

/** The texts in a folder of the server. */
export function Folder({ options, draft, change, data }) {
  const { t } = useApp();
  const { folder } = draft;
  const [listing] = useJson(`${API}texts?folder=${encodeURIComponent(folder)}`);
  const parts = folder ? folder.split("/") : [];
  const enter = (path, text) =>
    path === folder
      ? html`<span>${text}</span>`
      : html`<button type="button" class="link" onClick=${() => change({ folder: path })}>${text}</button>`;
  const entry = (one) => {
    const path = folder ? `${folder}/${one.name}` : one.name;
    const isChosen = draft.texts.includes(path);
    const onChoose = (now) => data.choose(path, now, "texts");
    if (!one.folder) return html`<${Choice} ...${{ name: one.name, size: one.size, isChosen, onChoose }} />`;
    return html`<input type="checkbox" checked=${isChosen} aria-label=${t("texts.whole", { name: one.name })}
        onChange=${(event) => onChoose(event.target.checked)} />${enter(path, `${one.name}/`)}`;
  };
  return html`<details>
    <summary>${t("texts.here")}</summary>
    <div class="texts">
      <p class="crumbs">
        ${enter("", options.texts)}
        ${parts.map((part, i) => html` / ${enter(parts.slice(0, i + 1).join("/"), part)}`)}
      </p>
      ${listing &&
      (listing.entries.length
        ? html`<ul class="entries">${listing.entries.map((one) => html`<li key=${one.name}>${entry(one)}</li>`)}</ul>`
        : html`<p class="faint small">${t("texts.none")}</p>`)}
      ${listing?.more && html`<p class="faint small">${t("texts.more")}</p>`}
    </div>
  </details>`;
}

/** @param {number} bytes */
function size(bytes, lang) {
  const [unit, divisor] = bytes < 1e6 ? ["kB", 1e3] : ["MB", 1e6]; // Intl writes KB in Japanese
  return `${new Intl.NumberFormat(lang, { maximumFractionDigits: 1 }).format(bytes / Number(divisor))} ${unit}`;
}
