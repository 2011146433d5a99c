/**
 * Talk: one prompt, answered by the base and by adapters side by side with the same seed.
 *
 * What was said stays, and answers go on, while other views are shown. Conversations are kept in the browser.
 */

import { getJson } from "../api.js";
import { html, mountOf, useApp, useEffect, useJson, useRef, useState } from "../ui.js";
import { Composer } from "./talk/composer.js";
import { isBusy, path, setSettings, talk, useTalk } from "./talk/conversation.js";
import { chosenAtFirst, knownOf } from "./talk/models.js";
import { TurnCard } from "./talk/turn.js";
import { Votes } from "./talk/votes.js";

function Talk() {
  const { t } = useApp();
  const [said, announce] = useState("");
  const [kept, loadKept, setKept] = useJson("/page/api/votes");
  const known = useModels();
  useTalk();
  const busy = isBusy();
  const wasBusy = useRef(busy);
  useEffect(() => {
    if (busy !== wasBusy.current) announce(busy ? "" : t("finished"));
    wasBusy.current = busy;
  }, [busy]);
  if (!known) return html`<h1 class="unseen">${t("title")}</h1>`;
  const turns = path();
  const turn = (one, index) =>
    html`<${TurnCard} turn=${one} isLast=${index === turns.length - 1} ...${{ announce, voted: loadKept }} />`;
  return html`<h1 class="unseen">${t("title")}</h1>
    <div class=${talk.settings.shaded ? "turns shaded" : "turns"}>
      ${turns.length ? turns.map(turn) : html`<${Welcome} known=${known} />`}
      <${Votes} base=${known.base.name} isOpen=${turns.at(-1)?.hasVoted} ...${{ kept, setKept }} />
    </div>
    <${Composer} known=${known} />
    <p class="unseen" role="status">${said}</p>`;
}

/** Ask what the server has; while it does not answer, what it had stays. */
function useModels() {
  const { lang, path: place, signal, fail } = useApp();
  const [known, setKnown] = useState(/** @type {import("./talk/models.js").Known | null} */ (null));
  useEffect(() => {
    const show = () => {
      if (!talk.known) return;
      setSettings(chosenAtFirst(talk.settings, talk.known, place[0]));
      setKnown(talk.known);
    };
    getJson("/page/api/models", signal)
      .then((answer) => (talk.known = knownOf(answer, lang)), fail)
      .then(show);
  }, [place.join("/")]);
  return known;
}

function Welcome({ known }) {
  const { t } = useApp();
  return html`<div class="welcome">
    <h2>${t("title")}</h2>
    <p>${t("welcome")}</p>
    ${known.models.length === 1 && html`<p class="faint"><a href="#train">${t("no_adapters")}</a></p>`}
  </div>`;
}

export const mount = mountOf(Talk);
