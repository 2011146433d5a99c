/** Votes for answers whose models were hidden. They are kept in the browser, for each base. */

const STORED = "tsugiki.votes";
const Z = 1.96; // of a 95 % interval

/** @typedef {{ won: number, lost: number, tied: number }} Tally */

/**
 * @param {string} base
 * @returns {Record<string, Tally>} by model
 */
export function tallies(base) {
  return stored()[base] ?? {};
}

/**
 * Count a vote.
 *
 * @param {string} base
 * @param {string[]} models those that were compared
 * @param {string | null} best null: there is no difference
 */
export function vote(base, models, best) {
  const all = stored();
  const own = (all[base] ??= {});
  for (const model of new Set(models)) {
    const tally = (own[model] ??= { won: 0, lost: 0, tied: 0 });
    tally[best === null ? "tied" : model === best ? "won" : "lost"] += 1;
  }
  localStorage.setItem(STORED, JSON.stringify(all));
}

/** @param {string} base whose votes are forgotten */
export function forget(base) {
  const all = stored();
  delete all[base];
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

/** @returns {Record<string, Record<string, Tally>>} by base and model */
function stored() {
  return JSON.parse(localStorage.getItem(STORED) ?? "{}");
}
