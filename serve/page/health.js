/** What /health says. */

const PHASES = ["loading", "compiling", "ready", "draining", "dead"];

/** `{phase, text, done, total}` from the answer's body; `phase` is "offline" when the server gave no answer. */
export function parseHealth(body) {
  const { status } = JSON.parse(body);
  const phase = PHASES.find((name) => status.startsWith(name)) ?? "loading";
  const steps = /(\d+)\s*\/\s*(\d+)/.exec(status);
  const percent = /(\d+)\s*%/.exec(status);
  if (steps) return { phase, text: status, done: Number(steps[1]), total: Number(steps[2]) };
  return { phase, text: status, done: percent ? Number(percent[1]) : null, total: percent ? 100 : null };
}

/** Asks /health. A server that is not ready says so with a 503, which is an answer too. */
export async function fetchHealth() {
  try {
    return parseHealth(await (await fetch("health", { cache: "no-store" })).text());
  } catch {
    return { phase: "offline", text: "offline", done: null, total: null };
  }
}
