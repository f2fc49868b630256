/** The conversation: what was said, and how it is sent. No DOM, no network. */

/**
 * A turn is `{role, content, reasoning, toolCalls, finishReason, error, timing}`. Assistant turns have all of these; user
 * turns have `content` only. A tool call is `{id, name, arguments, result}`; its result is null until somebody gives one.
 */
export function assistantTurn() {
  return { role: "assistant", content: "", reasoning: "", toolCalls: [], finishReason: null, error: null, timing: null };
}

/** Adds one streamed `delta` to an assistant turn. */
export function addDelta(turn, delta) {
  if (delta.content) turn.content += delta.content;
  const reasoning = delta.reasoning_content ?? delta.reasoning;
  if (reasoning) turn.reasoning += reasoning;
  for (const [position, piece] of (delta.tool_calls ?? []).entries()) {
    const index = piece.index ?? position;
    const call = (turn.toolCalls[index] ??= { id: "", name: "", arguments: "", result: null });
    if (piece.id) call.id = piece.id;
    call.name += piece.function?.name ?? "";
    call.arguments += piece.function?.arguments ?? "";
  }
}

export class Conversation {
  turns = [];

  static fromJson(turns) {
    const conversation = new Conversation();
    if (Array.isArray(turns)) conversation.turns = turns.filter((turn) => turn?.role === "user" || turn?.role === "assistant");
    return conversation;
  }

  get isEmpty() {
    return this.turns.length === 0;
  }

  /** Tool calls of the last turn that still lack a result. */
  get pendingCalls() {
    return (this.turns.at(-1)?.toolCalls ?? []).filter((call) => call.result === null);
  }

  /** Drops `turn` and everything after it. */
  dropFrom(turn) {
    const at = this.turns.indexOf(turn);
    if (at !== -1) this.turns.length = at;
  }

  /** The messages of a request, in OpenAI's shape. */
  messages(systemPrompt) {
    const messages = systemPrompt.trim() ? [{ role: "system", content: systemPrompt }] : [];
    for (const turn of this.turns) {
      if (turn.role === "user") messages.push({ role: "user", content: turn.content });
      else messages.push(...assistantMessages(turn));
    }
    return messages;
  }
}

// A turn that brought nothing (an error before the first token) is not part of what the model is shown.
function assistantMessages(turn) {
  const answered = turn.toolCalls.filter((call) => call.result !== null);
  if (!turn.content && !answered.length) return [];
  const message = { role: "assistant", content: turn.content || null };
  if (answered.length) {
    message.tool_calls = answered.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments || "{}" },
    }));
  }
  const results = answered.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result }));
  return [message, ...results];
}
