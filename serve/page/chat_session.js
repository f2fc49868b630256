/** Runs the conversation: sends it, adds what streams back, stops, goes on. Tells its listener; knows no DOM. */

import { ApiError, streamChat } from "./api.js";
import { AnswerTiming } from "./answer_timing.js";
import { addDelta, assistantTurn, Conversation } from "./conversation.js";
import { readStoredJson, writeStored } from "./storage.js";

/**
 * `requestOptions()` gives the request's fields but `messages` and `stream`, and the `systemPrompt`. `listener` has
 * `turnAdded(turn)`, `turnChanged(turn)`, `turnEnded(turn)`, `turnsReplaced()` and `timing(turn, timing)`.
 */
export class ChatSession {
  #abort = null;

  constructor(requestOptions, listener) {
    this.requestOptions = requestOptions;
    this.listener = listener;
    this.conversation = Conversation.fromJson(readStoredJson(sessionStorage, "turns", []));
  }

  get running() {
    return this.#abort !== null;
  }

  ask(text) {
    this.#add({ role: "user", content: text });
    return this.#answer();
  }

  stop() {
    this.#abort?.abort();
  }

  /** Answers the last question (or tool results) anew. */
  regenerate(turn) {
    this.conversation.dropFrom(turn);
    this.listener.turnsReplaced();
    return this.#answer();
  }

  /** Replaces a question and everything that came of it. */
  edit(turn, text) {
    this.conversation.dropFrom(turn);
    this.listener.turnsReplaced();
    return this.ask(text);
  }

  /** Goes on once every call of the last turn has its result. */
  continueWithResults() {
    if (this.conversation.pendingCalls.length || this.running) return undefined;
    return this.#answer();
  }

  /** Empties the conversation; returns its turns, for `restore`. */
  clear() {
    this.stop();
    const { turns } = this.conversation;
    this.restore([]);
    return turns;
  }

  restore(turns) {
    this.conversation.turns = turns;
    this.#save();
    this.listener.turnsReplaced();
  }

  #add(turn) {
    this.conversation.turns.push(turn);
    this.#save();
    this.listener.turnAdded(turn);
  }

  #save() {
    writeStored(sessionStorage, "turns", JSON.stringify(this.conversation.turns));
  }

  async #answer() {
    this.stop();
    const { systemPrompt, ...options } = this.requestOptions();
    const messages = this.conversation.messages(systemPrompt);
    const body = { ...options, messages, stream: true, stream_options: { include_usage: true } };
    const abort = (this.#abort = new AbortController());
    const turn = assistantTurn();
    const timing = new AnswerTiming(performance.now());
    this.#add(turn);
    try {
      for await (const chunk of streamChat(body, abort.signal)) this.#take(turn, timing, chunk);
    } catch (error) {
      if (error.name === "AbortError") turn.finishReason = "stopped";
      else if (error instanceof ApiError) turn.error = { ...error, message: error.message };
      else throw error;
    } finally {
      if (this.#abort === abort) this.#abort = null;
      turn.timing = timing.summary();
      // A call that was cut off is no call that somebody could answer.
      if (turn.finishReason === "stopped" || turn.error) turn.toolCalls = [];
      if (this.conversation.turns.includes(turn)) this.#save();
      this.listener.turnEnded(turn);
    }
  }

  #take(turn, timing, chunk) {
    if (chunk.usage) timing.usage(chunk.usage.completion_tokens);
    const choice = chunk.choices?.[0];
    if (choice) {
      const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
      if (content || reasoning || calls?.length) timing.piece(performance.now());
      addDelta(turn, choice.delta ?? {});
      turn.finishReason = choice.finish_reason ?? turn.finishReason;
    }
    this.listener.timing(turn, timing);
    this.listener.turnChanged(turn);
  }
}
