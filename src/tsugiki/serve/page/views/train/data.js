/** Bring data: send files, paste a text, choose from those that are there, or fetch works of Aozora Bunko. */

import { postJson, remove } from "../../api.js";
import { ask, Check, Field, FileField, Form, html, lang, Quiet, t, useJson, useState, useWork } from "../../ui.js";

const API = "/page/api/train/";
const FILES = "/v1/files";
const SIZE = { maximumSignificantDigits: 3 }; // of a file

/** Return the files that were sent, and what can be done with data. */
export function useData({ sent: { largest, size } }, draft, change) {
  const [, work] = useWork();
  const [sent, load] = useJson(`${FILES}?purpose=fine-tune`);
  const [status, setStatus] = useState("");
  /** @param {"texts" | "uploads"} where the text is */
  const choose = (path, isChosen, where = "uploads") => change((now) => chosenWith(now, path, isChosen, where));
  const send = async (files) => {
    for (const file of files) {
      if (file.size > largest) throw new Error(t("sent.too_large", { name: file.name, size }));
      setStatus(t("sent.sending", { name: file.name }));
      const form = new FormData();
      form.set("purpose", "fine-tune");
      form.set("file", file);
      choose((await postJson(FILES, form)).filename, true);
    }
  };
  const end = () => (setStatus(""), load());
  const sendAll = (files, done) => work("send", () => send([...files]).then(done).finally(end));
  // the text stays until the server has it
  const paste = () => sendAll([new File([draft.pasted], `${t("sent.pasted")}.txt`)], () => change({ pasted: "" }));
  const discard = ({ id, filename: name }) =>
    ask(t("sent.question", { name }), t("sent.remove"), async () => {
      await remove(`${FILES}/${id}`);
      choose(name, false);
      await load();
    });
  return { sent, status, choose, sendAll, paste, discard, load };
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
  const tags = (where) => draft[where].map((path) => html`<li class="tag">
    ${path}<${Quiet} aria-label=${t("texts.remove", { name: path })} act=${() => data.choose(path, false, where)}>×<//>
  </li>`);
  return html`<ul class="chosen">${tags("uploads")}${tags("texts")}</ul>`;
}

/** Files that are sent, dropped or pasted, and those that were sent before. */
export function Sent({ options, draft, change, data }) {
  const [isOver, setOver] = useState(false);
  const { sent, status } = data;
  if (!sent) return null;
  const over = (now) => (event) => (event.preventDefault(), setOver(now));
  const drop = (event) => (over(false)(event), data.sendAll(event.dataTransfer.files));
  const file = (one) => html`<li key=${one.id}>
    <${Choice} name=${one.filename} size=${`${(one.bytes / 1e3).toLocaleString(lang, SIZE)} kB`} list=${draft.uploads}
      set=${(isOn) => data.choose(one.filename, isOn)} />
    <${Quiet} aria-label=${t("sent.remove_it", { name: one.filename })} act=${() => data.discard(one)}>×<//>
  </li>`;
  return html`<div class="sent">
    <div class=${isOver ? "drop over" : "drop"} onDragOver=${over(true)} onDragLeave=${over(false)} onDrop=${drop}>
      <${FileField} hint=${t("sent.file", options.sent)} text=${t("sent.choose")} multiple
        accept=${options.sent.suffixes.replaceAll(" ", ",")}
        onChange=${({ target }) => data.sendAll(target.files)} />
      <${Field} label=${t("sent.paste")} rows=${4} value=${draft.pasted} set=${(pasted) => change({ pasted })} />
      <div class="actions">
        <button type="button" disabled=${!draft.pasted.trim()} onClick=${data.paste}>${t("sent.use")}</button>
        <span class="faint small" role="status">${status}</span>
      </div>
    </div>
    ${sent.data.length > 0 &&
    html`<p class="faint small">${t("sent.before")}</p>
      <ul class="entries" tabindex="0">${sent.data.map(file)}</ul>`}
  </div>`;
}

/** A text that is chosen or not. */
function Choice({ name, path = name, size, list, set }) {
  return html`<${Check} checked=${list.includes(path)} set=${set}>
    <span>${name}</span><span class="faint small number">${size}</span>
  <//>`;
}

/** The texts in a folder of the server. */
export function Folder({ options, draft, change, data }) {
  const { folder } = draft;
  const [listing] = useJson(`${API}texts?folder=${encodeURIComponent(folder)}`);
  const parts = folder ? folder.split("/") : [];
  const enter = (path, text) =>
    path === folder
      ? html`<span>${text}</span>`
      : html`<button type="button" class="link" onClick=${() => change({ folder: path })}>${text}</button>`;
  const entry = ({ name, folder: isFolder, size }) => {
    const path = [...parts, name].join("/");
    const set = (isOn) => data.choose(path, isOn, "texts");
    if (!isFolder) return html`<${Choice} ...${{ name, path, size, list: draft.texts, set }} />`;
    return html`<${Check} checked=${draft.texts.includes(path)} aria-label=${t("texts.whole", { name })} set=${set} />
      ${enter(path, `${name}/`)}`;
  };
  return html`<details>
    <summary>${t("texts.here")}</summary>
    <div class="texts">
      <p class="crumbs">
        ${enter("", options.texts)}
        ${parts.map((part, i) => html` / ${enter(parts.slice(0, i + 1).join("/"), part)}`)}
      </p>
      ${listing?.entries.length > 0 &&
      html`<ul class="entries">${listing.entries.map((one) => html`<li key=${one.name}>${entry(one)}</li>`)}</ul>`}
      ${listing?.entries.length === 0 && html`<p class="faint small">${t("texts.none", listing)}</p>`}
      ${listing?.more && html`<p class="faint small">${t("texts.more")}</p>`}
    </div>
  </details>`;
}

/** Works of Aozora Bunko: a search, and a file of those that match. */
export function Aozora({ options, draft, change, data }) {
  const [{ found, done }, show] = useState(/** @type {any} */ ({}));
  const [busy, work] = useWork();
  const own = draft.aozora;
  const keep = (more) => change((now) => ({ aozora: { ...now.aozora, ...more } }));
  const query = Object.fromEntries(["author", "title", "kana"].map((key) => [key, own[key].trim() || undefined]));
  const search = async () => {
    show({ found: await postJson(`${API}works`, query) });
    keep({ name: own.name || own.author.trim() || own.title.trim() });
  };
  const write = async () => {
    const written = await postJson(`${API}fetch`, { ...query, name: own.name.trim() });
    show({ done: written });
    data.choose(written.file, true);
    await data.load();
  };
  const field = (key, more = {}) =>
    html`<${Field} label=${t(`aozora.${key}`)} value=${own[key]} set=${(text) => keep({ [key]: text })} ...${more} />`;
  const item = ({ title, people }) => html`<li>${title} <span class="faint small">${people.join("、")}</span></li>`;
  const kinds = ["any", "modern", "old"].map((one) => [one === "any" ? "" : one, t(`kana.${one}`)]);
  return html`<details class="aozora">
    <summary>${t("aozora")}</summary>
    <${Form} act=${() => work("searching", search)}>
      <p class="faint small">${t("aozora.from", { source: options.aozora })}</p>
      <div class="grid">
        ${field("author", { placeholder: "夏目漱石" })}${field("title")}${field("kana", { options: kinds })}
      </div>
      <div class="actions"><button>${t("aozora.search")}</button></div>
    <//>
    <div class="found" aria-live="polite">
      ${found &&
      html`<p>${t("aozora.count", { count: found.count })}</p>
        <ul class="works" tabindex="0">${found.works.map(item)}</ul>
        <${Form} class="save" act=${() => work("fetching", write)}>
        ${field("name", { required: true })}<button>${t("aozora.fetch")}</button>
      <//>`}
      ${busy && html`<p class="faint">${t(`aozora.${busy}`)}</p>`}
      ${done && html`<p>${t("aozora.done", done)}</p>`}
      ${done?.skipped > 0 && html`<p class="faint small">${t("aozora.skipped", { count: done.skipped })}</p>`}
    </div>
  </details>`;
}
