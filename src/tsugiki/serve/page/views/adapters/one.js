/** The page of an adapter. */

import { getBlob, postBlob, postJson } from "../../api.js";
import { Sections } from "../../sections.js";
import { ask, askName, html, saveFile, useApp, useJson, useWork } from "../../ui.js";
import { Origin, Tags } from "./parts.js";

/** @param {{ library: import("../adapters.js").Library, name: string, mix: () => void }} props `mix` shows a mix */
export function One({ library, name, mix }) {
  const { t } = useApp();
  const one = library.adapters.find((adapter) => adapter.name === name);
  const isFine = one && !one.broken;
  const address = `/page/api/adapters/${encodeURIComponent(name)}`;
  const [details] = useJson(isFine ? address : null);
  const back = html`<p class="back"><a href="#adapters">${t("back")}</a></p>`;
  if (!isFine) {
    return html`${back}
      <h1>${name}</h1>
      <p class="broken">${one?.broken ? t("broken", { problem: one.broken }) : t("unknown", { name })}</p>
      ${one && !one.given && html`<div class="actions"><${Remove} name=${name} /></div>`}`;
  }
  return html`
    ${back}
    <div class="heading">
      <div>
        <h1>${name}</h1>
        <p class="faint small"><${Origin} one=${one} /></p>
        <p><${Tags} one=${one} /></p>
      </div>
      <${Actions} ...${{ one, address, mix }} />
    </div>
    ${details &&
    html`<div class="sections">
      <${Sections} sections=${details.sections} keys=${t("keys")} />
      ${details.card &&
      html`<section>
        <details><summary><h2>${t("card")}</h2></summary><pre tabindex="0">${details.card}</pre></details>
      </section>`}
    </div>`}
  `;
}

/** @param {{ one: import("../adapters.js").Adapter, address: string, mix: () => void }} props */
function Actions({ one, address, mix }) {
  const { t, go, signal } = useApp();
  const [busy, work] = useWork();
  const { name, given, mixes, other_base: other } = one;
  const act = (text, does, kind = "") =>
    html`<button type="button" class=${kind} disabled=${Boolean(busy)} onClick=${does}>${text}</button>`;
  const save = (ending, get) => () => work(ending, async () => saveFile(`${name}.${ending}`, await get()));
  const exported = (kind) => save(kind, () => postBlob("/page/api/export-adapter", { name, kind }, signal));
  const rename = () =>
    askName(t("new_name"), name, t("rename"), t("cancel"), async (to) => {
      if (to === name) return;
      const renamed = await postJson("/page/api/rename-adapter", { name, to }, signal);
      go("adapters", renamed.name);
    });
  return html`<div class="actions">
    ${!other && act(t("talk"), () => go("talk", name), "primary")}
    ${mixes && !other && act(t("mix_it"), mix)}
    ${act(t("save_report"), save("html", () => getBlob(`${address}/report`, signal)))}
    ${act(t("save_zip"), exported("zip"))}
    ${mixes && act(t("save_gguf"), exported("gguf"))}
    ${!given && act(t("rename"), rename)}
    ${!given && html`<${Remove} name=${name} />`}
  </div>`;
}

/** @param {{ name: string }} props */
function Remove({ name }) {
  const { t, go, signal } = useApp();
  const [busy, work] = useWork();
  const remove = () =>
    work("remove", async () => {
      if (!(await ask(t("remove.question", { name }), t("remove"), t("cancel")))) return;
      await postJson("/page/api/remove-adapter", { name }, signal);
      go("adapters");
    });
  return html`<button type="button" class="danger" disabled=${Boolean(busy)} onClick=${remove}>${t("remove")}</button>`;
}
