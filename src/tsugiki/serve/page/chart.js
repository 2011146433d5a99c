/**
 * Curves over steps as an SVG, drawn again when the figures or the width change.
 *
 * Colours come from the style sheet, so that they follow light and dark. The figures at a step are read with the
 * pointer, or with the arrow keys.
 */

import { h } from "./dom.js";

/** @typedef {[number, number] | [number, number, number, number]} Point step, figure, and the ends of an interval */
/** @typedef {{ name: string, colour: number, faint: boolean, points: Point[] }} Series */

const HEIGHT = 280;
const LEFT = 46;
const RIGHT = 14;
const TOP = 14;
const BOTTOM = 28;
const MARKED = 24; // lines with more points have no dots
const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} caption
 * @param {string} keys says that the arrow keys read the figures
 * @param {string} lang
 * @param {AbortSignal} signal
 * @returns {{ element: HTMLElement, draw: (curves: { series: Series[], kept: [number, string] | null }) => void }}
 */
export function newChart(caption, keys, lang, signal) {
  const figure = new Intl.NumberFormat(lang, { minimumSignificantDigits: 4, maximumSignificantDigits: 4 });
  const count = new Intl.NumberFormat(lang);
  const legend = h("ul.legend");
  const readout = h("p.readout", { "aria-live": "polite" });
  const plot = h("div.plot", { tabindex: 0, role: "group", "aria-label": `${caption}; ${keys}` });
  const element = h("figure.sheet.chart", {}, h("h3", {}, caption), plot, h("figcaption", {}, legend, readout));
  let drawn = { series: [], kept: null };
  let cursor = null;
  let scale = null;

  function draw(curves) {
    drawn = curves;
    paint();
  }

  function paint() {
    const width = Math.max(240, plot.clientWidth);
    const { series, kept } = drawn;
    const points = series.flatMap((one) => one.points);
    if (!points.length) return;
    const lastStep = Math.max(...points.map(([step]) => step), 1);
    const heights = points.flatMap(([, ...figures]) => figures);
    const y = ticks(Math.min(...heights), Math.max(...heights), 4);
    const low = y[0];
    const high = y.at(-1);
    scale = {
      x: (step) => LEFT + (step / lastStep) * (width - LEFT - RIGHT),
      y: (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM),
      step: (x) => ((x - LEFT) / (width - LEFT - RIGHT)) * lastStep,
    };
    const digits = Math.min(8, Math.max(0, -Math.floor(Math.log10(y[1] - y[0]))));
    const tick = new Intl.NumberFormat(lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
    const steppings = ticks(0, lastStep, width < 480 ? 3 : 6).filter(
      (step) => step <= lastStep && Number.isInteger(step),
    );
    const image = s(
      "svg",
      { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" },
      ...y.map((value) =>
        s(
          "g",
          {},
          s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: scale.y(value), y2: scale.y(value) }),
          s("text", { class: "tick", x: LEFT - 8, y: scale.y(value) + 4, "text-anchor": "end" }, tick.format(value)),
        ),
      ),
      ...steppings.map((step) =>
        s(
          "text",
          { class: "tick", x: scale.x(step), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" },
          count.format(step),
        ),
      ),
      kept && [
        s("line", { class: "kept", x1: scale.x(kept[0]), x2: scale.x(kept[0]), y1: TOP, y2: HEIGHT - BOTTOM }),
        s(
          "text",
          {
            class: "tick",
            x: scale.x(kept[0]) + (kept[0] > lastStep / 2 ? -6 : 6),
            y: TOP + 10,
            "text-anchor": kept[0] > lastStep / 2 ? "end" : "start",
          },
          kept[1],
        ),
      ],
      ...series.map((one) => s("g", { class: `s${one.colour + 1}` }, ...drawSeries(one, scale))),
      s("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }),
    );
    plot.replaceChildren(image);
    const names = series.filter((one) => !one.faint);
    legend.replaceChildren(...names.map((one) => h(`li.s${one.colour + 1}`, {}, h("i"), one.name)));
    point(cursor);
  }

  /** Show the figures at a step; null: at none. */
  function point(step) {
    cursor = step;
    const line = plot.querySelector(".cursor");
    if (!line || step === null) {
      line?.setAttribute("visibility", "hidden");
      readout.replaceChildren();
      return;
    }
    const near = drawn.series.map((one) => [one, nearest(one.points, step)]);
    const at = near.reduce(
      (best, [, p]) => (Math.abs(p[0] - step) < Math.abs(best - step) ? p[0] : best),
      near[0][1][0],
    );
    line.setAttribute("x1", scale.x(at));
    line.setAttribute("x2", scale.x(at));
    line.setAttribute("visibility", "visible");
    const texts = near.filter(([, p]) => p[0] === at).map(([one, p]) => `${one.name} ${figure.format(p[1])}`);
    readout.textContent = `${count.format(at)}: ${texts.join(" · ")}`;
  }

  function onKey(event) {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const steps = [...new Set(drawn.series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
    if (!steps.length) return;
    event.preventDefault();
    const at = cursor === null ? steps.length : steps.findIndex((step) => step >= cursor);
    const next = at + (event.key === "ArrowRight" ? 1 : -1);
    point(steps[Math.min(steps.length - 1, Math.max(0, next))]);
  }

  plot.addEventListener(
    "pointermove",
    (event) => scale && point(scale.step(event.clientX - plot.getBoundingClientRect().left)),
  );
  plot.addEventListener("pointerleave", () => point(null));
  plot.addEventListener("blur", () => point(null));
  plot.addEventListener("keydown", onKey);
  const observer = new ResizeObserver(paint);
  observer.observe(plot);
  signal.addEventListener("abort", () => observer.disconnect());
  return { element, draw };
}

function drawSeries({ points, faint }, scale) {
  const at = (place) => points.map((point) => [scale.x(point[0]), scale.y(point[place])]);
  const line = s("path", { class: faint ? "raw" : "line", d: path(at(1)) });
  if (points.length > MARKED) return [line];
  const band = points[0].length > 2 && s("path", { class: "band", d: `${path([...at(2), ...at(3).reverse()])}Z` });
  return [band, line, ...at(1).map(([cx, cy]) => s("circle", { cx, cy, r: 3.5 }))].filter(Boolean);
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
  const every = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const first = Math.floor(from / every);
  const last = Math.max(first + 1, Math.ceil(to / every));
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * every);
}

function s(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.flat().filter(Boolean));
  return element;
}
