/** The server's state in the header: loading, compiling n/m, ready, draining. */

import { fetchHealth } from "./health.js";
import { svgElement } from "./dom.js";

const READY_MS = 10_000;
const CHANGING_MS = 2000;
const MOST_SQUARES = 20;

export class ServerStatus {
  #timer = 0;
  phase = null;

  constructor({ node, text, steps, onReady }) {
    Object.assign(this, { node, text, steps, onReady });
    document.addEventListener("visibilitychange", () => this.refresh());
    this.refresh();
  }

  /** Asks now, and again while the page is visible: often while something changes, seldom while ready. */
  async refresh() {
    clearTimeout(this.#timer);
    if (document.visibilityState !== "visible") return;
    const health = await fetchHealth();
    this.#show(health);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.refresh(), health.phase === "ready" ? READY_MS : CHANGING_MS);
  }

  #show({ phase, text, done, total }) {
    const becameReady = phase === "ready" && this.phase !== "ready";
    this.phase = phase;
    this.node.dataset.phase = phase;
    if (this.text.textContent !== text) this.text.textContent = text;
    this.#drawSteps(done, total);
    if (becameReady) this.onReady();
  }

  // Progress in squares, one a step where they fit.
  #drawSteps(done, total) {
    const count = total ? Math.min(total, MOST_SQUARES) : 0;
    this.steps.replaceChildren();
    if (!count) return;
    this.steps.setAttribute("viewBox", `0 0 ${count * 7 - 2} 8`);
    this.steps.setAttribute("width", count * 7 - 2);
    for (let at = 0; at < count; at++) {
      const filled = at < Math.round((done / total) * count);
      this.steps.append(svgElement("rect", { x: at * 7, y: 0, width: 5, height: 8, rx: 1.2, class: filled ? "used" : "free" }));
    }
  }
}
