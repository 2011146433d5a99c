/**
 * Curves over steps as an SVG.
 *
 * Colours come from the style sheet, so that they follow light and dark. The figures at a step are read with the
 * pointer, or with the arrow keys.
 */

import { html, useApp, useEffect, useMemo, useRef, useState } from "./ui.js";

/** @typedef {[number, number] | [number, number, number, number]} Point step, figure, and the ends of an interval */
/** @typedef {{ name: string, colour: number, faint: boolean, points: Point[] }} Series */
/** @typedef {{ caption: string, series: Series[], kept: [number, string] | null }} Curves */

const HEIGHT = 280;
const LEFT = 46;
const RIGHT = 14;
const TOP = 14;
const BOTTOM = 28;
const MARKED = 24; // lines with more points have no dots

/** @param {{ curves: Curves, keys: string }} props `keys` says that the arrow keys read the figures */
export function Chart({ curves, keys }) {
  const { caption, series } = curves;
  const { lang } = useApp();
  const plot = useRef(/** @type {HTMLElement | null} */ (null));
  const [width, setWidth] = useState(640);
  const [cursor, setCursor] = useState(/** @type {number | null} */ (null));
  const drawn = JSON.stringify(curves);
  const scale = useMemo(() => newScale(series, width), [drawn, width]);
  const image = useMemo(() => scale && html`<${Image} ...${{ curves, scale, width, lang }} />`, [drawn, width, lang]);
  useEffect(() => {
    const box = /** @type {HTMLElement} */ (plot.current);
    const observer = new ResizeObserver(() => setWidth(Math.max(240, box.clientWidth)));
    observer.observe(box);
    return () => observer.disconnect();
  }, []);
  const read = cursor === null || !scale ? null : figuresAt(series, cursor, scale, lang);
  const leave = () => setCursor(null);
  const point = (event) => {
    const left = event.currentTarget.getBoundingClientRect().left;
    if (scale) setCursor(scale.step(event.clientX - left));
  };
  const onKey = (event) => {
    const next = stepAfter(series, cursor, event.key);
    if (next === null) return;
    event.preventDefault();
    setCursor(next);
  };
  return html`<figure class="sheet chart">
    <h3>${caption}</h3>
    <div class="plot" tabindex="0" role="group" aria-label=${`${caption}; ${keys}`} ref=${plot}
      onPointerMove=${point} onPointerLeave=${leave} onBlur=${leave} onKeyDown=${onKey}>
      <svg viewBox=${`0 0 ${width} ${HEIGHT}`} width=${width} height=${HEIGHT} aria-hidden="true">
        ${image}
        ${read && html`<line class="cursor" y1=${TOP} y2=${HEIGHT - BOTTOM} ...${across(read.x)} />`}
      </svg>
    </div>
    <figcaption>
      <ul class="legend">
        ${series
          .filter((one) => !one.faint)
          .map((one) => html`<li class=${`s${one.colour + 1}`}><i></i>${one.name}</li>`)}
      </ul>
      <p class="readout" aria-live="polite">${read?.text}</p>
    </figcaption>
  </figure>`;
}

/** The figures at a step, as text; those of the points that are nearest to it. */
function figuresAt(series, step, scale, lang) {
  const figure = new Intl.NumberFormat(lang, { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
  const near = series.map((one) => [one, nearest(one.points, step)]);
  const at = near.reduce((best, [, p]) => (Math.abs(p[0] - step) < Math.abs(best - step) ? p[0] : best), near[0][1][0]);
  const texts = near.filter(([, p]) => p[0] === at).map(([one, p]) => `${one.name} ${figure.format(p[1])}`);
  return { x: scale.x(at), text: `${new Intl.NumberFormat(lang).format(at)}: ${texts.join(" · ")}` };
}

/** The step that an arrow key leads to; null for another key. */
function stepAfter(series, cursor, key) {
  if (key !== "ArrowLeft" && key !== "ArrowRight") return null;
  const steps = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
  const at = cursor === null ? steps.length : steps.findIndex((step) => step >= cursor);
  return steps[Math.min(steps.length - 1, Math.max(0, at + (key === "ArrowRight" ? 1 : -1)))] ?? null;
}

function newScale(series, width) {
  const points = series.flatMap((one) => one.points);
  if (!points.length) return null;
  const lastStep = Math.max(...points.map(([step]) => step), 1);
  const heights = points.flatMap(([, ...figures]) => figures);
  const y = ticks(Math.min(...heights), Math.max(...heights), 4);
  const low = y[0];
  const high = y[y.length - 1];
  return {
    lastStep,
    heights: y,
    x: (step) => LEFT + (step / lastStep) * (width - LEFT - RIGHT),
    y: (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    step: (x) => ((x - LEFT) / (width - LEFT - RIGHT)) * lastStep,
  };
}

/** All but the cursor. */
function Image({ curves, scale, width, lang }) {
  const { series, kept } = curves;
  const { lastStep, heights } = scale;
  const digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(heights[1] - heights[0]))));
  const tick = new Intl.NumberFormat(lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const count = new Intl.NumberFormat(lang);
  const steps = ticks(0, lastStep, width < 480 ? 3 : 6).filter((one) => one <= lastStep && Number.isInteger(one));
  const isLate = kept && kept[0] > lastStep / 2;
  return [
    heights.map((value) => {
      const y = scale.y(value);
      return html`<line class="grid" x1=${LEFT} x2=${width - RIGHT} y1=${y} y2=${y} />
        <text class="tick" x=${LEFT - 8} y=${y + 4} text-anchor="end">${tick.format(value)}</text>`;
    }),
    steps.map(
      (one) =>
        html`<text class="tick" x=${scale.x(one)} y=${HEIGHT - BOTTOM + 18} text-anchor="middle">
          ${count.format(one)}
        </text>`,
    ),
    kept &&
      html`<line class="kept" y1=${TOP} y2=${HEIGHT - BOTTOM} ...${across(scale.x(kept[0]))} />
        <text class="tick" x=${scale.x(kept[0]) + (isLate ? -6 : 6)} y=${TOP + 10}
          text-anchor=${isLate ? "end" : "start"}>${kept[1]}</text>`,
    series.map((one) => html`<g class=${`s${one.colour + 1}`}>${line(one, scale)}</g>`),
  ];
}

/** @param {number} x of a vertical line */
function across(x) {
  return { x1: x, x2: x };
}

function line({ points, faint }, scale) {
  const at = (place) => points.map((point) => [scale.x(point[0]), scale.y(point[place])]);
  const curve = html`<path class=${faint ? "raw" : "line"} d=${path(at(1))} />`;
  if (points.length > MARKED) return curve;
  const band = points[0]?.length > 2 && `${path([...at(2), ...at(3).reverse()])}Z`;
  return html`${band && html`<path class="band" d=${band} />`}${curve}
    ${at(1).map(([cx, cy]) => html`<circle cx=${cx} cy=${cy} r="3.5" />`)}`;
}

function path(places) {
  return places.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function nearest(points, step) {
  return points.reduce((best, p) => (Math.abs(p[0] - step) < Math.abs(best[0] - step) ? p : best));
}

/** Round values that contain two others, about `wanted` of them. */
function ticks(from, to, wanted) {
  const span = to - from || Math.abs(to) || 1;
  const raw = span / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const every = [1, 2, 5].map((one) => one * power).find((one) => one >= raw) ?? 10 * power;
  const first = Math.floor(from / every);
  const last = Math.max(first + 1, Math.ceil(to / every));
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * every);
}
