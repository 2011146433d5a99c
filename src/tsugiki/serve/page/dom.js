/**
 * Elements. Texts become text nodes and never markup, so that what a model writes cannot act.
 */

/** @typedef {Node | string | number | null | undefined | false | Child[]} Child */

/**
 * Create an element.
 *
 * @param {string} tag its name, with classes after dots: "p.note"
 * @param {Record<string, any>} [attributes] `on…` are listeners; booleans set or leave out an attribute; `dataset`
 *   is an object; null and undefined are left out
 * @param {...Child} children texts and nodes; null, undefined and false are left out
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "dataset") Object.assign(element.dataset, value);
    else if (key === "value") element.value = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

/**
 * Replace what an element holds.
 *
 * @param {Element} parent
 * @param {...Child} children as for `h`
 */
export function fill(parent, ...children) {
  parent.replaceChildren(...nodes(children));
}

/**
 * @param {Child[]} children
 * @returns {(Node | string)[]}
 */
function nodes(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/**
 * Create a button.
 *
 * @param {string} text what it says
 * @param {(event: Event) => void} act what it does
 * @param {Record<string, any>} [attributes] as for `h`
 */
export function button(text, act, attributes = {}) {
  return h("button", { type: "button", onclick: act, ...attributes }, text);
}

/**
 * Create a labelled field of a form.
 *
 * @param {string} text the label
 * @param {HTMLElement} control an input, a select or a textarea
 */
export function field(text, control) {
  return h("label.field", {}, h("span", {}, text), control);
}

/**
 * Create a list to choose from.
 *
 * @param {[string, string][]} options the value and the text of each
 * @param {string} chosen value
 * @param {(value: string) => void} act what is done with another one
 * @param {Record<string, any>} [attributes] as for `h`
 */
export function select(options, chosen, act, attributes = {}) {
  const draw = ([value, text]) => h("option", { value, selected: value === chosen }, text);
  const list = h("select", { onchange: () => act(list.value), ...attributes }, options.map(draw));
  return list;
}

/**
 * Ask for a name; what is wrong with it is shown in the question.
 *
 * @param {string} label
 * @param {string} value proposed
 * @param {string} yes what the button says that does it
 * @param {string} no what the button says that does not
 * @param {(name: string) => Promise<void>} act what is done with the name
 */
export function askName(label, value, yes, no, act) {
  const input = h("input", { value, required: true, maxlength: 100, spellcheck: false });
  const problem = h("p.broken", { role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    try {
      await act(input.value);
      dialog.close();
    } catch (error) {
      fill(problem, error.message);
    }
  };
  const dialog = h(
    "dialog",
    { "aria-label": yes, onclose: () => dialog.remove() },
    h(
      "form",
      { onsubmit: submit },
      field(label, input),
      problem,
      h("div.actions", {}, button(no, () => dialog.close(), { class: "quiet" }), h("button.primary", {}, yes)),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  input.select();
}

/**
 * Let the browser save a file.
 *
 * @param {string} name
 * @param {Blob} content
 */
export function saveFile(name, content) {
  const url = URL.createObjectURL(content);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * @param {{headers: string[], rows: Child[][]}} content
 * @returns {HTMLElement} a table that can be scrolled, also by keyboard
 */
export function table({ headers, rows }) {
  const heads = headers.map((text) => (text ? h("th", { scope: "col" }, text) : h("td")));
  return h(
    "div.scroll",
    { tabindex: 0 },
    h(
      "table.data",
      {},
      h("thead", {}, h("tr", {}, heads)),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((text) => h("td", {}, text))))),
    ),
  );
}

/**
 * Ask a question and wait for the answer.
 *
 * @param {string} question
 * @param {string} yes what the button says that does it
 * @param {string} no what the button says that does not
 * @returns {Promise<boolean>}
 */
export function ask(question, yes, no) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-label": question, onclose: () => done() },
      h("p", {}, question),
      h(
        "div.actions",
        {},
        button(no, () => dialog.close(), { class: "quiet", autofocus: true }),
        button(yes, () => dialog.close("yes"), { class: "primary" }),
      ),
    );
    const done = () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    };
    document.body.append(dialog);
    dialog.showModal();
  });
}
