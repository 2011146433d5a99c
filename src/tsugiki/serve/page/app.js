/**
 * The page: its frame, and the views, which are chosen by what follows the # in the address.
 *
 * A view is a module of the folder `views` that exports `mount(root, app)`, made of its component by `mountOf` in
 * ui.js. It is called again when the path below the view changes, and with null when the view is left or the language
 * changes; `app.signal` is aborted then, so pass it to requests.
 */

import { hooks } from "./api.js";
import { loadMessages } from "./messages.js";
import { Field, html, openDialog, render } from "./ui.js";
import { useEffect, useErrorBoundary, useLayoutEffect, useRef, useState } from "./ui.js";

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

/** The frame in the chosen language, and the view that the address names. */
function Page() {
  const [lang, setLang] = useState(page.lang);
  const [frame, setFrame] = useState(/** @type {{ t: import("./messages.js").Translate } | null} */ (null));
  const [address, setAddress] = useState(location.hash);
  const [error, setError] = useState(/** @type {any} */ (null));
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  useErrorBoundary(setError);
  useEffect(() => {
    loadMessages("shell", lang).then((t) => {
      hooks.unreachable = t("unreachable");
      hooks.askKey = () => askKey(t);
      setFrame({ t });
    }, setError);
  }, [lang]);
  useEffect(() => {
    const moved = () => {
      setError(null);
      setAddress(location.hash);
      window.scrollTo(0, 0);
      main.current?.focus({ preventScroll: true });
    };
    setAddress(location.hash); // it may have changed since the first drawing
    window.addEventListener("hashchange", moved);
    return () => window.removeEventListener("hashchange", moved);
  }, []);
  const [name, ...path] = address.slice(1).split("/").map(decode);
  const view = VIEWS.includes(name) ? name : VIEWS[0];
  useEffect(() => {
    if (frame) document.title = `${frame.t(view)} · Tsugiki`;
  }, [view, frame]);
  if (!frame) return error && html`<${Failure} error=${error} />`;
  const { t } = frame;
  const chooseLanguage = (other) => {
    localStorage.setItem("tsugiki.lang", other);
    history.replaceState(null, "", location.pathname + location.hash); // without the language of `tsugiki serve --lang`
    page.lang = other;
    setError(null);
    setLang(other);
  };
  const skip = (event) => {
    event.preventDefault(); // the link to the content must not become the address
    main.current?.focus();
  };
  return html`
    <${Header} ...${{ t, view, chooseLanguage, skip, other: lang === "ja" ? "en" : "ja" }} />
    <main id="main" tabindex="-1" ref=${main}>
      ${error && html`<${Failure} error=${error} close=${() => setError(null)} text=${t("close")} />`}
      <${View} key=${`${view} ${lang}`} ...${{ view, lang, path, fail: setError }} />
    </main>
  `;
}

function Header({ t, view, chooseLanguage, skip, other }) {
  return html`<header>
    <a class="skip" href="#main" onClick=${skip}>${t("skip")}</a>
    <a class="brand" href="#talk"><img src="/page/icon.svg" alt="" width="22" height="22" />Tsugiki</a>
    <nav aria-label=${t("views")}>
      ${VIEWS.map((one) => html`<a href=${`#${one}`} aria-current=${one === view ? "page" : null}>${t(one)}</a>`)}
    </nav>
    <div class="switches">
      <button type="button" class="quiet" lang=${other} onClick=${() => chooseLanguage(other)}>
        ${t("language")}
      </button>
      <button type="button" class="quiet" aria-label=${t("theme")} title=${t("theme")} onClick=${switchTheme}>◐</button>
    </div>
  </header>`;
}

function Failure({ error, close, text }) {
  return html`<div class="failure" role="alert">
    <p>${error?.message ?? String(error)}</p>
    ${close && html`<button type="button" class="quiet" aria-label=${text} onClick=${close}>×</button>`}
  </div>`;
}

/** A view in one language: its module and its texts are loaded, and it draws itself into an element of its own. */
function View({ view, lang, path, fail }) {
  const frame = useRef(/** @type {HTMLElement | null} */ (null));
  const [loaded, setLoaded] = useState(/** @type {any} */ (null));
  useEffect(() => {
    const controller = new AbortController();
    Promise.all([import(`./views/${view}.js`), loadMessages(view, lang)]).then(
      ([module, t]) => setLoaded({ module, t, controller, root: rootOf(view) }),
      failing(controller.signal, fail),
    );
    return () => controller.abort();
  }, []);
  useLayoutEffect(() => { // not an effect, in which Preact loses the effects of what is drawn
    if (!loaded || loaded.controller.signal.aborted) return;
    const { module, t, root } = loaded;
    const { signal } = loaded.controller;
    if (root.parentNode !== frame.current) frame.current?.replaceChildren(root);
    module.mount(root, { t, lang, path, go, signal, fail: failing(signal, fail) });
  }, [loaded, path.join("/")]);
  useEffect(() => () => loaded?.module.mount(loaded.root, null), [loaded]);
  return html`<div class="frame" ref=${frame}></div>`;
}

/** Create the element that a view draws itself into. */
function rootOf(view) {
  const root = document.createElement("div");
  root.className = "view";
  root.dataset.view = view;
  return root;
}

/** Return what shows an error until a signal is aborted; an abortion is none. */
function failing(signal, show) {
  return (error) => {
    if (!signal.aborted && error?.name !== "AbortError") show(error);
  };
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
function askKey(t) {
  let key = "";
  const keep = (event) => (key = event.target.value);
  asked ??= openDialog(
    "Tsugiki",
    (close) => html`<form onSubmit=${(event) => (event.preventDefault(), close())}>
      <p>${t("key.explanation")}</p>
      <${Field} label=${t("key")}>
        <input type="password" autocomplete="current-password" required onInput=${keep} />
      <//>
      <div class="actions"><button class="primary">${t("key.use")}</button></div>
    </form>`,
    false,
  ).then(() => ((asked = null), key.trim()));
  return asked;
}

render(html`<${Page} />`, document.body);
