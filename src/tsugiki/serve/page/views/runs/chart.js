/**
 * Loss curves as an SVG, drawn again when the figures or the width change.
 *
 * Colours come from the style sheet, so that they follow light and dark. The loss at a step is read with the pointer,
 * or with the arrow keys.
 */

import { h } from "../../dom.js";

/** @typedef {[number, number]} Point step and loss */
/** @typedef {{ name: string, kind: "training" | "validation" | "held_out", points: Point[] }} Series */
/** @typedef {{ label: string, step: string, loss: string, kept: string }} Labels */

const HEIGHT = 280;
const LEFT = 46;
const RIGHT = 14;
const TOP = 26;
const BOTTOM = 40;
const SECTIONS = 12; // the training loss is smoothed over a part of its points
const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {Labels} labels
 * @param {string} lang
 * @param {AbortSignal} signal
 * @returns {{ element: HTMLElement, draw: (series: Series[], steps: number | null, kept: number | null) => void }}
 */
export function lossChart(labels, lang, signal) {
  const loss = new Intl.NumberFormat(lang, { minimumFractionDigits: 3, maximumFractionDigits: 3 });
  const count = new Intl.NumberFormat(lang);
  const legend = h("ul.legend");
  const readout = h("p.readout", { "aria-live": "polite" });
  const plot = h("div.plot", { tabindex: 0, role: "group", "aria-label": labels.label });
  const element = h("figure.chart", {}, plot, h("figcaption", {}, legend, readout));
  let drawn = { series: [], steps: null, kept: null };
  let cursor = null;
  let scale = null;

  function draw(series, steps, kept) {
    drawn = { series: series.filter((one) => one.points.length), steps, kept };
    paint();
  }

  function paint() {
    const width = Math.max(240, plot.clientWidth);
    const { series, steps, kept } = drawn;
    const points = series.flatMap((one) => one.points);
    if (!points.length) return;
    const lastStep = Math.max(steps ?? 0, ...points.map(([step]) => step), 1);
    const y = ticks(Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1])), 4);
    const low = y[0];
    const high = y.at(-1);
    scale = {
      x: (step) => LEFT + (step / lastStep) * (width - LEFT - RIGHT),
      y: (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM),
      step: (x) => ((x - LEFT) / (width - LEFT - RIGHT)) * lastStep,
    };
    const digits = y[1] - y[0] < 0.1 ? 2 : y[1] - y[0] < 1 ? 1 : 0;
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
      s("text", { class: "tick", x: width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, labels.step),
      s("text", { class: "tick", x: 0, y: 12 }, labels.loss),
      kept !== null && [
        s("line", { class: "kept", x1: scale.x(kept), x2: scale.x(kept), y1: TOP, y2: HEIGHT - BOTTOM }),
        s(
          "text",
          {
            class: "tick",
            x: scale.x(kept) + (kept > lastStep / 2 ? -6 : 6),
            y: TOP + 10,
            "text-anchor": kept > lastStep / 2 ? "end" : "start",
          },
          labels.kept,
        ),
      ],
      ...series.map((one) => s("g", { class: one.kind }, ...drawSeries(one, scale))),
      s("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }),
    );
    plot.replaceChildren(image);
    legend.replaceChildren(...series.map((one) => h(`li.${one.kind}`, {}, h("i"), one.name)));
    point(cursor);
  }

  /** Show the losses at a step; null: at none. */
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
    const texts = near.filter(([, p]) => p[0] === at).map(([one, p]) => `${one.name} ${loss.format(p[1])}`);
    readout.textContent = `${labels.step} ${count.format(at)}: ${texts.join(" · ")}`;
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

function drawSeries(series, scale) {
  const line = (points, name) => s("path", { class: name, d: path(points, scale) });
  if (series.kind === "training") {
    if (series.points.length > 1) return [line(series.points, "raw"), line(smoothed(series.points), "line")];
  }
  const dots = series.points.map(([step, loss]) => s("circle", { cx: scale.x(step), cy: scale.y(loss), r: 3.5 }));
  return [line(series.points, "line"), ...dots];
}

function path(points, scale) {
  return points
    .map(([step, loss], i) => `${i ? "L" : "M"}${scale.x(step).toFixed(1)} ${scale.y(loss).toFixed(1)}`)
    .join("");
}

/** The mean of the points around each one; the window is narrower at the ends. */
function smoothed(points) {
  const half = Math.floor(points.length / SECTIONS / 2);
  return points.map(([step], i) => {
    const reach = Math.min(half, i, points.length - 1 - i);
    const around = points.slice(i - reach, i + reach + 1);
    return [step, around.reduce((sum, p) => sum + p[1], 0) / around.length];
  });
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
