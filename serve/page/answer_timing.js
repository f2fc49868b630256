/** Times of one answer: time to first token, tokens, tokens per second. Clock in milliseconds. */

const WINDOW_MS = 1500;

export class AnswerTiming {
  #arrivals = [];
  #usageTokens = null;
  firstAt = null;
  lastAt = null;
  pieces = 0;

  constructor(now) {
    this.sentAt = now;
  }

  /** A piece of the answer came. */
  piece(now) {
    this.firstAt ??= now;
    this.lastAt = now;
    this.pieces += 1;
    this.#arrivals.push(now);
    while (this.#arrivals[0] < now - WINDOW_MS) this.#arrivals.shift();
  }

  /** The server's own count came (at the end of the stream). */
  usage(tokens) {
    this.#usageTokens = tokens;
  }

  /** Tokens so far; until the server says, pieces stand for tokens. */
  get tokens() {
    return this.#usageTokens ?? this.pieces;
  }

  /** Tokens per second over the last moment, for the live curve. */
  currentRate(now) {
    const recent = this.#arrivals.filter((at) => at >= now - WINDOW_MS);
    if (recent.length < 2) return 0;
    return (1000 * (recent.length - 1)) / Math.max(recent.at(-1) - recent[0], 1);
  }

  /** `{tokens, firstTokenMs, rate}`; what is not known yet is null. The rate is that after the first token. */
  summary() {
    const firstTokenMs = this.firstAt === null ? null : this.firstAt - this.sentAt;
    const span = this.lastAt - this.firstAt;
    const rate = this.tokens > 1 && span > 0 ? (1000 * (this.tokens - 1)) / span : null;
    return { tokens: this.tokens, firstTokenMs, rate };
  }
}
