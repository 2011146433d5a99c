/** The page of an adapter. */

import { getBlob, getJson, postJson } from "../../api.js";
import { ask, button, field, fill, h } from "../../dom.js";
import { picture, sourceText, table, tags } from "./parts.js";

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
  const address = `/page/api/adapters/${encodeURIComponent(name)}`;
  root.append(
    h(
      "div.heading",
      {},
      h("div", {}, h("h1", {}, name), h("p", {}, tags(app, one))),
      h(
        "div.actions",
        {},
        !one.other_base && button(t("talk"), () => app.go("talk", name), { class: "primary" }),
        one.mixes && !one.other_base && button(t("mix_it"), mix),
        button(t("save_report"), () => saveReport(app, address, name)),
        !one.given && button(t("rename"), () => rename(app, one)),
        !one.given && removeButton(app, one),
      ),
    ),
  );
  const layers = h("section", { "aria-busy": true }, h("h2", {}, t("layers")), h("p.faint", {}, t("layers.waiting")));
  const content = h("div.sections");
  root.append(content);

  const details = await getJson(address, signal);
  fill(content, ...sections(app, library, one, details), layers, card(app, details.card));
  try {
    showLayers(layers, app, await getJson(`${address}/layers`, signal));
  } catch (error) {
    app.fail(error);
    layers.remove();
  }
}

/**
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Library} library
 * @param {import("../adapters.js").Adapter} one
 * @param {any} details
 * @returns {HTMLElement[]}
 */
function sections(app, library, one, details) {
  const { t } = app;
  const facts = h("table.facts", {}, details.facts.map(([label, text]) =>
    h("tr", {}, h("th", { scope: "row" }, label), h("td", {}, text)),
  ));
  return [
    details.held_out &&
      h("section", {}, h("h2", {}, t("figures")), h("p", {}, details.sentence), table(details.held_out)),
    h("section", {}, h("h2", {}, t("facts")), facts),
    lineage(app, library, one),
    details.samples.length > 0 && h("section", {}, h("h2", {}, t("samples")), samples(details.samples)),
  ].filter(Boolean);
}

/** @param {[string, string, string][]} cells label, prompt and text */
function samples(cells) {
  const prompts = new Map();
  for (const [label, prompt, text] of cells) prompts.set(prompt, [...(prompts.get(prompt) ?? []), [label, text]]);
  return [...prompts].map(([prompt, texts]) =>
    h(
      "div.samples",
      {},
      ...texts.map(([label, text]) =>
        h("figure.sample", {}, h("figcaption", {}, label), h("p", {}, h("span.faint", {}, prompt), text)),
      ),
    ),
  );
}

/**
 * What an adapter was made from, and what was made from it, found by the digests of their weights.
 *
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Library} library
 * @param {import("../adapters.js").Adapter} one
 * @returns {HTMLElement | null}
 */
function lineage(app, library, one) {
  const { t } = app;
  const link = (name, text) => h("li", {}, h("a", { href: `#adapters/${encodeURIComponent(name)}` }, text));
  const parents = (one.origin?.sources ?? []).map((source) => {
    const found = source.digest && library.adapters.find((adapter) => adapter.digest === source.digest);
    const renamed = found && found.name !== source.name ? t("now_called", { name: found.name }) : "";
    return found ? link(found.name, sourceText(source) + renamed) : h("li", {}, sourceText(source));
  });
  const children = library.adapters
    .filter((adapter) => one.digest && adapter.origin?.sources.some((source) => source.digest === one.digest))
    .map((adapter) => link(adapter.name, adapter.name));
  if (!parents.length && !children.length) return null;
  return h(
    "section",
    {},
    h("h2", {}, t("lineage")),
    parents.length > 0 && h("p.faint.small", {}, t("made_from")),
    parents.length > 0 && h("ul", {}, ...parents),
    children.length > 0 && h("p.faint.small", {}, t("made_of_it")),
    children.length > 0 && h("ul", {}, ...children),
  );
}

/**
 * @param {HTMLElement} section
 * @param {import("../../app.js").App} app
 * @param {any} found
 */
function showLayers(section, app, found) {
  const { t } = app;
  section.removeAttribute("aria-busy");
  fill(
    section,
    h("h2", {}, t("layers")),
    ...found.notes.map((note) => h("p", {}, note)),
    h("div.pictures", {}, ...found.pictures.map(picture)),
    found.kinds && table(found.kinds),
    found.layers &&
      h("details", {}, h("summary", {}, t("all_layers", { count: found.layers.rows.length })), table(found.layers)),
    found.tensors && table(found.tensors),
    found.explained && h("p.faint.small", {}, found.explained),
  );
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
 * @param {string} address of the adapter
 * @param {string} name
 */
async function saveReport(app, address, name) {
  try {
    const url = URL.createObjectURL(await getBlob(`${address}/report`, app.signal));
    h("a", { href: url, download: `${name}.html` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
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
 * Ask for a new name; what is wrong with it is shown in the question.
 *
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Adapter} one
 */
function rename(app, one) {
  const { t } = app;
  const input = h("input", { value: one.name, required: true, maxlength: 100, spellcheck: false });
  const problem = h("p.broken", { role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    if (input.value === one.name) return dialog.close();
    try {
      const { name } = await postJson("/page/api/rename-adapter", { name: one.name, to: input.value }, app.signal);
      dialog.close();
      app.go("adapters", name);
    } catch (error) {
      fill(problem, error.message);
    }
  };
  const dialog = h(
    "dialog",
    { "aria-label": t("rename"), onclose: () => dialog.remove() },
    h(
      "form",
      { onsubmit: submit },
      field(t("new_name"), input),
      problem,
      h(
        "div.actions",
        {},
        button(t("cancel"), () => dialog.close(), { class: "quiet" }),
        h("button.primary", {}, t("rename")),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  input.select();
}
