/**
 * Requests to the server: JSON, files, and streams of server-sent events.
 *
 * Each one carries the language, so that errors come in it; the key, if the server has one; and the page's token,
 * without which a POST below /page/api/ is refused. It ends when the view is left, unless it has a signal of its own.
 */

const TOKEN = /** @type {HTMLMetaElement} */ (document.querySelector('meta[name="page-token"]')).content;
const KEY = "tsugiki.key";

/** An error for the reader. @param {string} message @param {string | null} [code] a word for it */
function newError(message, code = null) {
  return Object.assign(new Error(message), { code });
}

/** What app.js sets: what asks for a key, shows an error, and says that the server does not answer. */
export const frame = {
  askKey: async () => "",
  show: (/** @type {unknown} */ _error) => {},
  unreachable: "",
  /** Aborted when the view is left. @type {AbortSignal | undefined} */
  signal: undefined,
};

/** Show an error in one line above the view; an abortion is none. @param {any} error */
export function fail(error) {
  if (error?.name !== "AbortError") frame.show(error);
}

/**
 * Send a request and return the answer, whose status is a success.
 *
 * @param {string} path
 * @param {unknown} [body] undefined: GET; a form is sent by POST as it is, other things as JSON
 * @param {AbortSignal | null} [signal] null: the request goes on when the view is left
 * @param {string} [method]
 * @returns {Promise<Response>}
 * @throws {Error} with the code that the server gives
 */
async function request(path, body, signal = frame.signal, method = body === undefined ? "GET" : "POST") {
  const isForm = body instanceof FormData;
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = new Headers({ "Accept-Language": document.documentElement.lang, "X-Page-Token": TOKEN });
    if (method === "POST" && !isForm) headers.set("Content-Type", "application/json");
    if (key) headers.set("Authorization", `Bearer ${key}`);
    const options = { method, headers, signal, body: isForm ? body : JSON.stringify(body) };
    const response = await fetch(path, options).catch((error) => {
      throw error.name === "AbortError" ? error : newError(frame.unreachable, "unreachable");
    });
    if (response.ok) return response;
    const problem = (await response.json().catch(() => null))?.error;
    if (response.status !== 401) {
      throw newError(problem?.message ?? `${response.status} ${response.statusText}`, problem?.code);
    }
    if (sessionStorage.getItem(KEY) === key) sessionStorage.setItem(KEY, await frame.askKey());
  }
}

/** @param {string} path @param {AbortSignal | null} [signal] @returns {Promise<any>} @throws {Error} */
export async function getJson(path, signal) {
  return (await request(path, undefined, signal)).json();
}

/** @param {string} path @param {unknown} body @param {AbortSignal | null} [signal] @returns {Promise<any>} */
export async function postJson(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/** Delete what an address names. @param {string} path @throws {Error} */
export async function remove(path) {
  await request(path, undefined, undefined, "DELETE");
}

/** @param {string} path @param {unknown} [body] @returns {Promise<Blob>} a file @throws {Error} */
export async function getBlob(path, body) {
  return (await request(path, body)).blob();
}

/**
 * Yield the messages of a stream of server-sent events, parsed as JSON, until it ends.
 *
 * @param {string} path
 * @param {unknown} body sent as JSON
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 * @throws {Error} also for an error within the stream
 */
export async function* stream(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines.filter((one) => one.startsWith("data: ") && one !== "data: [DONE]")) {
      const message = JSON.parse(line.slice("data: ".length));
      if (message.error) throw newError(message.error.message, message.error.code);
      yield message;
    }
  }
}
