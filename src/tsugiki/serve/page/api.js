/**
 * Requests to the server: JSON, and streams of server-sent events.
 *
 * Each one carries the language, so that errors come in it; the key, if the server has one; and the page's token,
 * without which the server changes nothing.
 */

const TOKEN = /** @type {HTMLMetaElement} */ (document.querySelector('meta[name="page-token"]')).content;
const KEY = "tsugiki.key";

/** An answer that is an error; its message is for the reader. */
export class ApiError extends Error {
  /**
   * @param {number} status of HTTP; 0: there was no answer
   * @param {string} message what is wrong
   * @param {string | null} code a word for it
   */
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** What app.js adds: how a key is asked for, and what is said when the server does not answer. */
export const hooks = {
  /** @type {() => Promise<string>} */
  askKey: async () => "",
  unreachable: "",
};

/**
 * Send a request and return the answer, whose status is a success.
 *
 * @param {string} path
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 * @throws {ApiError}
 */
async function request(path, options) {
  for (;;) {
    const headers = new Headers(options.headers);
    headers.set("Accept-Language", document.documentElement.lang);
    headers.set("X-Page-Token", TOKEN);
    const key = sessionStorage.getItem(KEY);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, hooks.unreachable, "unreachable");
    }
    if (response.ok) return response;
    const problem = (await response.json().catch(() => null))?.error;
    if (response.status !== 401) {
      const message = problem?.message ?? `${response.status} ${response.statusText}`;
      throw new ApiError(response.status, message, problem?.code);
    }
    if (sessionStorage.getItem(KEY) === key) sessionStorage.setItem(KEY, await hooks.askKey());
  }
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>} the JSON that the server answers
 * @throws {ApiError}
 */
export async function getJson(path, signal) {
  return (await request(path, { signal })).json();
}

/**
 * @param {string} path
 * @param {unknown} body sent as JSON
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>} the JSON that the server answers
 * @throws {ApiError}
 */
export async function postJson(path, body, signal) {
  return (await request(path, post(body, signal))).json();
}

/**
 * @param {string} path
 * @param {Blob} body sent as it is
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>} the JSON that the server answers
 * @throws {ApiError}
 */
export async function putFile(path, body, signal) {
  const headers = { "Content-Type": "application/octet-stream" };
  return (await request(path, { method: "PUT", headers, body, signal })).json();
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<Blob>} a picture or another file
 * @throws {ApiError}
 */
export async function getBlob(path, signal) {
  return (await request(path, { signal })).blob();
}

/**
 * @param {string} path
 * @param {unknown} body sent as JSON
 * @param {AbortSignal} [signal]
 * @returns {Promise<Blob>} the file that the server answers
 * @throws {ApiError}
 */
export async function postBlob(path, body, signal) {
  return (await request(path, post(body, signal))).blob();
}

/**
 * Yield the messages of a stream of server-sent events, parsed as JSON, until it ends or says [DONE].
 *
 * @param {string} path
 * @param {unknown} body sent as JSON by POST; undefined: GET
 * @param {AbortSignal} [signal]
 * @returns {AsyncGenerator<any>}
 * @throws {ApiError} also for an error within the stream
 */
export async function* stream(path, body, signal) {
  const response = await request(path, body === undefined ? { signal } : post(body, signal));
  const reader = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const message = JSON.parse(data);
      if (message.error) throw new ApiError(response.status, message.error.message, message.error.code);
      yield message;
    }
  }
}

/**
 * @param {unknown} body
 * @param {AbortSignal} [signal]
 * @returns {RequestInit}
 */
function post(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}
