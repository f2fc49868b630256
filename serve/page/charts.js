/** Small charts in SVG. Colours come from the style sheet, numbers stand beside the charts as text. */

import { element, svgElement } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 64;

/** The next of 1, 2, 5, 10, 20, .. that is at least `value`: a scale that people can read. */
export function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function canvas() {
  return svgElement("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
}

/** A chart with its title, its newest value and the top of its scale. */
class Figure {
  constructor(host, title, unit) {
    this.value = element("output", { class: "value" }, "–");
    this.top = element("span", { class: "scale" });
    this.svg = canvas();
    this.unit = unit;
    const head = element("figcaption", {}, element("span", {}, title), element("span", { class: "reading" }, this.value, ` ${unit}`));
    host.replaceChildren(head, element("div", { class: "plot" }, this.svg, this.top));
  }

  show(text, top) {
    this.value.textContent = text;
    this.top.textContent = top;
  }
}

/** Curves over the same time; `series`: names of their classes. The newest sample is on the right. */
export class LineFigure extends Figure {
  constructor(host, title, unit, { capacity, series = ["first"], smallest = 1 }) {
    super(host, title, unit);
    Object.assign(this, { capacity, smallest, samples: [] });
    this.lines = series.map((name) => ({
      area: this.svg.appendChild(svgElement("path", { class: `area ${name}` })),
      line: this.svg.appendChild(svgElement("path", { class: `line ${name}`, "vector-effect": "non-scaling-stroke" })),
    }));
  }

  /** Adds one value per curve; `text` is how the newest reads. */
  push(values, text) {
    this.samples.push(values);
    if (this.samples.length > this.capacity) this.samples.shift();
    const top = Math.max(this.smallest, niceCeiling(Math.max(...this.samples.flat())));
    const step = WIDTH / (this.capacity - 1);
    const start = WIDTH - step * (this.samples.length - 1);
    this.lines.forEach(({ area, line }, which) => {
      const points = this.samples.map((sample, at) => [start + at * step, HEIGHT - 1.5 - (sample[which] / top) * (HEIGHT - 4)]);
      const path = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
      line.setAttribute("d", `M${path}`);
      area.setAttribute("d", `M${start.toFixed(1)} ${HEIGHT}L${path}L${WIDTH} ${HEIGHT}Z`);
    });
    this.show(text, String(top));
  }
}

/** One bar a value, the newest on the right. */
export class BarFigure extends Figure {
  constructor(host, title, unit, { capacity }) {
    super(host, title, unit);
    Object.assign(this, { capacity, samples: [] });
  }

  push(value, text, topText) {
    this.samples.push(value);
    if (this.samples.length > this.capacity) this.samples.shift();
    const top = niceCeiling(Math.max(...this.samples));
    const step = WIDTH / this.capacity;
    const bars = this.samples.map((sample, at) => {
      const height = Math.max(1.5, (sample / top) * (HEIGHT - 4));
      const x = WIDTH - step * (this.samples.length - at);
      return svgElement("rect", { class: "column", x: x + 1.5, y: HEIGHT - height, width: step - 3, height });
    });
    this.svg.replaceChildren(...bars);
    this.show(text, topText(top));
  }
}

/** The KV cache as squares: a square is a page, or an equal share of the pages where there are more than squares. */
export class PageGrid {
  static COLUMNS = 24;
  static ROWS = 6;

  constructor(host) {
    const { COLUMNS, ROWS } = PageGrid;
    this.value = element("output", { class: "value" }, "–");
    this.note = element("p", { class: "hint" });
    const svg = svgElement("svg", { viewBox: `0 0 ${COLUMNS * 10 - 2} ${ROWS * 10 - 2}`, class: "pages", "aria-hidden": "true" });
    this.squares = Array.from({ length: COLUMNS * ROWS }, (_, at) =>
      svgElement("rect", { x: (at % COLUMNS) * 10, y: Math.floor(at / COLUMNS) * 10, width: 8, height: 8, rx: 1.6, class: "free" }),
    );
    svg.append(...this.squares);
    const head = element("figcaption", {}, element("span", {}, "KV cache"), element("span", { class: "reading" }, this.value, " %"));
    host.replaceChildren(head, svg, this.note);
  }

  show(used, pages) {
    if (!pages) {
      this.value.textContent = "–";
      this.note.textContent = "No pages yet: the model is not loaded.";
      return;
    }
    const shown = Math.min(pages, this.squares.length);
    const filled = Math.ceil((used / pages) * shown);
    this.squares.forEach((square, at) => {
      square.setAttribute("class", at < filled ? "used" : at < shown ? "free" : "absent");
    });
    const percent = (100 * used) / pages;
    this.value.textContent = percent > 0 && percent < 10 ? percent.toFixed(1) : percent.toFixed(0);
    this.note.textContent = `${used.toLocaleString("en")} of ${pages.toLocaleString("en")} pages in use`;
  }
}
