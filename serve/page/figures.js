/** Numbers as people read them. */

export function formatRate(rate) {
  return rate >= 100 ? rate.toFixed(0) : rate.toFixed(1);
}

export function formatMilliseconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

export function formatCount(count) {
  return Math.round(count).toLocaleString("en");
}

/** What stands below an answer: how it ended, its length, its speed. */
export function figures({ finishReason, timing }) {
  const parts = [];
  if (finishReason === "length") parts.push("cut at the token limit");
  if (finishReason === "stopped") parts.push("stopped");
  if (timing?.tokens) parts.push(timing.tokens === 1 ? "1 token" : `${formatCount(timing.tokens)} tokens`);
  if (timing?.rate) parts.push(`${formatRate(timing.rate)} tok/s`);
  if (timing && timing.firstTokenMs !== null) parts.push(`first token ${formatMilliseconds(timing.firstTokenMs)}`);
  return parts.join("  ·  ");
}
