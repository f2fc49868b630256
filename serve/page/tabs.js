/** Tabs as the ARIA practices describe them: arrows move, Home and End jump, one stop in the tab order. */

import { readStored, writeStored } from "./storage.js";

export class Tabs {
  constructor(list, onChange = () => {}) {
    this.tabs = [...list.querySelectorAll('[role="tab"]')];
    this.onChange = onChange;
    list.addEventListener("keydown", (event) => this.#key(event));
    for (const tab of this.tabs) tab.addEventListener("click", () => this.select(tab.id));
    const stored = readStored(localStorage, "tab");
    this.select(this.tabs.some((tab) => tab.id === stored) ? stored : this.tabs[0].id);
  }

  get selected() {
    return this.tabs.find((tab) => tab.getAttribute("aria-selected") === "true");
  }

  select(id) {
    for (const tab of this.tabs) {
      const chosen = tab.id === id;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !chosen;
    }
    writeStored(localStorage, "tab", id);
    this.onChange(id);
  }

  #key(event) {
    const at = this.tabs.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.tabs.length - 1 }[event.key];
    if (at === -1 || to === undefined) return;
    event.preventDefault();
    const tab = this.tabs.at(to % this.tabs.length);
    this.select(tab.id);
    tab.focus();
  }
}
