/** How a turn of the conversation looks. */

import { copyButton, element } from "./dom.js";
import { figures } from "./figures.js";
import { MarkdownStream } from "./markdown.js";
import { ToolCallCard } from "./tool_call_card.js";

/** What a person asked; can be edited in its place. `actions.edit(turn, text)` sends the new text. */
export class UserTurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.body = element("div", { class: "body" });
    this.node = element("article", { class: "turn user" }, element("h2", { class: "speaker" }, "You"), this.body);
    this.#show();
  }

  #show() {
    this.edit = element("button", { type: "button", class: "quiet needs-idle", click: () => this.#startEdit() }, "Edit");
    const foot = element("div", { class: "foot" }, this.edit, copyButton(() => this.turn.content));
    this.body.replaceChildren(element("p", { class: "question" }, this.turn.content), foot);
  }

  #startEdit() {
    const field = element("textarea", { "aria-label": "Edit your message", rows: "3" });
    field.value = this.turn.content;
    const cancel = () => {
      this.#show();
      this.edit.focus();
    };
    const send = () => {
      if (field.value.trim()) this.actions.edit(this.turn, field.value);
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    const foot = element(
      "div",
      { class: "foot open" },
      element("button", { type: "button", class: "primary", click: send }, "Send again"),
      element("button", { type: "button", class: "quiet", click: cancel }, "Cancel"),
    );
    this.body.replaceChildren(field, foot);
    field.focus();
  }
}

/** What the model answered. `actions`: regenerate(turn), continueWithResults(), enterKey(), announce(text), speaker(). */
export class AssistantTurnView {
  #shownContent = 0;
  #shownReasoning = 0;
  #frame = 0;
  #cards = [];
  #reasoning = null;

  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.answer = element("div", { class: "answer" });
    this.calls = element("div", { class: "calls" });
    this.foot = element("div", { class: "foot" });
    this.waiting = element("div", { class: "waiting" }, element("i"), element("i"), element("i"));
    this.body = element("div", { class: "body" }, this.waiting, this.answer, this.calls, this.foot);
    this.node = element("article", { class: "turn assistant" }, element("h2", { class: "speaker" }, actions.speaker()), this.body);
    this.markdown = new MarkdownStream(this.answer, (text) => this.live && actions.announce(text));
    this.live = false;
  }

  /** The answer begins to stream. */
  start() {
    this.live = true;
    this.node.classList.add("running");
    this.node.setAttribute("aria-busy", "true");
  }

  /** The turn grew; drawn with the next frame. */
  changed() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  /** The turn is complete. */
  end() {
    cancelAnimationFrame(this.#frame);
    this.#draw();
    this.markdown.finish();
    this.waiting.remove();
    this.node.classList.remove("running");
    this.node.removeAttribute("aria-busy");
    if (this.#reasoning) this.#reasoning.summary.textContent = "Thought";
    this.#endCalls();
    this.#showFoot();
    this.live = false;
  }

  #draw() {
    const { content, reasoning, toolCalls } = this.turn;
    if (content.length || reasoning.length || toolCalls.length) this.waiting.remove();
    if (reasoning.length > this.#shownReasoning) this.#drawReasoning(reasoning);
    if (content.length > this.#shownContent) {
      this.markdown.append(content.slice(this.#shownContent));
      this.#shownContent = content.length;
    }
    toolCalls.forEach((call, index) => {
      if (!this.#cards[index]) {
        this.#cards[index] = new ToolCallCard(call);
        this.calls.append(this.#cards[index].node);
      }
      this.#cards[index].update();
    });
  }

  #drawReasoning(text) {
    if (!this.#reasoning) {
      const summary = element("summary", {}, "Thinking");
      const data = document.createTextNode("");
      const details = element("details", { class: "thinking" }, summary, element("div", {}, data));
      this.#reasoning = { summary, data };
      this.body.prepend(details);
    }
    this.#reasoning.data.appendData(text.slice(this.#shownReasoning));
    this.#shownReasoning = text.length;
  }

  #endCalls() {
    if (!this.turn.toolCalls.length) {
      this.calls.replaceChildren();
      return;
    }
    this.#cards.forEach((card) => card.complete(() => this.#submitResults()));
    if (this.turn.toolCalls.every((call) => call.result !== null)) return;
    const label = this.#cards.length > 1 ? "Send results" : "Send result";
    this.send = element("button", { type: "button", class: "primary", click: () => this.#submitResults() }, label);
    this.calls.append(this.send);
    if (this.live) {
      this.actions.announce(`The model calls ${this.#cards.map((card) => card.call.name).join(", ")}. Enter the results.`);
      this.focusResult();
    }
  }

  /** Puts the cursor into the first result that is still missing. */
  focusResult() {
    this.#cards.find((card) => card.field && !card.field.value.trim())?.field.focus();
  }

  #submitResults() {
    if (this.#cards.some((card) => card.field && !card.field.value.trim())) {
      this.focusResult();
      return;
    }
    for (const card of this.#cards) {
      if (!card.field) continue;
      card.call.result = card.field.value;
      card.showResult();
    }
    this.send.remove();
    this.actions.continueWithResults();
  }

  #showFoot() {
    const { turn } = this;
    if (turn.error) this.foot.before(this.#errorBox(turn.error));
    const again = turn.error ? "Try again" : "Regenerate";
    const actions = [];
    if (turn.content) actions.push(copyButton(() => turn.content));
    actions.push(
      element("button", { type: "button", class: "quiet needs-idle", click: () => this.actions.regenerate(turn) }, again),
    );
    this.foot.replaceChildren(...actions, element("span", { class: "figures" }, figures(turn)));
  }

  #errorBox({ message, type, param, code, status, retryAfter }) {
    const title = [status || null, code ?? type].filter(Boolean).join(" · ") || "Error";
    const box = element("div", { class: "error", role: "alert" }, element("strong", {}, title), element("p", {}, message));
    if (param) box.append(element("p", { class: "hint" }, "Field: ", element("code", {}, param)));
    if (retryAfter) box.append(element("p", { class: "hint" }, `The server asks to wait ${retryAfter} s.`));
    if (status === 401) {
      box.append(element("button", { type: "button", click: () => this.actions.enterKey() }, "Enter the API key"));
    }
    return box;
  }
}
