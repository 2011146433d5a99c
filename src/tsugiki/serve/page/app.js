/**
 * The page: its frame, and the views, which are chosen by what follows the # in the address.
 *
 * A view is a module of the folder `views` whose default export is a component. It gets what follows its name in the
 * address, `path`: ["kyoka"] for #adapters/kyoka. While it is shown, `t` and `lang` of messages.js are those of its
 * texts, `messages/<view>.<lang>.json`.
 */

import { fail, frame } from "./api.js";
import { loadMessages, speak, t } from "./messages.js";
import { DialogForm, Field, html, openDialog, Quiet, render } from "./ui.js";
import { useEffect, useErrorBoundary, useRef, useState } from "./ui.js";

/** The views; the texts of the frame have their names by the same keys. */
const VIEWS = ["talk", "adapters", "runs", "train"];

const root = document.documentElement;

/** The frame, and the view that the address names. */
function Page() {
  const [texts, setTexts] = useState(/** @type {[string, import("./messages.js").Translate] | null} */ (null));
  const [address, setAddress] = useState(location.hash);
  const [error, setError] = useState(/** @type {any} */ (null));
  const main = useRef(/** @type {HTMLElement | null} */ (null));
  frame.show = setError;
  const load = async (lang) => {
    root.lang = lang;
    const loaded = await loadMessages("shell", lang);
    frame.unreachable = loaded("unreachable");
    setTexts([lang, loaded]);
  };
  useEffect(() => {
    const moved = () => {
      setError(null);
      document.querySelectorAll("dialog").forEach((dialog) => dialog.close()); // they belong to the view before
      setAddress(location.hash);
      window.scrollTo(0, 0);
      main.current?.focus({ preventScroll: true });
    };
    load(root.lang).catch(fail);
    setAddress(location.hash); // it may have changed since the first drawing
    window.addEventListener("hashchange", moved);
  }, []);
  const [name, ...path] = address.slice(1).split("/").map(decode);
  const view = VIEWS.includes(name) ? name : VIEWS[0];
  if (!texts) return error && html`<${Failure} error=${error} />`;
  const [lang, own] = texts;
  document.title = `${own(view)} · Tsugiki`;
  return html`
    <${Header} ...${{ own, view, lang, load, main }} />
    <main id="main" tabindex="-1" ref=${main}>
      ${error && html`<${Failure} error=${error} close=${() => setError(null)} text=${own("close")} />`}
      <${View} key=${`${view} ${lang}`} ...${{ view, lang, own, path }} />
    </main>
  `;
}

function Header({ own, view, lang, load, main }) {
  const other = lang === "ja" ? "en" : "ja";
  const chooseOther = () => {
    localStorage.setItem("tsugiki.lang", other);
    history.replaceState(null, "", location.pathname + location.hash); // without the language of `tsugiki serve --lang`
    frame.show(null);
    load(other).catch(fail);
  };
  const skip = (event) => (event.preventDefault(), main.current?.focus()); // the link must not become the address
  return html`<header>
    <a class="skip" href="#main" onClick=${skip}>${own("skip")}</a>
    <a class="brand" href="#talk"><img src="/page/icon.svg" alt="" width="22" height="22" />Tsugiki</a>
    <nav aria-label=${own("views")}>
      ${VIEWS.map((one) => html`<a href=${`#${one}`} aria-current=${one === view ? "page" : null}>${own(one)}</a>`)}
    </nav>
    <div class="switches">
      <${Quiet} lang=${other} act=${chooseOther}>${own("language")}<//>
      <${Quiet} aria-label=${own("theme")} title=${own("theme")} act=${switchTheme}>◐<//>
    </div>
  </header>`;
}

function Failure({ error, close, text }) {
  return html`<div class="failure" role="alert">
    <p>${error?.message ?? String(error)}</p>
    ${close && html`<${Quiet} aria-label=${text} act=${close}>×<//>`}
  </div>`;
}

/** A view in one language, as soon as its module and its texts are there. */
function View({ view, lang, own, path }) {
  const [Shown, show] = useState(/** @type {any} */ (null));
  const [problem] = useErrorBoundary(fail);
  useEffect(() => {
    const leaving = new AbortController();
    Promise.all([import(`./views/${view}.js`), loadMessages(view, lang, own)]).then(([module, texts]) => {
      if (leaving.signal.aborted) return;
      speak(lang, texts);
      frame.signal = leaving.signal;
      show(() => module.default);
    }, fail);
    return () => leaving.abort();
  }, []);
  return html`<div class="view" data-view=${view}>${Shown && !problem && html`<${Shown} path=${path} />`}</div>`;
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
  const theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  root.dataset.theme = theme === system ? "" : theme;
  localStorage.setItem("tsugiki.theme", root.dataset.theme);
}

/** @type {Promise<string> | null} the question that is open; all requests wait for one answer */
let asked = null;

/** Ask for the server's key. */
frame.askKey = () => {
  let key = "";
  const keep = (text) => (key = text);
  const content = (close) => html`<${DialogForm} act=${() => close()} yes=${t("key.use")}>
    <p>${t("key.explanation")}</p>
    <${Field} label=${t("key")} type="password" autocomplete="current-password" required set=${keep} />
  <//>`;
  asked ??= openDialog("Tsugiki", content, false).then(() => ((asked = null), key.trim()));
  return asked;
};

render(html`<${Page} />`, document.body);
