/** The panel beside the chat; on a narrow screen it lies over the chat and is opened by a button. */

const narrow = matchMedia("(max-width: 60rem)");

export class SidePanel {
  constructor({ panel, button, closeButton, chat, tabs, onChange }) {
    Object.assign(this, { panel, button, chat, tabs, onChange });
    button.addEventListener("click", () => (this.isOpen ? this.close() : this.open()));
    closeButton.addEventListener("click", () => this.close());
    narrow.addEventListener("change", () => this.#show(!narrow.matches));
    this.#show(!narrow.matches);
  }

  get isOpen() {
    return !this.panel.hidden;
  }

  /** True while the panel hides the chat. */
  get covers() {
    return narrow.matches && this.isOpen;
  }

  open(tabId = null) {
    if (tabId) this.tabs.select(tabId);
    this.#show(true);
    this.tabs.selected.focus();
  }

  close() {
    this.#show(false);
    this.button.focus();
  }

  #show(open) {
    this.panel.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    this.chat.inert = this.covers;
    this.onChange();
  }
}
