/** Where the question is written: Enter sends, Shift+Enter makes a new line, the button stops what runs. */

export class Composer {
  #running = false;

  constructor({ field, button, send, stop }) {
    Object.assign(this, { field, button, send, stop });
    field.addEventListener("keydown", (event) => this.#key(event));
    field.addEventListener("input", () => this.#fit());
    button.addEventListener("click", () => (this.#running ? this.stop() : this.#submit()));
    this.#fit();
  }

  set running(running) {
    this.#running = running;
    this.button.textContent = running ? "Stop" : "Send";
    this.button.classList.toggle("stop", running);
    this.#showEnabled();
  }

  set text(text) {
    this.field.value = text;
    this.#fit();
    this.field.focus();
  }

  #key(event) {
    // While an input method composes (Chinese, Japanese), Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.#running) this.#submit();
  }

  #submit() {
    const text = this.field.value;
    if (!text.trim() || !this.send(text)) return;
    this.field.value = "";
    this.#fit();
  }

  #fit() {
    this.field.style.height = "auto";
    const borders = this.field.offsetHeight - this.field.clientHeight;
    this.field.style.height = `${this.field.scrollHeight + borders}px`;
    this.#showEnabled();
  }

  // Not `disabled`: the button keeps the focus when an answer ends.
  #showEnabled() {
    this.button.setAttribute("aria-disabled", String(!this.#running && !this.field.value.trim()));
  }
}
