/** System prompt, sampling, API key. A field that is left empty is not sent: then the model's own default holds. */

import { byId, element } from "./dom.js";
import { readStored, readStoredJson, removeStored, writeStored } from "./storage.js";

const CONTROLS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, rest: 1, hint: "0 always takes the likeliest token" },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, rest: 1, hint: "Likeliest tokens up to this probability" },
  { name: "top_k", label: "Top k", min: 0, max: 200, step: 1, rest: 0, hint: "This many likeliest tokens; 0 is off" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, rest: 0, hint: "Share of the likeliest token's probability" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.5, max: 2, step: 0.01, rest: 1, hint: "1 is off" },
  { name: "max_tokens", label: "Max tokens", min: 1, step: 1, hint: "Of the answer" },
  { name: "seed", label: "Seed", min: 0, step: 1, hint: "Same seed, same answer" },
];

export class SettingsPanel {
  #inputs = new Map();

  constructor({ onKeyChange }) {
    this.system = byId("system");
    this.key = byId("api-key");
    const stored = readStoredJson(localStorage, "settings", {});
    this.system.value = stored.system ?? "";
    byId("sampling").append(...CONTROLS.map((control) => this.#row(control, stored[control.name])));
    this.system.addEventListener("input", () => this.#save());
    byId("reset").addEventListener("click", () => this.#reset());
    this.key.value = readStored(sessionStorage, "api-key") ?? "";
    this.key.addEventListener("change", () => {
      const key = this.key.value.trim();
      if (key) writeStored(sessionStorage, "api-key", key);
      else removeStored(sessionStorage, "api-key");
      onKeyChange();
    });
  }

  get systemPrompt() {
    return this.system.value;
  }

  /** The request's sampling fields. Values out of range are sent as they are: the server says best what is wrong. */
  sampling() {
    const values = {};
    for (const [name, { number }] of this.#inputs) {
      if (number.value !== "") values[name] = Number(number.value);
    }
    return values;
  }

  #row({ name, label, min, max, step, rest, hint }, value) {
    const limits = { min, max, step };
    const number = element("input", {
      id: name, type: "number", ...limits, placeholder: "auto", inputmode: "decimal", autocomplete: "off", "aria-describedby": `${name}-hint`,
    });
    number.value = value ?? "";
    const row = element("div", { class: "control" }, element("label", { for: name }, label), number);
    // The slider is for pointers; keyboard and screen reader have the number field, so it is not offered to them twice.
    const slider = max === undefined ? null : element("input", { type: "range", ...limits, tabindex: "-1", "aria-hidden": "true" });
    const show = () => {
      if (slider) slider.value = number.value === "" ? rest : number.value;
      row.classList.toggle("unset", number.value === "");
    };
    number.addEventListener("input", () => {
      show();
      this.#save();
    });
    slider?.addEventListener("input", () => {
      number.value = slider.value;
      show();
      this.#save();
    });
    if (slider) row.append(slider);
    row.append(element("p", { class: "hint", id: `${name}-hint` }, hint));
    this.#inputs.set(name, { number, show });
    show();
    return row;
  }

  #reset() {
    for (const { number, show } of this.#inputs.values()) {
      number.value = "";
      show();
    }
    this.#save();
  }

  #save() {
    writeStored(localStorage, "settings", JSON.stringify({ system: this.system.value, ...this.sampling() }));
  }
}
