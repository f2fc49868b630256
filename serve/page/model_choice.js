/** The model's name in the header; a choice where the server offers several. */

import { listModels } from "./api.js";
import { element } from "./dom.js";

export class ModelChoice {
  constructor({ text, select, welcome }) {
    Object.assign(this, { text, select, welcome });
    this.name = null;
    select.addEventListener("change", () => this.#use(select.value));
  }

  /** Asks for the models. Without an answer (no key yet, still loading) requests name no model, which the server allows. */
  async refresh() {
    let names;
    try {
      names = await listModels();
    } catch {
      return;
    }
    if (!names.length) return;
    this.select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    this.select.hidden = names.length < 2;
    this.text.hidden = names.length > 1;
    this.#use(names.includes(this.name) ? this.name : names[0]);
  }

  /** The name as a speaker in the transcript: without the folder or organisation. */
  get shortName() {
    return this.name?.split("/").filter(Boolean).at(-1) ?? "Model";
  }

  #use(name) {
    this.name = name;
    this.select.value = name;
    this.text.textContent = this.shortName;
    this.text.title = name;
    this.welcome.textContent = this.shortName;
    document.title = `${this.shortName} · jaxdeploy`;
  }
}
