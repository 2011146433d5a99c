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
 * @param {{ prompt?: string, messages?: Message[], [field: string]: any }} asked fields of the request, with a text to
 *   continue or a conversation to answer
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{ parts: Part[], reason: string | null }>} `reason` says why the answer has ended
 */
export async function* generate(asked, signal) {
  const isChat = Boolean(asked.messages);
  const logprobs = isChat ? { logprobs: true, top_logprobs: ALTERNATIVES } : { logprobs: ALTERNATIVES };
  const body = { ...asked, ...logprobs, stream: true };
  /** @type {Token[]} */
  let pending = [];
  for await (const { choices: [choice] } of stream(`/v1/${isChat ? "chat/" : ""}completions`, body, signal)) {
    pending.push(...tokensOf(choice.logprobs));
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

/** @param {any} logprobs as a chat has them, or as a completion @returns {Token[]} */
function tokensOf(logprobs) {
  const pairs = (top) => top.map((other) => [other.token, other.logprob]);
  const ofChat = ({ token: text, logprob, top_logprobs: top }) => ({ text, logprob, top: pairs(top) });
  const ofText = (text, index) => ({
    text,
    logprob: logprobs.token_logprobs[index],
    top: Object.entries(logprobs.top_logprobs[index]).sort((a, b) => b[1] - a[1]),
  });
  return logprobs?.content?.map(ofChat) ?? logprobs?.tokens?.map(ofText) ?? [];
}
