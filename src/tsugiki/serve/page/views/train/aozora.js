/** Works of Aozora Bunko: a search, and a file of those that match. */

import { postJson } from "../../api.js";
import { Field, html, Select, useApp, useState } from "../../ui.js";

const API = "/page/api/train/";

export function Aozora({ options, draft, change, busy, work, data }) {
  const { t, signal } = useApp();
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [done, setDone] = useState(/** @type {any} */ (null));
  const own = draft.aozora;
  const keep = (more) => change((now) => ({ aozora: { ...now.aozora, ...more } }));
  const filled = ["author", "title", "kana"].filter((key) => own[key].trim());
  const query = Object.fromEntries(filled.map((key) => [key, own[key]]));
  const search = (event) => {
    event.preventDefault();
    work("search", async () => {
      setDone(null);
      setFound(await postJson(`${API}works`, query, signal));
      keep({ name: own.name || own.author.trim() || own.title.trim() });
    });
  };
  const fetchWorks = (event) => {
    event.preventDefault();
    work("fetch", async () => {
      const written = await postJson(`${API}fetch`, { ...query, name: own.name.trim() }, signal);
      setFound(null);
      setDone(written);
      data.choose(written.file, true, "uploads");
      await data.load();
    });
  };
  const input = (key, more = {}) =>
    html`<input value=${own[key]} onInput=${(event) => keep({ [key]: event.target.value })} ...${more} />`;
  const kinds = [["", t("kana.any")], ["modern", t("kana.modern")], ["old", t("kana.old")]];
  return html`<details class="aozora">
    <summary>${t("aozora")}</summary>
    <form onSubmit=${search}>
      <p class="faint small">${t("aozora.from", { source: options.aozora })}</p>
      <div class="grid">
        <${Field} label=${t("aozora.author")}>${input("author", { placeholder: "夏目漱石" })}<//>
        <${Field} label=${t("aozora.title")}>${input("title")}<//>
        <${Field} label=${t("aozora.kana")}>
          <${Select} options=${kinds} value=${own.kana} onChoose=${(kana) => keep({ kana })} />
        <//>
      </div>
      <div class="actions"><button>${t("aozora.search")}</button></div>
    </form>
    <div class="found" aria-live="polite">
      ${busy === "search" && html`<p class="faint">${t("aozora.searching")}</p>`}
      ${found && html`<${Works} ...${found} />`}
      ${found &&
      html`<form class="save" onSubmit=${fetchWorks}>
        <${Field} label=${t("aozora.name")}>${input("name", { required: true })}<//>
        <button>${t("aozora.fetch")}</button>
      </form>`}
      ${busy === "fetch" && html`<p class="faint">${t("aozora.fetching")}</p>`}
      ${done && html`<p>${t("aozora.done", done)}</p>`}
      ${done?.skipped > 0 && html`<p class="faint small">${t("aozora.skipped", { count: done.skipped })}</p>`}
    </div>
  </details>`;
}

function Works({ count, works }) {
  const { t } = useApp();
  const work = ({ title, people }) => html`<li>${title} <span class="faint small">${people.join("、")}</span></li>`;
  return html`<p>${t("aozora.count", { count })}</p>
    <ul class="works" tabindex="0">${works.map(work)}</ul>`;
}
