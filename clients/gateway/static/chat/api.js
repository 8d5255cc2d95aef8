// The gateway's API as this page uses it. Failures are `Failure`s whose message can be shown as it is.
import { readEvents } from "./sse.js";

const KEY = "swarm.key"; // kept as long as the tab

export class Failure extends Error {
  constructor(message, { status = 0, after = null } = {}) {
    super(message);
    this.status = status;
    this.after = after; // seconds after which another try makes sense
  }
}

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function keepApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export async function readModels(signal) {
  const response = await ask("/v1/models", { signal });
  const found = await response.json();
  return (Array.isArray(found.data) ? found.data : []).map((model) => String(model.id));
}

// What comes of a request, as it comes: {news} of the swarm, {chunk} of the answer. Ends when the answer is complete.
export async function* complete(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
    signal,
  });
  for await (const { comment, data } of readEvents(response.body, signal)) {
    if (comment?.startsWith("swarm ")) yield { news: parsed(comment.slice(6)) };
    else if (data === "[DONE]") return;
    else if (data !== undefined) yield { chunk: unless(parsed(data)) };
  }
  throw new Failure("The connection to the gateway broke off in the middle of the answer.");
}

function unless(chunk) {
  if (chunk?.error) throw new Failure(sentence(chunk.error.message, "The gateway gave up on this answer."));
  return chunk;
}

async function ask(path, options) {
  const key = apiKey();
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The gateway can't be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const after = Number(response.headers.get("Retry-After")) || null;
  return new Failure(sentence(body?.error?.message, `The gateway answered ${response.status}.`), {
    status: response.status,
    after,
  });
}

function sentence(text, otherwise) {
  if (typeof text !== "string" || !text.trim()) return otherwise;
  const words = text.trim();
  const whole = words[0].toUpperCase() + words.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
