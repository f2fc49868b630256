/** Live figures: this page's speed, and the server's load out of /metrics. */

import { request } from "./api.js";
import { BarFigure, LineFigure, PageGrid } from "./charts.js";
import { byId } from "./dom.js";
import { formatCount, formatMilliseconds, formatRate } from "./figures.js";
import { parsePrometheus } from "./prometheus.js";

const SAMPLE_MS = 250;
const POLL_MS = 2000;

export class LivePanel {
  #timing = null;
  #sampler = 0;
  #poller = 0;
  #asking = false;

  /** `panel`: the element; the server is asked only while it is on the screen. */
  constructor(panel) {
    this.panel = panel;
    this.rate = new LineFigure(byId("rate-figure"), "Speed", "tok/s", { capacity: 120, smallest: 10 });
    this.firstToken = new BarFigure(byId("ttft-figure"), "First token after", "", { capacity: 24 });
    this.pages = new PageGrid(byId("cache-figure"));
    this.load = new LineFigure(byId("load-figure"), "Requests", "", { capacity: 60, series: ["first", "second"], smallest: 2 });
    this.readout = byId("readout");
    this.state = byId("metrics-state");
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  /** An answer is under way. */
  answering(timing) {
    this.#timing = timing;
    this.#sampler ||= setInterval(() => this.#sample(), SAMPLE_MS);
  }

  /** An answer ended with this summary. */
  answered({ firstTokenMs, rate }) {
    clearInterval(this.#sampler);
    this.#sampler = 0;
    if (this.#timing) this.rate.push([0], rate === null ? "–" : formatRate(rate));
    this.#timing = null;
    if (firstTokenMs !== null) {
      this.firstToken.push(firstTokenMs, formatMilliseconds(firstTokenMs), formatMilliseconds);
    }
    this.#read(rate, firstTokenMs);
  }

  /** Starts or stops asking the server, as the panel is seen or not. */
  refresh() {
    const wanted = this.panel.getClientRects().length > 0 && document.visibilityState === "visible";
    if (wanted && !this.#poller) {
      this.#poller = setInterval(() => this.#ask(), POLL_MS);
      this.#ask();
    } else if (!wanted && this.#poller) {
      clearInterval(this.#poller);
      this.#poller = 0;
    }
  }

  #sample() {
    const rate = this.#timing.currentRate(performance.now());
    this.rate.push([rate], formatRate(rate));
    this.#read(rate, this.#timing.summary().firstTokenMs);
  }

  #read(rate, firstTokenMs) {
    const parts = [];
    if (rate) parts.push(`${formatRate(rate)} tok/s`);
    if (firstTokenMs !== null) parts.push(`first token ${formatMilliseconds(firstTokenMs)}`);
    if (parts.length) this.readout.textContent = parts.join("  ·  ");
  }

  async #ask() {
    if (this.#asking) return;
    this.#asking = true;
    try {
      this.#show(parsePrometheus(await (await request("metrics")).text()));
      this.state.textContent = "";
    } catch (error) {
      const reason = error.status === 401 ? "The server's figures need the API key (Settings)." : error.message;
      this.state.textContent = reason;
    } finally {
      this.#asking = false;
    }
  }

  #show(values) {
    const of = (name) => values.get(`jaxdeploy_${name}`) ?? 0;
    const [running, waiting] = [of("requests_running"), of("requests_waiting")];
    this.load.push([running, waiting], `${running} running, ${waiting} waiting`);
    this.pages.show(of("cache_pages_used"), of("cache_pages"));
    const asked = of("prefix_cache_queries_total");
    const hits = asked ? `${Math.round((100 * of("prefix_cache_hits_total")) / asked)} %` : "–";
    byId("fact-prefix").textContent = hits;
    byId("fact-tokens").textContent = formatCount(of("generation_tokens_total"));
    byId("fact-compiles").textContent = formatCount(of("compile_misses_total"));
  }
}
