/** The server's HTTP interface, as this page uses it. Addresses are relative, so a proxy may mount the page under a path. */

import { readStored } from "./storage.js";
import { SseParser } from "./sse_parser.js";

/** What the server answered in place of a result, in OpenAI's shape `{"error": {message, type, param, code}}`. */
export class ApiError extends Error {
  constructor({ message, type = null, param = null, code = null }, status = 0, retryAfter = null) {
    super(message);
    Object.assign(this, { type, param, code, status, retryAfter });
  }
}

/** Fetches `path` with the API key; throws ApiError for an answer that is not a success or never came. */
export async function request(path, { body, signal } = {}) {
  const headers = {};
  const key = readStored(sessionStorage, "api-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = body ? "POST" : "GET";
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ message: "The server can't be reached. Is it running?", type: "connection_error" });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  const retryAfter = response.headers.get("Retry-After");
  try {
    const { error } = JSON.parse(text);
    if (error?.message) return new ApiError(error, response.status, retryAfter);
  } catch {
    // Not JSON: a proxy's page, say. Its beginning is shown as it is.
  }
  const message = text.slice(0, 400) || response.statusText || "The server gave no reason.";
  return new ApiError({ message }, response.status, retryAfter);
}

/** Runs a chat completion; yields its chunks as they arrive. Throws ApiError, also for an error inside the stream. */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", { body, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  let finished = false;
  try {
    while (!finished) {
      const { done, value } = await readPiece(reader);
      if (done) break;
      for (const data of parser.feed(decoder.decode(value, { stream: true }))) {
        if (data === "[DONE]") {
          finished = true;
          break;
        }
        yield chunkOf(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!finished) throw new ApiError({ message: "The connection closed before the answer ended.", type: "connection_error" });
}

async function readPiece(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ message: "The connection broke before the answer ended.", type: "connection_error" });
  }
}

function chunkOf(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError({ message: `The server sent a chunk that is not JSON: ${data.slice(0, 200)}`, type: "protocol_error" });
  }
  if (chunk.error) throw new ApiError(chunk.error);
  return chunk;
}

/** Names of the models that the server offers. */
export async function listModels() {
  const { data } = await (await request("v1/models")).json();
  return data.map((model) => model.id);
}
