/**
 * The page: its frame, and the views, which are chosen by what follows the # in the address.
 *
 * A view is a module of the folder `views` that exports `render(root, app)`, which may be asynchronous. `root` is an
 * empty element. When the view is left, or its path or the language changes, `app.signal` is aborted and `root` is
 * removed; pass the signal to requests and listeners.
 */

import { hooks } from "./api.js";
import { button, field, fill, h } from "./dom.js";
import { loadMessages } from "./messages.js";

/**
 * What a view gets.
 *
 * @typedef {object} App
 * @property {import("./messages.js").Translate} t texts of the view, from `messages/<view>.<lang>.json`
 * @property {string} lang "en" or "ja"
 * @property {string[]} path what follows the view's name in the address: ["kyoka"] for #adapters/kyoka
 * @property {AbortSignal} signal aborted when the view is left
 * @property {(...path: string[]) => void} go show a view: go("adapters", "kyoka")
 * @property {(error: unknown) => void} fail show an error in one line above the view; an abortion is none
 */

/** The views; the texts of the frame have their names by the same keys. */
const VIEWS = ["talk", "adapters", "runs", "train"];

const page = document.documentElement;
const main = h("main", { id: "main", tabindex: -1 });
const header = h("header");
/** @type {import("./messages.js").Translate} */
let t;
/** The view that is shown. */
let shown = new AbortController();

/** Draw the frame in the chosen language, and the view in it. */
async function draw() {
  t = await loadMessages("shell", page.lang);
  hooks.unreachable = t("unreachable");
  const other = page.lang === "ja" ? "en" : "ja";
  fill(
    header,
    h("a.skip", { href: "#main", onclick: skip }, t("skip")),
    h("a.brand", { href: "#talk" }, h("img", { src: "/page/icon.svg", alt: "", width: 22, height: 22 }), "Tsugiki"),
    h("nav", { "aria-label": t("views") }, ...VIEWS.map((name) => h("a", { href: `#${name}` }, t(name)))),
    h(
      "div.switches",
      {},
      button(t("language"), () => chooseLanguage(other), { class: "quiet", lang: other }),
      button("◐", switchTheme, { class: "quiet", "aria-label": t("theme"), title: t("theme") }),
    ),
  );
  await show(false);
}

/**
 * Show the view that the address names.
 *
 * @param {boolean} moved whether the reader came from another view; the focus then goes to the new one
 */
async function show(moved) {
  const [name, ...path] = location.hash.slice(1).split("/").map(decode);
  const view = VIEWS.includes(name) ? name : VIEWS[0];
  shown.abort();
  const controller = new AbortController();
  shown = controller;
  for (const link of header.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${t(view)} · Tsugiki`;
  const root = h("div.view", { dataset: { view } });
  fill(main, root);
  window.scrollTo(0, 0);
  if (moved) main.focus({ preventScroll: true });
  /** @param {unknown} error */
  const fail = (error) => {
    if (!controller.signal.aborted && error?.name !== "AbortError") showError(error);
  };
  try {
    const [module, texts] = await Promise.all([import(`./views/${view}.js`), loadMessages(view, page.lang)]);
    if (controller.signal.aborted) return;
    await module.render(root, { t: texts, lang: page.lang, path, signal: controller.signal, go, fail });
  } catch (error) {
    fail(error);
  }
}

/** @param {unknown} error shown above the view, in place of an earlier one */
function showError(error) {
  main.querySelector(".failure")?.remove();
  const close = button("×", () => line.remove(), { class: "quiet", "aria-label": t("close") });
  const line = h("div.failure", { role: "alert" }, h("p", {}, error?.message ?? String(error)), close);
  main.prepend(line);
}

/** @param {...string} path a view and what is below it */
function go(...path) {
  location.hash = path.map(encodeURIComponent).join("/");
}

/** @param {string} part of the address; one that is not valid stays as it is */
function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** @param {Event} event the link to the content, which must not become the address */
function skip(event) {
  event.preventDefault();
  main.focus();
}

/** @param {string} lang "en" or "ja" */
function chooseLanguage(lang) {
  localStorage.setItem("tsugiki.lang", lang);
  history.replaceState(null, "", location.pathname + location.hash); // without the language of `tsugiki serve --lang`
  page.lang = lang;
  draw();
}

/** Change between light and dark. What the system has anyway is not kept. */
function switchTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const theme = (page.dataset.theme ?? system) === "dark" ? "light" : "dark";
  if (theme === system) {
    localStorage.removeItem("tsugiki.theme");
    delete page.dataset.theme;
  } else {
    localStorage.setItem("tsugiki.theme", theme);
    page.dataset.theme = theme;
  }
}

/** @type {Promise<string> | null} the question that is open; all requests wait for one answer */
let asked = null;

/** Ask for the server's key. */
hooks.askKey = () => {
  asked ??= new Promise((resolve) => {
    const input = h("input", { type: "password", autocomplete: "current-password", required: true });
    const form = h(
      "form",
      { method: "dialog" },
      h("p", {}, t("key.explanation")),
      field(t("key"), input),
      h("div.actions", {}, h("button.primary", {}, t("key.use"))),
    );
    const dialog = h("dialog", { oncancel: (event) => event.preventDefault(), onclose: () => answer() }, form);
    const answer = () => {
      dialog.remove();
      asked = null;
      resolve(input.value.trim());
    };
    document.body.append(dialog);
    dialog.showModal();
  });
  return asked;
};

window.addEventListener("hashchange", () => {
  if (t) show(true); // the first drawing reads the address when it has the texts
});
document.body.prepend(header, main);
draw();
