/** What a person pastes as tools, into OpenAI's `tools`. */

export const EXAMPLE = JSON.stringify(
  ["add", "mul"].map((name) => ({
    type: "function",
    function: {
      name,
      description: name === "add" ? "Compute the sum of two numbers" : "Compute the product of two numbers",
      parameters: {
        type: "object",
        properties: { a: { type: "integer" }, b: { type: "integer" } },
        required: ["a", "b"],
      },
    },
  })),
  null,
  2,
);

/**
 * Reads tools from JSON text: a list or a single one, as `{"type": "function", "function": {..}}`, as a bare function, or
 * as a JSON schema, which becomes a function named by its title. Throws Error with a message for people.
 */
export function parseTools(text) {
  if (!text.trim()) return [];
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON yet: ${error.message}`);
  }
  const tools = (Array.isArray(value) ? value : (value?.tools ?? [value])).map(toolOf);
  const names = tools.map((tool) => tool.function.name);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw new Error(`Two tools are named “${twice}”.`);
  return tools;
}

function toolOf(value, index) {
  const where = `Tool ${index + 1}`;
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error(`${where} is not an object.`);
  if (value.type === "function" && value.function) return toolOf(value.function, index);
  if (typeof value.name === "string") {
    if (!/^[\w.-]{1,64}$/.test(value.name)) throw new Error(`${where}: the name “${value.name}” may hold letters, digits, _ . and - only.`);
    const { name, description, parameters = value.input_schema ?? { type: "object", properties: {} }, strict } = value;
    return { type: "function", function: { name, description, parameters, strict } };
  }
  if (value.type === "object" || value.properties) {
    const name = (value.title ?? "answer").replace(/[^\w.-]+/g, "_").slice(0, 64) || "answer";
    return { type: "function", function: { name, description: value.description, parameters: value } };
  }
  throw new Error(`${where} has neither a “name” nor “properties”.`);
}
