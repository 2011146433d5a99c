/** One answer of one model, as it comes. */

import { stream } from "../../api.js";

const ALTERNATIVES = 5; // tokens for which probabilities are asked

/**
 * @typedef {object} Token
 * @property {string} text for a part of a character, its name in the vocabulary
 * @property {number} logprob natural logarithm of its probability
 * @property {[string, number][]} top the most probable tokens at this place, with theirs
 */

/**
 * @typedef {object} Part a piece of text, and the tokens that it came from: one, or several that are one character
 * @property {string} text
 * @property {Token[]} tokens
 */

/** @typedef {{ role: string, content: string }} Message */

/**
 * Yield the parts of an answer.
 *
 * @param {object} model fields of the request that choose it
 * @param {string | Message[]} prompt a text that is continued, or a conversation that is answered
 * @param {object} sampling fields of the request: temperature, seed, …
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{ parts: Part[], reason: string | null }>} `reason` says why the answer has ended
 * @throws {import("../../api.js").ApiError}
 */
export async function* generate(model, prompt, sampling, signal) {
  const isChat = typeof prompt !== "string";
  const asked = isChat
    ? { messages: prompt, logprobs: true, top_logprobs: ALTERNATIVES }
    : { prompt, logprobs: ALTERNATIVES };
  const body = { ...model, stream: true, ...sampling, ...asked };
  /** @type {Token[]} */
  let pending = [];
  for await (const chunk of stream(`/v1/${isChat ? "chat/" : ""}completions`, body, signal)) {
    const choice = chunk.choices[0];
    pending.push(...(isChat ? chatTokens : completionTokens)(choice.logprobs));
    const text = (isChat ? choice.delta.content : choice.text) ?? "";
    const parts = text ? split(text, pending) : [];
    if (text) pending = [];
    yield { parts, reason: choice.finish_reason };
  }
}

/**
 * Divide a text among its tokens. Where their texts do not make up the text, because a character has several tokens, it
 * stays whole.
 *
 * @param {string} text
 * @param {Token[]} tokens those since the last text; at the end there may be more, such as that of the end
 * @returns {Part[]}
 */
export function split(text, tokens) {
  if (!tokens.map((token) => token.text).join("").startsWith(text)) return [{ text, tokens }];
  const parts = [];
  for (let start = 0, index = 0; start < text.length; index++) {
    const end = start + tokens[index].text.length;
    parts.push({ text: text.slice(start, end), tokens: [tokens[index]] });
    start = end;
  }
  return parts;
}

/**
 * @param {any} logprobs as a completion has them
 * @returns {Token[]}
 */
function completionTokens(logprobs) {
  return (logprobs?.tokens ?? []).map((text, index) => ({
    text,
    logprob: logprobs.token_logprobs[index],
    top: Object.entries(logprobs.top_logprobs[index]).sort((a, b) => b[1] - a[1]),
  }));
}

/**
 * @param {any} logprobs as a chat has them
 * @returns {Token[]}
 */
function chatTokens(logprobs) {
  return (logprobs?.content ?? []).map((one) => ({
    text: one.token,
    logprob: one.logprob,
    top: one.top_logprobs.map((other) => [other.token, other.logprob]),
  }));
}
