/** Prometheus' text format, as far as this page reads it. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(\{.*\})?\s+(\S+)/;

/** Values by metric name; samples that differ in labels only are added up. Lines that are no samples are passed over. */
export function parsePrometheus(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const match = SAMPLE.exec(line);
    if (!match) continue;
    const value = numberOf(match[3]);
    if (!Number.isNaN(value)) values.set(match[1], (values.get(match[1]) ?? 0) + value);
  }
  return values;
}

function numberOf(text) {
  if (text === "+Inf") return Infinity;
  if (text === "-Inf") return -Infinity;
  return Number(text);
}
