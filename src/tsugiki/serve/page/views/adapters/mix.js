/** A mix of adapters: weights, what it writes, and its place in the library. */

import { getJson, postJson, stream } from "../../api.js";
import { button, field, fill, h, select } from "../../dom.js";

const PAUSE = 350; // ms without a change before the mix writes again
const LARGEST = 100; // weight, as the server allows
const MOST = 8; // adapters, as the server allows

/**
 * @param {HTMLElement} root
 * @param {import("../../app.js").App} app
 * @param {import("../adapters.js").Library} library
 * @param {string[]} names adapters that are mixed at first
 */
export async function showMix(root, app, library, names) {
  const { t } = app;
  const usable = library.adapters.filter((one) => !one.broken && one.mixes && !one.other_base);
  const found = names.map((wanted) => usable.find((one) => one.name === wanted)).filter(Boolean);
  const chosen = found.slice(0, MOST);
  const equal = Math.round(100 / Math.max(1, chosen.length)) / 100;
  /** @type {Map<string, number>} */
  const weights = new Map(chosen.map((one) => [one.name, equal]));
  const { base } = await getJson("/page/api/models", app.signal);

  const rows = h("div.weights");
  const prompt = h("textarea", { rows: 2, placeholder: t("prompt.hint") });
  prompt.value = sessionStorage.getItem("tsugiki.mix.prompt") ?? "";
  const seed = h("input", { type: "number", min: 0, max: 2 ** 31, step: 1, value: 1, required: true });
  const length = h("input", { type: "number", min: 1, max: 2000, step: 1, value: 120, required: true });
  const sum = h("h2");
  const text = h("p.text", { "aria-live": "polite", "aria-busy": false });
  const name = h("input", { required: true, maxlength: 100, spellcheck: false });

  let running = new AbortController();
  let timer = 0;
  app.signal.addEventListener("abort", () => {
    clearTimeout(timer);
    running.abort();
  });

  const write = async () => {
    running.abort();
    running = new AbortController();
    const { signal } = running;
    const mix = Object.fromEntries(weights);
    if (!weights.size || !seed.reportValidity() || !length.reportValidity()) return;
    const chats = base.chat || usable.some((one) => one.chat && weights.get(one.name));
    const asked = {
      model: library.base,
      adapters: mix,
      seed: seed.valueAsNumber,
      max_tokens: length.valueAsNumber,
      temperature: 0.8,
      stream: true,
    };
    const [path, body] = chats
      ? ["/v1/chat/completions", { ...asked, messages: [{ role: "user", content: prompt.value }] }]
      : ["/v1/completions", { ...asked, prompt: prompt.value }];
    text.setAttribute("aria-busy", "true");
    let written = "";
    try {
      for await (const message of stream(path, body, signal)) {
        const choice = message.choices[0];
        written += choice?.text ?? choice?.delta?.content ?? "";
        if (written) fill(text, !chats && h("span.faint", {}, prompt.value), written);
      }
      if (!written) fill(text, h("span.faint", {}, t("nothing")));
    } catch (error) {
      if (!signal.aborted) app.fail(error);
    } finally {
      if (!signal.aborted) text.setAttribute("aria-busy", "false");
    }
  };
  const soon = () => {
    sessionStorage.setItem("tsugiki.mix.prompt", prompt.value);
    fill(sum, sumText(weights));
    clearTimeout(timer);
    timer = setTimeout(write, PAUSE);
  };

  const drawRows = () => {
    const others = usable.filter((one) => !weights.has(one.name));
    fill(rows, ...[...weights.keys()].map((key) => weightRow(app, key, weights, soon, drawRows)));
    if (others.length && weights.size < MOST) {
      const listed = [["", t("add")], ...others.map((one) => [one.name, one.name])];
      const add = select(listed, "", (chosen) => (weights.set(chosen, 0.5), drawRows()), { "aria-label": t("add") });
      rows.append(h("div.add", {}, add));
    }
    soon();
  };

  const save = async (event) => {
    event.preventDefault();
    try {
      const saved = await postJson(
        "/page/api/save-mix",
        { adapters: Object.fromEntries([...weights].filter(([, weight]) => weight)), name: name.value },
        app.signal,
      );
      app.go("adapters", saved.name);
    } catch (error) {
      app.fail(error);
    }
  };

  for (const input of [prompt, seed, length]) input.addEventListener("input", soon);
  root.append(
    h("p.back", {}, h("a", { href: "#adapters" }, t("back"))),
    h("h1", {}, t("mix")),
    h("p.faint.lead", {}, t("mix.explained")),
    h(
      "div.mixing",
      {},
      h(
        "div.column",
        {},
        rows,
        field(t("prompt"), prompt),
        h("div.numbers", {}, field(t("seed"), seed), field(t("length"), length)),
      ),
      h(
        "div.column",
        {},
        h(
          "div.sheet.written",
          {},
          sum,
          text,
          h(
            "div.actions",
            {},
            button(t("again"), () => {
              seed.value = String((seed.valueAsNumber || 0) + 1);
              soon();
            }),
          ),
        ),
        h(
          "form.save",
          { onsubmit: save },
          field(t("save.name"), name),
          h("button", {}, t("save")),
          h("p.faint.small", {}, t("save.explained")),
        ),
      ),
    ),
  );
  drawRows();
}

/**
 * @param {import("../../app.js").App} app
 * @param {string} name
 * @param {Map<string, number>} weights changed by the row
 * @param {() => void} changed a weight
 * @param {() => void} removed the row
 */
function weightRow(app, name, weights, changed, removed) {
  const { t } = app;
  const label = t("weight", { name });
  const slider = h("input", { type: "range", min: -1, max: 2, step: 0.05, "aria-label": label });
  const number = h("input", { type: "number", min: -LARGEST, max: LARGEST, step: "any", "aria-label": label });
  slider.value = number.value = String(weights.get(name));
  slider.addEventListener("input", () => {
    number.value = slider.value;
    weights.set(name, slider.valueAsNumber);
    changed();
  });
  number.addEventListener("input", () => {
    if (!number.value || !number.checkValidity()) return;
    slider.value = number.value;
    weights.set(name, number.valueAsNumber);
    changed();
  });
  const remove = () => {
    weights.delete(name);
    removed();
  };
  return h(
    "div.weight",
    {},
    h("a", { href: `#adapters/${encodeURIComponent(name)}` }, name),
    slider,
    number,
    button("×", remove, { class: "quiet", "aria-label": t("leave_out", { name }), title: t("leave_out", { name }) }),
  );
}

/** @param {Map<string, number>} weights */
function sumText(weights) {
  const terms = [...weights].filter(([, weight]) => weight);
  const text = terms.map(([name, weight], index) => {
    const sign = weight < 0 ? (index ? " − " : "−") : index ? " + " : "";
    return `${sign}${Math.abs(weight)} ${name}`;
  });
  return text.join("");
}
