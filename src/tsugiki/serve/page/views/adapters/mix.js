/** A mix of adapters: weights, what it writes, and its place in the library. */

import { postJson, stream } from "../../api.js";
import { Field, html, Select, useApp, useEffect, useJson, useRef, useState, useWork } from "../../ui.js";

/** @typedef {[string, number][]} Weights names of adapters and the factors on their updates */
/** @typedef {{ prompt: string, seed: string, length: string }} Wanted */

const PAUSE = 350; // ms without a change before the mix writes again
const LARGEST = 100; // weight, as the server allows
const MOST = 8; // adapters, as the server allows
const KEPT = "tsugiki.mix.prompt";

/** @param {{ library: import("../adapters.js").Library, names: string[] }} props `names` are mixed at first */
export function Mix({ library, names }) {
  const { t } = useApp();
  const [models] = useJson("/page/api/models");
  const usable = library.adapters.filter((one) => !one.broken && one.mixes && !one.other_base);
  const [weights, setWeights] = useState(() => {
    const chosen = names.filter((name) => usable.some((one) => one.name === name)).slice(0, MOST);
    const equal = Math.round(100 / Math.max(1, chosen.length)) / 100;
    return /** @type {Weights} */ (chosen.map((name) => [name, equal]));
  });
  const [wanted, setWanted] = useState({ prompt: sessionStorage.getItem(KEPT) ?? "", seed: "1", length: "120" });
  if (!models) return null;
  const chats = models.base.chat || usable.some((one) => one.chat && Object.fromEntries(weights)[one.name]);
  const change = (more) => setWanted({ ...wanted, ...more });
  const whole = (key, text, min, max) => html`<${Field} label=${text}>
    <input type="number" required ...${{ min, max }} value=${wanted[key]}
      onInput=${(event) => event.target.reportValidity() && change({ [key]: event.target.value })} />
  <//>`;
  const write = (event) => {
    sessionStorage.setItem(KEPT, event.target.value);
    change({ prompt: event.target.value });
  };
  const texts = { base: library.base, weights, wanted, chats };
  return html`
    <p class="back"><a href="#adapters">${t("back")}</a></p>
    <h1>${t("mix")}</h1>
    <p class="faint lead">${t("mix.explained")}</p>
    <div class="mixing">
      <div class="column">
        <${Rows} ...${{ usable, weights, setWeights }} />
        <${Field} label=${t("prompt")}>
          <textarea rows="2" placeholder=${t("prompt.hint")} value=${wanted.prompt} onInput=${write}></textarea>
        <//>
        <div class="numbers">${whole("seed", t("seed"), 0, 2 ** 31)}${whole("length", t("length"), 1, 2000)}</div>
      </div>
      <div class="column">
        <${Written} ...${texts} another=${() => change({ seed: String(Number(wanted.seed) + 1) })} />
        <${Save} weights=${weights} />
      </div>
    </div>
  `;
}

/** The weights. */
function Rows({ usable, weights, setWeights }) {
  const { t } = useApp();
  const others = usable.map((one) => one.name).filter((name) => !weights.some(([used]) => used === name));
  const set = (name, weight) => setWeights(weights.map((one) => (one[0] === name ? [name, weight] : one)));
  const without = (name) => setWeights(weights.filter((one) => one[0] !== name));
  return html`<div class="weights">
    ${weights.map(([name, weight]) => {
      const label = t("weight", { name });
      const leave = t("leave_out", { name });
      const onInput = ({ target }) => target.value && target.checkValidity() && set(name, target.valueAsNumber);
      return html`<div class="weight" key=${name}>
        <a href=${`#adapters/${encodeURIComponent(name)}`}>${name}</a>
        <input type="range" min="-1" max="2" step="0.05" aria-label=${label} value=${weight} onInput=${onInput} />
        <input type="number" min=${-LARGEST} max=${LARGEST} step="any" aria-label=${label} value=${weight}
          onInput=${onInput} />
        <button type="button" class="quiet" aria-label=${leave} title=${leave} onClick=${() => without(name)}>×</button>
      </div>`;
    })}
    ${others.length > 0 &&
    weights.length < MOST &&
    html`<div class="add">
      <${Select} key=${others.length} aria-label=${t("add")} value=""
        options=${[["", t("add")], ...others.map((name) => [name, name])]}
        onChoose=${(name) => setWeights([...weights, [name, 0.5]])} />
    </div>`}
  </div>`;
}

/**
 * What the mix writes, again after each change.
 *
 * @param {{ base: string, weights: Weights, wanted: Wanted, chats: boolean, another: () => void }} props
 */
function Written({ base, weights, wanted, chats, another }) {
  const app = useApp();
  const { t } = app;
  const [text, setText] = useState(/** @type {string | null} */ (null));
  const [isBusy, setBusy] = useState(false);
  const shown = useRef(""); // the prompt of the text
  const asked = {
    model: base,
    adapters: Object.fromEntries(weights),
    seed: Number(wanted.seed),
    max_tokens: Number(wanted.length),
    temperature: 0.8,
    stream: true,
  };
  const [path, body] = chats
    ? ["/v1/chat/completions", { ...asked, messages: [{ role: "user", content: wanted.prompt }] }]
    : ["/v1/completions", { ...asked, prompt: wanted.prompt }];
  useEffect(() => {
    const controller = new AbortController();
    const signal = AbortSignal.any([app.signal, controller.signal]);
    const write = async () => {
      setBusy(true);
      let written = "";
      try {
        for await (const message of stream(path, body, signal)) {
          const choice = message.choices[0];
          written += choice?.text ?? choice?.delta?.content ?? "";
          shown.current = chats ? "" : wanted.prompt;
          if (written) setText(written);
        }
        setText(written);
      } catch (error) {
        if (!signal.aborted) app.fail(error);
      } finally {
        if (!signal.aborted) setBusy(false);
      }
    };
    const timer = weights.length ? setTimeout(write, PAUSE) : 0;
    return () => (clearTimeout(timer), controller.abort());
  }, [path, JSON.stringify(body)]);
  return html`<div class="sheet written">
    <h2>${sumText(weights)}</h2>
    <p class="text" aria-live="polite" aria-busy=${String(isBusy)}>
      ${text === "" && html`<span class="faint">${t("nothing")}</span>`}
      ${text && html`<span class="faint">${shown.current}</span>${text}`}
    </p>
    <div class="actions"><button type="button" onClick=${another}>${t("again")}</button></div>
  </div>`;
}

/** @param {{ weights: Weights }} props */
function Save({ weights }) {
  const { t, go, signal } = useApp();
  const [name, setName] = useState("");
  const [busy, work] = useWork();
  const save = (event) => {
    event.preventDefault();
    const adapters = Object.fromEntries(weights.filter(([, weight]) => weight));
    return work("save", async () => {
      const saved = await postJson("/page/api/save-mix", { adapters, name }, signal);
      go("adapters", saved.name);
    });
  };
  return html`<form class="save" onSubmit=${save}>
    <${Field} label=${t("save.name")}>
      <input required maxlength="100" spellcheck=${false} value=${name}
        onInput=${(event) => setName(event.target.value)} />
    <//>
    <button disabled=${Boolean(busy)}>${t("save")}</button>
    <p class="faint small">${t("save.explained")}</p>
  </form>`;
}

/** @param {Weights} weights */
function sumText(weights) {
  const terms = weights.filter(([, weight]) => weight);
  const text = terms.map(([name, weight], index) => {
    const sign = weight < 0 ? (index ? " − " : "−") : index ? " + " : "";
    return `${sign}${Math.abs(weight)} ${name}`;
  });
  return text.join("");
}
