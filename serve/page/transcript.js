/** The conversation on the page: one view a turn, scrolling that follows an answer unless the reader has scrolled away. */

import { AssistantTurnView, UserTurnView } from "./turn_view.js";

const NEAR_END = 48;

export class Transcript {
  #views = new Map();
  #follows = true;

  constructor({ list, scroller, welcome, toLatest, actions }) {
    Object.assign(this, { list, scroller, welcome, toLatest, actions });
    scroller.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    toLatest.addEventListener("click", () => this.showLatest());
    new ResizeObserver(() => this.#follows && this.#toEnd()).observe(list);
  }

  /** Draws `turns` anew, all complete. */
  showAll(turns) {
    this.#views.clear();
    this.list.replaceChildren();
    for (const turn of turns) this.#add(turn).end?.();
    this.welcome.hidden = turns.length > 0;
    this.showLatest();
  }

  add(turn) {
    this.welcome.hidden = true;
    this.#add(turn).start?.();
    this.showLatest();
  }

  changed(turn) {
    this.#views.get(turn)?.changed();
  }

  ended(turn) {
    this.#views.get(turn)?.end();
  }

  focusResult(turn) {
    this.#views.get(turn)?.focusResult();
  }

  showLatest() {
    this.#follows = true;
    this.#toEnd();
    this.#noteScroll();
  }

  #add(turn) {
    const View = turn.role === "user" ? UserTurnView : AssistantTurnView;
    const view = new View(turn, this.actions);
    this.#views.set(turn, view);
    this.list.append(view.node);
    return view;
  }

  #toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.toLatest.hidden = this.#follows;
  }
}
