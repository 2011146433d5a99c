/** Train: choose texts, see what would be learned and what it would take, and start the run. */

import { getJson, postJson, putFile } from "../api.js";
import { ask, button, field, fill, h, select } from "../dom.js";
import { drawBases, drawPlan, drawPreview } from "./train/results.js";

const API = "/page/api/train/";
const PAUSE = 400; // milliseconds after the last change, before the settings are checked
const LENGTHS = ["epochs", "minutes"]; // one of them is asked for
const FIRST = [...LENGTHS, "method", "prompts"]; // not below "more settings"

/** What has been filled in. It stays when the view is left, or the language changes. */
const draft = {
  folder: "",
  /** @type {string[]} */
  texts: [],
  /** @type {string[]} of those that were sent */
  uploads: [],
  pasted: "",
  base: "",
  name: "",
  length: "epochs",
  /** @type {Record<string, string>} by the names of settings */
  values: { method: "lora" },
  aozora: { author: "", title: "", kana: "", name: "" },
  isAdvanced: false,
};

/**
 * @param {HTMLElement} root
 * @param {import("../app.js").App} app
 */
export async function render(root, app) {
  const { t, lang, signal, fail, go } = app;
  const options = await getJson(`${API}options`, signal);
  draft.base = options.bases.includes(draft.base) ? draft.base : options.bases[0];
  const texts = h("div.texts");
  const sent = h("div.sent");
  const chosen = h("ul.chosen");
  const command = h("pre", { tabindex: 0 });
  const yaml = h("pre", { tabindex: 0 });
  const problem = h("p.note", { role: "status", hidden: true });
  const results = h("div.results", { "aria-live": "polite" });
  const actions = h("div.actions");
  let checked = null;
  let busy = "";

  /** Return the body of a request for what is filled in. */
  function asked() {
    const { texts, uploads, base } = draft;
    const body = { name: draft.name.trim(), texts, uploads, base };
    for (const { name, kind } of options.settings.filter(applies)) {
      const given = (draft.values[name] ?? "").trim();
      if (given) body[name] = kind === "number" ? Number(given) : kind === "texts" ? linesOf(given) : given;
    }
    return body;
  }

  /** Return whether a setting has an effect with what is chosen. */
  function applies({ name, section }) {
    if (LENGTHS.includes(name)) return name === draft.length;
    return section !== "lora" || options.lora_methods.includes(draft.values.method);
  }

  // The texts ---------------------------------------------------------------------------------------------

  async function showSent() {
    drawSent(await getJson(`${API}uploads`, signal));
  }

  function drawSent({ files, suffixes, largest }) {
    const names = files.map((file) => file.name);
    draft.uploads = draft.uploads.filter((name) => names.includes(name));
    const accept = suffixes.join();
    const input = h("input", { type: "file", multiple: true, accept, onchange: () => send(input.files) });
    const pasted = h("textarea", { rows: 4, value: draft.pasted, oninput: () => (draft.pasted = pasted.value) });
    const over = (isOver) => (event) => {
      event.preventDefault();
      zone.classList.toggle("over", isOver);
    };
    const drop = (event) => (over(false)(event), send(event.dataTransfer.files));
    const zone = h(
      "div.drop",
      { ondragover: over(true), ondragleave: over(false), ondrop: drop },
      field(t("sent.file", { suffixes: suffixes.join(" "), size: size(largest, lang) }), input),
      field(t("sent.paste"), pasted),
      h("div.actions", {}, button(t("sent.use"), () => paste(pasted.value))),
    );
    fill(
      sent,
      zone,
      files.length > 0 && h("p.faint.small", {}, t("sent.before")),
      files.length > 0 && h("ul.entries", { tabindex: 0 }, files.map((file) => h("li", {}, drawFile(file)))),
    );
    drawChosen();
  }

  function drawFile(file) {
    const box = h("input", {
      type: "checkbox",
      checked: draft.uploads.includes(file.name),
      onchange: () => choose(file.name, box.checked, "uploads"),
    });
    const facts = h("span.faint.small.number", {}, size(file.size, lang));
    const remove = async () => {
      if (!(await ask(t("sent.question", { name: file.name }), t("sent.remove"), t("cancel")))) return;
      try {
        drawSent(await postJson(`${API}remove-upload`, { name: file.name }, signal));
        changed();
      } catch (error) {
        fail(error);
      }
    };
    const attributes = { class: "quiet", "aria-label": t("sent.remove_it", { name: file.name }) };
    return [h("label", {}, box, h("span", {}, file.name), facts), button("×", remove, attributes)];
  }

  /** Send files; they are chosen, and their first rows are shown. */
  async function send(files) {
    await work("send", async () => {
      for (const file of files) {
        const { name } = await putFile(`${API}uploads?name=${encodeURIComponent(file.name)}`, file, signal);
        choose(name, true, "uploads");
      }
      await showSent();
    });
    clearTimeout(timer);
    await check();
    if (checked) await preview();
  }

  async function paste(text) {
    if (busy || !text.trim()) return;
    draft.pasted = "";
    await send([new File([text], `${t("sent.pasted")}.txt`)]);
  }

  async function showFolder(folder) {
    try {
      const answer = await getJson(`${API}texts?folder=${encodeURIComponent(folder)}`, signal);
      draft.folder = folder;
      drawFolder(answer);
    } catch (error) {
      if (folder) await showFolder("");
      else fail(error);
    }
  }

  function drawFolder({ folder, entries, more }) {
    const parts = folder ? folder.split("/") : [];
    const crumbs = parts.map((part, i) => [" / ", crumb(part, parts.slice(0, i + 1).join("/"))]);
    fill(
      texts,
      h("p.crumbs", {}, crumb(options.texts, ""), crumbs),
      entries.length
        ? h(
            "ul.entries",
            {},
            entries.map((entry) => h("li", {}, drawEntry(entry, folder ? `${folder}/${entry.name}` : entry.name))),
          )
        : h("p.faint.small", {}, t("texts.none")),
      more && h("p.faint.small", {}, t("texts.more")),
    );
  }

  function crumb(text, folder) {
    return folder === draft.folder ? h("span", {}, text) : button(text, () => showFolder(folder), { class: "link" });
  }

  function drawEntry(entry, path) {
    const box = h("input", {
      type: "checkbox",
      checked: draft.texts.includes(path),
      "aria-label": entry.folder ? t("texts.whole", { name: entry.name }) : null,
      onchange: () => choose(path, box.checked, "texts"),
    });
    if (entry.folder) return [box, button(`${entry.name}/`, () => showFolder(path), { class: "link" })];
    return h("label", {}, box, h("span", {}, entry.name), h("span.faint.small.number", {}, size(entry.size, lang)));
  }

  /** @param {"texts" | "uploads"} where the text is */
  function choose(path, isChosen, where) {
    draft[where] = draft[where].filter((one) => one !== path);
    if (isChosen) draft[where].push(path);
    if (!draft.name && isChosen) {
      draft.name = path.split("/").at(-1).replace(/\.[^.]+$/, "");
      name.value = draft.name;
    }
    drawChosen();
    changed();
  }

  function drawChosen() {
    const redraw = { texts: () => showFolder(draft.folder), uploads: showSent };
    const tag = (path, where) => {
      const leave = () => (choose(path, false, where), redraw[where]());
      const label = t("texts.remove", { name: path });
      return h("li.tag", {}, path, button("×", leave, { class: "quiet", "aria-label": label }));
    };
    fill(chosen, ["uploads", "texts"].map((where) => draft[where].map((path) => tag(path, where))));
  }

  // Aozora Bunko ------------------------------------------------------------------------------------------

  const found = h("div.found", { "aria-live": "polite" });

  function aozora() {
    const own = draft.aozora;
    const input = (key, text, attributes = {}) =>
      field(text, h("input", { value: own[key], oninput: (event) => (own[key] = event.target.value), ...attributes }));
    const kinds = [["", t("kana.any")], ["modern", t("kana.modern")], ["old", t("kana.old")]];
    const kana = select(kinds, own.kana, (value) => (own.kana = value));
    return h(
      "details.aozora",
      {},
      h("summary", {}, t("aozora")),
      h(
        "form",
        { onsubmit: search },
        h("p.faint.small", {}, t("aozora.from", { source: options.aozora })),
        h(
          "div.grid",
          {},
          input("author", t("aozora.author"), { placeholder: "夏目漱石" }),
          input("title", t("aozora.title")),
          field(t("aozora.kana"), kana),
        ),
        h("div.actions", {}, h("button", {}, t("aozora.search"))),
      ),
      found,
    );
  }

  function query() {
    const { author, title, kana } = draft.aozora;
    return Object.fromEntries(Object.entries({ author, title, kana }).filter(([, value]) => value.trim()));
  }

  async function search(event) {
    event.preventDefault();
    await work("search", async () => {
      fill(found, h("p.faint", {}, t("aozora.searching")));
      const { count, works } = await postJson(`${API}works`, query(), signal).catch(
        (error) => (fill(found), Promise.reject(error)),
      );
      draft.aozora.name ||= draft.aozora.author.trim() || draft.aozora.title.trim();
      const save = h("input", {
        value: draft.aozora.name,
        required: true,
        oninput: () => (draft.aozora.name = save.value),
      });
      fill(
        found,
        h("p", {}, t("aozora.count", { count })),
        h(
          "ul.works",
          { tabindex: 0 },
          works.map((one) => h("li", {}, one.title, " ", h("span.faint.small", {}, one.people.join("、")))),
        ),
        h("form.save", { onsubmit: fetchWorks }, field(t("aozora.name"), save), h("button", {}, t("aozora.fetch"))),
      );
    });
  }

  async function fetchWorks(event) {
    event.preventDefault();
    await work("fetch", async () => {
      const status = h("p.faint", {}, t("aozora.fetching"));
      found.append(status);
      try {
        const done = await postJson(`${API}fetch`, { ...query(), name: draft.aozora.name.trim() }, signal);
        fill(found, h("p", {}, t("aozora.done", { works: done.works, characters: done.characters, file: done.file })));
        if (done.skipped) found.append(h("p.faint.small", {}, t("aozora.skipped", { count: done.skipped })));
        choose(done.file, true, "uploads");
        await showSent();
      } finally {
        status.remove();
      }
    });
  }

  // The settings ------------------------------------------------------------------------------------------

  const name = h("input", {
    value: draft.name,
    required: true,
    maxlength: 100,
    oninput: () => ((draft.name = name.value), changed()),
  });
  const redraw = () => (drawSettings(), changed());
  const settings = Object.fromEntries(options.settings.map((one) => [one.name, one]));
  const bases = select(
    options.bases.map((one) => [one, one]),
    draft.base,
    (value) => ((draft.base = value), changed()),
  );
  const lengths = select(
    LENGTHS.map((one) => [one, settings[one].label]),
    draft.length,
    (value) => ((draft.length = value), redraw()),
    { "aria-label": t("length") },
  );
  const length = h("div.length");
  const advanced = h("div.grid");

  /** Create what is filled in for a setting. */
  function control({ name, kind, choices, default: start, label }) {
    const keep = (value) => ((draft.values[name] = value), changed());
    if (kind === "choice") {
      const all = start === null ? [["", t("automatic")], ...choices] : choices;
      return select(all, draft.values[name] ?? "", (value) => (keep(value), name === "method" && drawSettings()));
    }
    const shown = typeof start === "number" ? start : name === "minutes" ? 10 : t("automatic");
    const attributes = kind === "texts" ? { rows: 2 } : { inputmode: "decimal", placeholder: String(shown) };
    return h(kind === "texts" ? "textarea" : "input", {
      value: draft.values[name] ?? "",
      oninput: (event) => keep(event.target.value),
      ...(LENGTHS.includes(name) ? { "aria-label": label } : {}),
      ...attributes,
    });
  }

  const settingField = (setting) => field(setting.label, control(setting));

  function drawSettings() {
    fill(length, control(settings[draft.length]), lengths);
    fill(
      advanced,
      options.settings.filter((one) => !FIRST.includes(one.name) && applies(one)).map(settingField),
    );
  }

  // What will run -----------------------------------------------------------------------------------------

  let timer = 0;
  let turn = 0;

  /** Print the command and the settings again, soon. */
  function changed() {
    checked = null;
    drawActions();
    clearTimeout(timer);
    timer = setTimeout(check, PAUSE);
  }

  async function check() {
    const mine = ++turn;
    const hasText = draft.texts.length + draft.uploads.length > 0;
    const missing = !hasText ? t("choose") : !draft.name.trim() ? t("give_name") : "";
    let message = missing;
    let shown = null;
    if (!missing) {
      try {
        shown = await postJson(`${API}settings`, asked(), signal);
      } catch (error) {
        if (signal.aborted) return;
        message = error.message;
      }
    }
    if (mine !== turn) return;
    checked = shown;
    fill(command, shown?.command ?? "");
    fill(yaml, shown?.yaml ?? "");
    shownFile.textContent = shown?.file ?? "";
    will.hidden = !shown;
    problem.hidden = !message;
    problem.classList.toggle("faint", Boolean(missing));
    problem.textContent = message;
    drawActions();
  }

  function drawActions() {
    fill(
      actions,
      button(t(busy === "preview" ? "preview.busy" : "preview"), preview, { disabled: !checked || Boolean(busy) }),
      button(t(busy === "plan" ? "plan.busy" : "plan"), plan, { disabled: !checked || Boolean(busy) }),
      options.bases.length > 1 &&
        button(t(busy === "bases" ? "plan.busy" : "compare"), compare, { disabled: !checked || Boolean(busy) }),
      button(t("start"), start, { class: "primary", disabled: !checked || Boolean(busy) }),
    );
  }

  /** Do something that takes a while, one at a time. */
  async function work(what, act) {
    if (busy) return;
    busy = what;
    drawActions();
    try {
      await act();
    } catch (error) {
      fail(error);
    } finally {
      busy = "";
      drawActions();
    }
  }

  const preview = () =>
    work("preview", async () => {
      const shown = await postJson(`${API}preview`, asked(), signal);
      place("preview", drawPreview(shown, t));
    });
  const plan = () =>
    work("plan", async () => {
      const shown = await postJson(`${API}plan`, asked(), signal);
      place("plan", drawPlan(shown, t));
    });
  /** Plan the run with each base. */
  const compare = () =>
    work("bases", async () => {
      const plans = [];
      for (const base of options.bases) {
        const planned = await postJson(`${API}plan`, { ...asked(), base }, signal).catch((error) => error);
        if (signal.aborted) return;
        plans.push([base, planned]);
        place("bases", drawBases(plans, t));
      }
    });
  const start = () =>
    work("start", async () => {
      const { run } = await postJson(`${API}start`, asked(), signal);
      draft.name = "";
      go("runs", run);
    });

  /** Show a result in place of an earlier one. */
  function place(what, element) {
    element.dataset.result = what;
    results.querySelector(`[data-result="${what}"]`)?.remove();
    results.prepend(element);
    element.scrollIntoView({ block: "nearest" });
  }

  const shownFile = h("span.mono");
  const will = h(
    "div.will",
    { hidden: true },
    h("h3", {}, t("command")),
    command,
    h("h3", {}, t("settings"), " ", shownFile),
    yaml,
  );
  const folders = h("details", {}, h("summary", {}, t("texts.here")), texts);
  const more = h(
    "details",
    { open: draft.isAdvanced, ontoggle: () => (draft.isAdvanced = more.open) },
    h("summary", {}, t("more")),
    advanced,
  );
  root.append(
    h("div.heading", {}, h("h1", {}, t("title"))),
    h(
      "div.columns",
      {},
      h(
        "div.form",
        {},
        h("section.sheet", {}, h("h2", {}, t("texts")), chosen, sent, folders, aozora()),
        h(
          "section.sheet",
          {},
          h("h2", {}, t("run")),
          h("div.grid", {}, field(t("name"), name), h("div.field", {}, h("span", {}, t("length")), length)),
          h("div.grid", {}, field(t("base"), bases), settingField(settings.method)),
          settingField(settings.prompts),
          more,
        ),
      ),
      h(
        "section.sheet.launch",
        {},
        h("h2", {}, t("what")),
        problem,
        will,
        actions,
        h("p.faint.small", {}, t("survives")),
      ),
    ),
    results,
  );
  drawChosen();
  drawSettings();
  drawActions();
  await Promise.all([showFolder(draft.folder), showSent(), check()]);
}

/** @param {string} text */
function linesOf(text) {
  const lines = text.split("\n").map((line) => line.trim());
  return lines.filter(Boolean);
}

function size(bytes, lang) {
  const [unit, divisor] = bytes < 1e6 ? ["kB", 1e3] : ["MB", 1e6]; // Intl writes KB in Japanese
  return `${new Intl.NumberFormat(lang, { maximumFractionDigits: 1 }).format(bytes / divisor)} ${unit}`;
}
