/** A block of code: language, copy button, and lines that are coloured once each as they arrive. */

import { Highlighter } from "./code_highlight.js";
import { copyButton, element } from "./dom.js";

export class CodeView {
  #lines = [];
  #partial = document.createTextNode("");

  constructor(info) {
    const language = info.split(/\s+/)[0].toLowerCase().slice(0, 24);
    this.highlighter = new Highlighter(language);
    this.code = element("code", {}, this.#partial);
    const head = element("div", { class: "code-head" }, element("span", {}, language || "text"), copyButton(() => this.text));
    const body = element("pre", { tabindex: "0", role: "region", "aria-label": `Code, ${language || "text"}` }, this.code);
    this.node = element("div", { class: "code" }, head, body);
  }

  /** The view of a whole block. */
  static of(block) {
    const view = new CodeView(block.language);
    block.lines.forEach((line) => view.addLine(line));
    return view;
  }

  get text() {
    return [...this.#lines, ...(this.#partial.data ? [this.#partial.data] : [])].join("\n");
  }

  addLine(line) {
    if (this.#lines.length) this.#partial.before("\n");
    this.#lines.push(line);
    for (const [kind, text] of this.highlighter.line(line)) {
      this.#partial.before(kind ? element("span", { class: `code-${kind}` }, text) : text);
    }
    this.#partial.data = "";
  }

  /** The beginning of the next line, uncoloured until it is complete. */
  setPartial(text) {
    const data = text && this.#lines.length ? `\n${text}` : text;
    if (this.#partial.data !== data) this.#partial.data = data;
  }
}
