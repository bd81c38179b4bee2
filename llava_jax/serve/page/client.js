/** Requests to the server: the key, the stream of an answer, and errors in plain words. */

const KEY = "llava_jax.key"; // sessionStorage: gone when the tab closes
const FAILED = "The server failed on this request";
const EXPLANATIONS = {
  401: "The server needs a key",
  413: "The request is too large; remove images or start a new chat",
  429: "The server is busy",
  503: "The server is not ready",
};

/** A failed request. `message` is for the user; `status` is 0 if there was no response; `wait` is in seconds. */
export class RequestError extends Error {
  constructor(message, { status = 0, requestId = "", wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, requestId, wait });
  }
}

export function storeKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Fetches from this server with the key. Throws RequestError, or AbortError if `options.signal` aborted. */
export async function request(url, options = {}) {
  const headers = { ...options.headers };
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server cannot be reached. Check that it is running, then try again.");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  const id = requestId(response);
  const wait = Number(response.headers.get("Retry-After"));
  const explanation = EXPLANATIONS[response.status] ?? (response.status >= 500 ? FAILED : "");
  const details = response.status === 401 ? null : body?.error;
  let message = sentence(explanation, details, id) || `The server refused the request (status ${response.status}).`;
  if (wait > 0) message += ` Try again in ${wait} s.`;
  return new RequestError(message, { status: response.status, requestId: id, wait });
}

/** One sentence of an explanation and the server's message, without the request id, which is shown apart. */
function sentence(explanation, error, id) {
  const details = error?.message?.replace(` (request ${id})`, "") ?? "";
  const text = [explanation, details].filter(Boolean).join(": ");
  return text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

function requestId(response) {
  return response.headers.get("X-Request-Id") ?? "";
}

/** Asks for an answer and calls `onText` with each part of it. Returns {model, finish, usage}.
 *
 * Throws RequestError also for an error inside the stream and for a stream that ends early.
 */
export async function streamAnswer(body, signal, onText) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const id = requestId(response);
  const result = { model: body.model, finish: "", usage: null };
  for await (const data of serverEvents(response)) {
    if (data === "[DONE]") return result;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestError(sentence(FAILED, chunk.error, id), { requestId: id });
    const choice = chunk.choices[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    result.model = chunk.model ?? result.model;
    result.finish = choice?.finish_reason ?? result.finish;
    result.usage = chunk.usage ?? result.usage;
  }
  throw new RequestError("The connection ended before the answer was complete.", { requestId: id });
}

/** Yields the data of each event. Lines end with \n or \r\n; comments, which are heartbeats, are skipped. */
async function* serverEvents(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}
