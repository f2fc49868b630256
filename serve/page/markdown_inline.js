/** Inline Markdown (emphasis, code, links) into DOM nodes. Linear in the text: every look ahead is bounded or remembered. */

import { element } from "./dom.js";

const LONGEST_LINK = 2000;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const BARE_URL = /https?:\/\/[^\s<>"'`]+/y;
const ENTITY = /&(amp|lt|gt|quot|apos|nbsp|#39);/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const TAGS = { "*1": "em", _1: "em", "*2": "strong", _2: "strong", "~2": "del" };
const WORD = /[\p{L}\p{N}]/u;

/** The address if it is an absolute http or https one, else null: no other scheme becomes a link. */
export function safeUrl(address) {
  if (!/^https?:\/\//i.test(address)) return null;
  try {
    const url = new URL(address);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}

/**
 * Appends `text` to `parent` as inline Markdown.
 * `unfinished`: the text is still growing, so a mark that nothing closes yet is taken as if it were closed at the end.
 */
export function renderInline(parent, text, { unfinished = false, links = true } = {}) {
  new InlineRenderer(parent, text, unfinished, links).run();
}

class InlineRenderer {
  #at = 0;
  #plain = "";
  #open = [];
  #withoutCloser = new Set();

  constructor(parent, text, unfinished, links) {
    Object.assign(this, { parent, text, unfinished, links });
  }

  run() {
    while (this.#at < this.text.length) this.#step();
    this.#flush();
    if (!this.unfinished) while (this.#open.length) this.#unwrap(this.#open.pop());
  }

  get #target() {
    return this.#open.at(-1)?.node ?? this.parent;
  }

  #flush() {
    if (this.#plain) this.#target.append(this.#plain);
    this.#plain = "";
  }

  #append(node) {
    this.#flush();
    this.#target.append(node);
  }

  #step() {
    const char = this.text[this.#at];
    switch (char) {
      case "\\":
        return this.#escape();
      case "`":
        return this.#code();
      case "*":
      case "_":
      case "~":
        return this.#emphasis(char);
      case "\n":
        this.#plain = this.#plain.trimEnd();
        this.#append(element("br"));
        this.#at++;
        return undefined;
      case "!":
      case "[":
        if (this.links && this.#link()) return undefined;
        break;
      case "<":
        if (this.links && this.#angleLink()) return undefined;
        break;
      case "h":
        if (this.links && this.#bareLink()) return undefined;
        break;
      case "&":
        if (this.#entity()) return undefined;
        break;
      default:
    }
    this.#plain += char;
    this.#at++;
    return undefined;
  }

  #escape() {
    const next = this.text[this.#at + 1];
    if (next === "\n") {
      this.#at++;
    } else if (next !== undefined && ESCAPABLE.test(next)) {
      this.#plain += next;
      this.#at += 2;
    } else {
      this.#plain += "\\";
      this.#at++;
    }
  }

  #code() {
    const ticks = this.#runLength("`");
    const start = this.#at + ticks;
    const end = this.#closingTicks(start, ticks);
    if (end === -1 && !(this.unfinished && start < this.text.length)) {
      this.#plain += "`".repeat(ticks);
      this.#at = start;
      return;
    }
    let code = this.text.slice(start, end === -1 ? undefined : end).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.#append(element("code", {}, code));
    this.#at = end === -1 ? this.text.length : end + ticks;
  }

  #closingTicks(start, ticks) {
    if (this.#withoutCloser.has(ticks)) return -1;
    const mark = "`".repeat(ticks);
    let at = this.text.indexOf(mark, start);
    while (at !== -1) {
      let end = at + ticks;
      while (this.text[end] === "`") end++;
      if (end - at === ticks) return at;
      at = this.text.indexOf(mark, end);
    }
    this.#withoutCloser.add(ticks);
    return -1;
  }

  #runLength(char) {
    let end = this.#at;
    while (this.text[end] === char) end++;
    return end - this.#at;
  }

  #emphasis(char) {
    const length = this.#runLength(char);
    const before = this.text[this.#at - 1] ?? " ";
    const after = this.text[this.#at + length] ?? " ";
    const wordBoth = char === "_" && WORD.test(before) && WORD.test(after);
    const canOpen = !/\s/.test(after) && !wordBoth;
    const canClose = !/\s/.test(before) && !wordBoth;
    this.#at += length;
    let left = length;
    while (left > 0 && length <= 3) {
      const mine = canClose ? this.#open.filter((entry) => entry.char === char && entry.size <= left) : [];
      const closing = mine.findLast((entry) => entry.size === left) ?? mine.at(-1);
      const size = [2, 1].find((n) => n <= left && TAGS[char + n] && !this.#open.some((e) => e.char === char && e.size === n));
      if (closing) {
        this.#close(closing);
        left -= closing.size;
      } else if (canOpen && size) {
        this.#begin(char, size);
        left -= size;
      } else {
        break;
      }
    }
    this.#plain += char.repeat(left);
  }

  #begin(char, size) {
    const node = element(TAGS[char + size]);
    this.#append(node);
    this.#open.push({ char, size, node });
  }

  #close(entry) {
    this.#flush();
    while (this.#open.at(-1) !== entry) this.#unwrap(this.#open.pop());
    this.#open.pop();
  }

  // Nothing closed it: the mark is text, and what followed stands without it.
  #unwrap({ char, size, node }) {
    node.before(char.repeat(size));
    while (node.firstChild) node.before(node.firstChild);
    node.remove();
  }

  #link() {
    const image = this.text[this.#at] === "!";
    const start = this.#at + (image ? 1 : 0);
    if (this.text[start] !== "[") return false;
    const end = this.#closingBracket(start);
    if (end === -1 || this.text[end + 1] !== "(") return false;
    const close = this.#closingParenthesis(end + 1);
    const label = this.text.slice(start + 1, end);
    if (close === -1) {
      // The address is still coming in: until it is whole, only the label is shown.
      if (!this.unfinished || this.text.length - end > LONGEST_LINK || /\s/.test(this.text.slice(end))) return false;
      this.#plain += label;
      this.#at = this.text.length;
      return true;
    }
    const address = this.text.slice(end + 2, close).trim().replace(/\s+(?:"[^"]*"|'[^']*')$/, "").replace(/^<(.*)>$/, "$1");
    const url = safeUrl(address);
    // An image is never fetched (the page loads nothing from other hosts): it becomes a link. An unsafe address stays text.
    if (!url) this.#plain += `${label} (${address})`;
    else this.#append(linkTo(url, label || address));
    this.#at = close + 1;
    return true;
  }

  #closingBracket(start) {
    let depth = 0;
    const limit = Math.min(this.text.length, start + LONGEST_LINK);
    for (let at = start; at < limit; at++) {
      if (this.text[at] === "\\") at++;
      else if (this.text[at] === "[") depth++;
      else if (this.text[at] === "]" && --depth === 0) return at;
      if (depth > 8) return -1;
    }
    return -1;
  }

  #closingParenthesis(start) {
    let depth = 0;
    const limit = Math.min(this.text.length, start + LONGEST_LINK);
    for (let at = start; at < limit; at++) {
      if (this.text[at] === "(") depth++;
      else if (this.text[at] === ")" && --depth === 0) return at;
      else if (this.text[at] === "\n") return -1;
    }
    return -1;
  }

  #angleLink() {
    const end = this.text.slice(this.#at, this.#at + LONGEST_LINK).indexOf(">");
    if (end === -1) return false;
    const address = this.text.slice(this.#at + 1, this.#at + end);
    const url = /\s/.test(address) ? null : safeUrl(address);
    if (!url) return false;
    this.#append(linkTo(url, address));
    this.#at += end + 1;
    return true;
  }

  #bareLink() {
    if (!this.text.startsWith("http", this.#at) || WORD.test(this.text[this.#at - 1] ?? " ")) return false;
    BARE_URL.lastIndex = this.#at;
    let address = BARE_URL.exec(this.text)?.[0].slice(0, LONGEST_LINK);
    if (!address) return false;
    address = address.replace(/[.,:;!?*_~]+$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.replace(/\)+$/, "");
    const url = safeUrl(address);
    if (!url) return false;
    this.#append(linkTo(url, address));
    this.#at += address.length;
    return true;
  }

  #entity() {
    ENTITY.lastIndex = this.#at;
    const match = ENTITY.exec(this.text);
    if (!match) return false;
    this.#plain += ENTITIES[match[1]];
    this.#at += match[0].length;
    return true;
  }
}

function linkTo(url, label) {
  const link = element("a", { href: url, target: "_blank", rel: "noopener noreferrer" });
  renderInline(link, label, { links: false });
  return link;
}
