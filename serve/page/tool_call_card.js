/** One tool call in the transcript: its arguments as they stream, then a field for its result. */

import { element } from "./dom.js";

export class ToolCallCard {
  #arguments = element("pre", { class: "call-arguments", tabindex: "0", role: "region", "aria-label": "Arguments" });
  #name = element("code");
  #result = element("div", { class: "call-result" });

  constructor(call) {
    this.call = call;
    this.field = null;
    const head = element("div", { class: "call-head" }, element("span", {}, "Calls"), this.#name);
    this.node = element("section", { class: "call" }, head, this.#arguments, this.#result);
  }

  /** Shows what has streamed so far. */
  update() {
    const { name, arguments: text } = this.call;
    if (this.#name.textContent !== name) {
      this.#name.textContent = name;
      this.node.setAttribute("aria-label", `Call of ${name}`);
    }
    if (this.#arguments.textContent !== text) this.#arguments.textContent = text;
  }

  /** The call is complete: its arguments are laid out, and its result is asked for or shown. */
  complete(submit) {
    this.#name.textContent = this.call.name;
    this.#arguments.textContent = laidOut(this.call.arguments);
    if (this.call.result === null) this.#askForResult(submit);
    else this.showResult();
  }

  showResult() {
    this.field = null;
    this.#result.replaceChildren(element("span", {}, "Result"), element("pre", {}, this.call.result));
  }

  #askForResult(submit) {
    this.field = element("textarea", { rows: "1", spellcheck: "false", placeholder: "What the tool returned" });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      submit();
    });
    this.#result.replaceChildren(element("label", {}, element("span", {}, `Result of ${this.call.name}`), this.field));
  }
}

function laidOut(text) {
  try {
    return JSON.stringify(JSON.parse(text || "{}"), null, 2);
  } catch {
    return text;
  }
}
