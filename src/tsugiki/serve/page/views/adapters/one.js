/** The page of an adapter. */

import { getBlob, getJson, postBlob, postJson } from "../../api.js";
import { ask, askName, button, h, saveFile } from "../../dom.js";
import { sectionsDrawer } from "../../sections.js";
import { originText, tags } from "./parts.js";

/**
 * @param {HTMLElement} root
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Library} library
 * @param {string} name
 * @param {() => void} mix shows a mix with it
 */
export async function showOne(root, app, library, name, mix) {
  const { t, signal } = app;
  const one = library.adapters.find((adapter) => adapter.name === name);
  root.append(h("p.back", {}, h("a", { href: "#adapters" }, t("back"))));
  if (!one || one.broken) {
    const problem = one ? t("broken", { problem: one.broken }) : t("unknown", { name });
    root.append(h("h1", {}, name), h("p.broken", {}, problem));
    if (one && !one.given) root.append(h("div.actions", {}, removeButton(app, one)));
    return;
  }
  const exported = (kind) => postBlob("/page/api/export-adapter", { name, kind }, signal);
  const address = `/page/api/adapters/${encodeURIComponent(name)}`;
  root.append(
    h(
      "div.heading",
      {},
      h("div", {}, h("h1", {}, name), h("p.faint.small", {}, originText(app, one)), h("p", {}, tags(app, one))),
      h(
        "div.actions",
        {},
        !one.other_base && button(t("talk"), () => app.go("talk", name), { class: "primary" }),
        one.mixes && !one.other_base && button(t("mix_it"), mix),
        button(t("save_report"), () => save(app, `${name}.html`, () => getBlob(`${address}/report`, signal))),
        button(t("save_zip"), () => save(app, `${name}.zip`, () => exported("zip"))),
        one.mixes && button(t("save_gguf"), () => save(app, `${name}.gguf`, () => exported("gguf"))),
        !one.given && button(t("rename"), () => rename(app, one)),
        !one.given && removeButton(app, one),
      ),
    ),
  );
  const details = await getJson(address, signal);
  root.append(h("div.sections", {}, sectionsDrawer(app, t("keys"))(details.sections), card(app, details.card)));
}

/**
 * @param {import("../../app.js").App} app
 * @param {string | null} text
 */
function card(app, text) {
  if (!text) return null;
  return h("section", {}, h("details", {}, h("summary", {}, h("h2", {}, app.t("card"))), h("pre", {}, text)));
}

/**
 * @param {import("../../app.js").App} app
 * @param {string} file its name
 * @param {() => Promise<Blob>} get
 */
async function save(app, file, get) {
  try {
    saveFile(file, await get());
  } catch (error) {
    app.fail(error);
  }
}

/**
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Adapter} one
 */
function removeButton(app, one) {
  const { t } = app;
  const remove = async () => {
    if (!(await ask(t("remove.question", { name: one.name }), t("remove"), t("cancel")))) return;
    try {
      await postJson("/page/api/remove-adapter", { name: one.name }, app.signal);
      app.go("adapters");
    } catch (error) {
      app.fail(error);
    }
  };
  return button(t("remove"), remove, { class: "danger" });
}

/**
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Adapter} one
 */
function rename(app, one) {
  const { t } = app;
  askName(t("new_name"), one.name, t("rename"), t("cancel"), async (to) => {
    if (to === one.name) return;
    const { name } = await postJson("/page/api/rename-adapter", { name: one.name, to }, app.signal);
    app.go("adapters", name);
  });
}
