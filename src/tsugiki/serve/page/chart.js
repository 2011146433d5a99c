/**
 * Curves over steps as an SVG.
 *
 * Colours come from the style sheet, so that they follow light and dark. The figures at a step are read with the
 * pointer, or with the arrow keys.
 */

import { html, lang, t, useEffect, useMemo, useRef, useState } from "./ui.js";

/** @typedef {[number, number] | [number, number, number, number]} Point step, figure, and the ends of an interval */
/** @typedef {{ name: string, colour: number, faint: boolean, points: Point[] }} Series */
/** @typedef {{ caption: string, series: Series[], kept: [number, string] | null }} Curves */

const HEIGHT = 280;
const LEFT = 46;
const RIGHT = 14;
const TOP = 14;
const BOTTOM = 28;
const MARKED = 24; // lines with more points have no dots

/** @param {{ curves: Curves }} props */
export function Chart({ curves }) {
  const { caption, series } = curves;
  const plot = useRef(/** @type {HTMLElement | null} */ (null));
  const [width, setWidth] = useState(640);
  const [cursor, setCursor] = useState(/** @type {number | null} */ (null));
  const [scale, image] = useMemo(() => drawn(curves, width), [JSON.stringify(curves), width]);
  useEffect(() => {
    const box = /** @type {HTMLElement} */ (plot.current);
    const observer = new ResizeObserver(() => setWidth(Math.max(240, box.clientWidth)));
    observer.observe(box);
    return () => observer.disconnect();
  }, []);
  const distance = (step) => Math.abs(step - Number(cursor));
  const nearest = (best, step) => (distance(step) < distance(best) ? step : best);
  const at = cursor === null || !scale ? null : scale.steps.reduce(nearest);
  const leave = () => setCursor(null);
  const point = (event) => setCursor(scale?.step(event.clientX - event.currentTarget.getBoundingClientRect().left));
  const onKey = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !scale) return;
    event.preventDefault();
    const index = at === null ? scale.steps.length : scale.steps.indexOf(at);
    setCursor(scale.steps[Math.max(0, index + by)] ?? scale.steps.at(-1));
  };
  return html`<figure class="sheet chart">
    <h3>${caption}</h3>
    <div class="plot" tabindex="0" role="group" aria-label=${`${caption}; ${t("keys")}`} ref=${plot}
      onPointerMove=${point} onPointerLeave=${leave} onBlur=${leave} onKeyDown=${onKey}>
      <svg viewBox=${`0 0 ${width} ${HEIGHT}`} width=${width} height=${HEIGHT} aria-hidden="true">
        ${image}${at !== null && html`<${Upright} class="cursor" x=${scale.x(at)} />`}
      </svg>
    </div>
    <figcaption>
      <ul class="legend">
        ${series
          .filter((one) => !one.faint)
          .map((one) => html`<li class=${`s${one.colour + 1}`}><i></i>${one.name}</li>`)}
      </ul>
      <p class="readout" aria-live="polite">${at !== null && figuresAt(series, at)}</p>
    </figcaption>
  </figure>`;
}

/** The figures at a step, as text. @param {Series[]} series @param {number} at */
function figuresAt(series, at) {
  const options = { minimumSignificantDigits: 4, maximumSignificantDigits: 4 };
  const texts = series.flatMap(({ name, points }) =>
    points.filter(([step]) => step === at).map((point) => `${name} ${point[1].toLocaleString(lang, options)}`),
  );
  return `${at.toLocaleString(lang)}: ${texts.join(" · ")}`;
}

/**
 * Return where steps and figures are in the image, and the image without the cursor; nothing without points.
 *
 * @returns {any[]}
 */
function drawn({ series, kept }, width) {
  const points = series.flatMap((one) => one.points);
  if (!points.length) return [null, null];
  const all = [...new Set(points.map(([step]) => step))].sort((a, b) => a - b);
  const last = Math.max(all[all.length - 1], 1);
  const figures = points.flatMap(([, ...own]) => own);
  const heights = ticks(Math.min(...figures), Math.max(...figures), 4);
  const [low, high] = [heights[0], heights[heights.length - 1]];
  const scale = {
    steps: all,
    x: (step) => LEFT + (step / last) * (width - LEFT - RIGHT),
    y: (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    step: (x) => ((x - LEFT) / (width - LEFT - RIGHT)) * last,
  };
  const digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(heights[1] - low))));
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  const steps = ticks(0, last, width < 480 ? 3 : 6).filter((one) => one <= last && Number.isInteger(one));
  const image = [
    heights.map((value) => [
      html`<line class="grid" x1=${LEFT} x2=${width - RIGHT} y1=${scale.y(value)} y2=${scale.y(value)} />`,
      html`<${Tick} x=${LEFT - 8} y=${scale.y(value) + 4} end="end">${value.toLocaleString(lang, options)}<//>`,
    ]),
    steps.map((one) => html`<${Tick} x=${scale.x(one)} y=${HEIGHT - BOTTOM + 18}>${one.toLocaleString(lang)}<//>`),
    kept && html`<${Kept} x=${scale.x(kept[0])} text=${kept[1]} isLate=${kept[0] > last / 2} />`,
    series.map((one) => html`<g class=${`s${one.colour + 1}`}>${line(one, scale)}</g>`),
  ];
  return [scale, image];
}

function Tick({ x, y, end = "middle", children }) {
  return html`<text class="tick" x=${x} y=${y} text-anchor=${end}>${children}</text>`;
}

function Upright({ x, ...others }) {
  return html`<line x1=${x} x2=${x} y1=${TOP} y2=${HEIGHT - BOTTOM} ...${others} />`;
}

/** The step whose adapter was kept. */
function Kept({ x, text, isLate }) {
  return html`<${Upright} class="kept" x=${x} />
    <${Tick} x=${x + (isLate ? -6 : 6)} y=${TOP + 10} end=${isLate ? "end" : "start"}>${text}<//>`;
}

/** @param {Series} series */
function line({ points, faint }, scale) {
  const at = (place) => points.map((point) => [scale.x(point[0]), scale.y(point[place])]);
  const path = (places) => places.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const curve = html`<path class=${faint ? "raw" : "line"} d=${path(at(1))} />`;
  if (points.length > MARKED) return curve;
  const band = points[0]?.length > 2 && `${path([...at(2), ...at(3).reverse()])}Z`;
  return html`${band && html`<path class="band" d=${band} />`}${curve}
    ${at(1).map(([cx, cy]) => html`<circle cx=${cx} cy=${cy} r="3.5" />`)}`;
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
