/**
 * Votes for answers whose models were hidden. How often a model won is kept in the browser, for each base; the pairs of
 * answers are kept by the server, so that a run can learn from them.
 */

import { getBlob, postJson } from "../../api.js";
import { Actions, ask, html, openDialog, Quiet, saveFile, t, Table, useReducer } from "../../ui.js";
import { percent } from "./answer.js";
import { keep, messagesFor, textOf } from "./conversation.js";
import { labelOf } from "./models.js";

const STORED = "tsugiki.votes";
const Z = 1.96; // of a 95 % interval

/** @typedef {{ won: number, lost: number, tied: number }} Tally */

/**
 * Count a vote, and let the server keep its pairs.
 *
 * @param {string} base
 * @param {import("./conversation.js").Turn} turn
 * @param {number | null} best the place of the best answer; null: there is no difference
 */
export async function vote(base, turn, best) {
  const answers = turn.answers.map((answer) => ({ model: labelOf(answer.model), text: textOf(answer) }));
  turn.hasVoted = true;
  change(base, (own) => {
    for (const model of new Set(answers.map((one) => one.model))) {
      const tally = (own[model] ??= { won: 0, lost: 0, tied: 0 });
      tally[best === null ? "tied" : model === answers[best].model ? "won" : "lost"] += 1;
    }
  });
  keep();
  if (best === null) return;
  const prompt = turn.isChat ? messagesFor(turn) : turn.prompt;
  turn.pairs = await postJson("/page/api/vote", { prompt, answers, best }, null);
  keep();
}

/** @returns {Record<string, Record<string, Tally>>} by base and model */
function stored() {
  return JSON.parse(localStorage.getItem(STORED) ?? "{}");
}

/** @param {string} base @param {(own: Record<string, Tally>) => void} [act] changes its tallies; without, they go */
function change(base, act) {
  const all = stored();
  if (act) act((all[base] ??= {}));
  else delete all[base];
  localStorage.setItem(STORED, JSON.stringify(all));
}

/**
 * @param {number} won
 * @param {number} count of votes with a winner, at least 1
 * @returns {[number, number]} Wilson's 95 % interval of the share that is won
 */
export function interval(won, count) {
  const share = won / count;
  const centre = share + Z ** 2 / (2 * count);
  const reach = Z * Math.sqrt((share * (1 - share)) / count + Z ** 2 / (4 * count ** 2));
  const scale = 1 + Z ** 2 / count;
  return [Math.max(0, (centre - reach) / scale), Math.min(1, (centre + reach) / scale)];
}

/** The votes so far, if there are any, and the pairs that they gave. */
export function Votes({ base, isOpen, kept, setKept }) {
  const [, redraw] = useReducer((times) => times + 1, 0);
  const tally = Object.entries(stored()[base] ?? {});
  if (!tally.length && !kept?.pairs && !kept?.damaged) return null;
  const share = ({ won, lost }) => {
    if (won + lost === 0) return "–";
    const [low, high] = interval(won, won + lost).map(percent);
    return t("share_is", { share: percent(won / (won + lost)), low, high });
  };
  const rows = tally.map(([model, one]) => [model, one.won, one.lost, one.tied, share(one)]);
  return html`<details class="votes" open=${isOpen}>
    <summary>${t("votes")}</summary>
    ${tally.length > 0 &&
    html`<${Table} headers=${[t("model"), t("won"), t("lost"), t("tied"), t("share")]} rows=${rows} />
      <${Quiet} act=${() => (change(base), redraw(null))}>${t("forget")}<//>`}
    ${(kept?.pairs > 0 || kept?.damaged) && html`<${Pairs} ...${{ kept, setKept }} />`}
  </details>`;
}

/** The pairs on the server, and what can be done with them. */
function Pairs({ kept, setKept }) {
  const { pairs, offered, few, damaged } = kept;
  const save = async () => saveFile("votes.jsonl", await getBlob("/page/api/votes/file"));
  const removeAll = () => postJson("/page/api/votes/remove", {}).then(setKept);
  const remove = () => ask(t("pairs.remove_all", { count: pairs }), t("pairs.remove"), removeAll);
  const look = () => openDialog(t("pairs.look"), (close) => html`<${PairList} ...${{ kept, close }} />`);
  return html`<div class="pairs">
    <p>${t("pairs.kept", { count: pairs })} ${pairs < offered && t("pairs.wait", { count: offered })} ${damaged}</p>
    <${Actions} kind="quiet" of=${[
      [true, t("pairs.look"), look],
      [true, t("pairs.save"), save],
      [true, t("pairs.remove"), remove],
    ]}>
      ${pairs >= offered && html`<a class="learn" href="#train/votes">${t("pairs.learn")}</a>`}
    <//>
    ${pairs >= offered && pairs < few && html`<p class="small faint">${t("pairs.few", { count: few })}</p>`}
  </div>`;
}

/** The last pairs, each with its prompt and both answers. */
function PairList({ kept: { last, pairs }, close }) {
  const text = (part) => (typeof part === "string" ? part : (part ?? []).map((one) => one.content).join("\n"));
  const answer = (row, name) => html`<div>
    <dt>${t(`pairs.${name}`)} · ${row.models[name]}</dt><dd dir="auto">${text(row[name])}</dd>
  </div>`;
  const pair = (row) => html`<li>
    ${row.prompt && html`<p class="prompt" dir="auto">${text(row.prompt)}</p>`}
    <dl>${answer(row, "chosen")}${answer(row, "rejected")}</dl>
  </li>`;
  return html`<div class="in-dialog" data-view="talk">
    <h2>${t("pairs.look")}</h2>
    ${last.length < pairs && html`<p class="small faint">${t("pairs.last", { count: last.length })}</p>`}
    <ol class="listed" tabindex="0">${last.map(pair)}</ol>
    <${Actions} of=${[[true, t("close"), () => close(), "primary"]]} />
  </div>`;
}
