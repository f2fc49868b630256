/** Speaks through a polite live region. The answer is told by blocks, not by tokens, which no one could follow. */

import { element } from "./dom.js";

const KEPT = 4;

export class Announcer {
  constructor(region) {
    this.region = region;
  }

  say(text) {
    if (!text.trim()) return;
    this.region.append(element("p", {}, text));
    while (this.region.childElementCount > KEPT) this.region.firstElementChild.remove();
  }
}
