/** Tools: their JSON, which of them the model may or must call, and the calls of this conversation. */

import { byId, element } from "./dom.js";
import { readStoredJson, writeStored } from "./storage.js";
import { EXAMPLE, parseTools } from "./tool_definitions.js";

const CHOICES = ["auto", "none", "required"];

export class ToolsPanel {
  #tools = [];

  constructor() {
    this.field = byId("tools");
    this.state = byId("tools-state");
    this.choice = byId("tool-choice");
    this.parallel = byId("parallel");
    this.named = byId("tool-names");
    this.log = byId("call-log");
    const stored = readStoredJson(localStorage, "tools", {});
    this.field.value = stored.text ?? "";
    this.parallel.checked = stored.parallel ?? true;
    this.#read();
    if (stored.choice) this.choice.value = stored.choice;
    if (!this.choice.value) this.choice.value = "auto";
    this.field.addEventListener("input", () => this.#changed());
    this.choice.addEventListener("change", () => this.#save());
    this.parallel.addEventListener("change", () => this.#save());
    byId("tools-example").addEventListener("click", () => this.useExample());
    byId("tools-clear").addEventListener("click", () => this.#set(""));
  }

  useExample() {
    this.#set(EXAMPLE);
  }

  /** The request's tool fields; none without tools. */
  options() {
    if (!this.#tools.length) return {};
    const choice = this.choice.value;
    const toolChoice = CHOICES.includes(choice) ? choice : { type: "function", function: { name: choice.slice("name:".length) } };
    return { tools: this.#tools, tool_choice: toolChoice, parallel_tool_calls: this.parallel.checked };
  }

  /** Lists the calls of `turns`. */
  showCalls(turns) {
    const calls = turns.flatMap((turn) => turn.toolCalls ?? []);
    while (this.log.childElementCount > calls.length) this.log.lastElementChild.remove();
    calls.forEach((call, index) => {
      const entry = this.log.children[index] ?? this.log.appendChild(element("li", {}, element("code"), element("p")));
      setText(entry.firstElementChild, `${call.name}(${call.arguments})`);
      setText(entry.lastElementChild, call.result === null ? "waits for its result" : `→ ${call.result}`);
      entry.classList.toggle("pending", call.result === null);
    });
    byId("call-log-empty").hidden = calls.length > 0;
  }

  #set(text) {
    this.field.value = text;
    this.#changed();
  }

  #changed() {
    this.#read();
    this.#save();
  }

  #read() {
    let message = "";
    try {
      this.#tools = parseTools(this.field.value);
    } catch (error) {
      this.#tools = [];
      message = `${error.message} Until it is mended, no tools are sent.`;
    }
    const names = this.#tools.map((tool) => tool.function.name);
    this.field.setAttribute("aria-invalid", String(message !== ""));
    setText(this.state, message || (names.length ? `Sent with each message: ${names.join(", ")}` : "No tools are sent."));
    this.#showNames(names);
  }

  #showNames(names) {
    const chosen = this.choice.value;
    this.named.replaceChildren(...names.map((name) => element("option", { value: `name:${name}` }, name)));
    this.named.hidden = names.length === 0;
    this.choice.value = [...this.choice.options].some((option) => option.value === chosen) ? chosen : "auto";
  }

  #save() {
    const { field, choice, parallel } = this;
    writeStored(localStorage, "tools", JSON.stringify({ text: field.value, choice: choice.value, parallel: parallel.checked }));
  }
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
