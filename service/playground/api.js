// Calls to the service's public API; problem responses are thrown as errors.

export const base = new URL("..", import.meta.url); // address of the service

const KEY = "unrolled-key";
const MOST_WAITS = 20; // for one request

/** Dispatches "ready", "starting" and "away" when the service's state changes; and "ready"
 * again after a failed request, so that panels repeat what failed. */
export const health = new EventTarget();
export let state = "unknown";
let timer;
let failures = 0; // in a row
let doubted = false;

/** A problem response (RFC 9457), or status 0 if the service cannot be reached. */
export class Problem extends Error {
  constructor(status, problem) {
    super(problem.detail ?? "");
    Object.assign(this, { status, problem });
  }
}

export const key = () => sessionStorage.getItem(KEY) ?? "";
/** Keep a key, without characters that no header may hold. */
export const setKey = (value) =>
  sessionStorage.setItem(KEY, value.replace(/[^\x21-\x7e]/g, ""));

/** The response: JSON as a value, all else as text. With a body the request is a POST. */
export async function ask(path, body) {
  const headers = key() ? { "X-API-Key": key() } : {};
  let answer;
  try {
    answer = await fetch(new URL(path, base), {
      method: body ? "POST" : "GET",
      headers: body ? { ...headers, "Content-Type": "application/json" } : headers,
      body: body && JSON.stringify(body),
    });
  } catch {
    throw away();
  }
  const kind = answer.headers.get("Content-Type") ?? "";
  const value = kind.includes("json") ? await answer.json() : await answer.text();
  if (answer.ok) return value;
  const title = answer.statusText || `Status ${answer.status}`; // from a proxy
  const after = Number(answer.headers.get("Retry-After")) || undefined;
  const problem = typeof value === "object" ? value : { title };
  throw new Problem(answer.status, { retry_after: after, ...problem });
}

/** The same; while the service is overloaded or the rate limit exceeded it waits and retries. */
export async function askPatiently(path, body, waits = MOST_WAITS) {
  try {
    return await ask(path, body);
  } catch (error) {
    const after = error.problem?.retry_after;
    const busy = error.status === 429 || (error.status === 503 && after);
    if (!busy || !waits) throw error;
    await new Promise((resolve) => setTimeout(resolve, 1000 * (after ?? 1)));
    return askPatiently(path, body, waits - 1);
  }
}

/** The problem of a service that cannot be reached; starts polling for it. */
export function away() {
  doubted = true;
  clearTimeout(timer);
  timer = setTimeout(poll, Math.min(200 * 2 ** failures++, 8000));
  return new Problem(0, {
    title: "The service cannot be reached",
    detail: "Retrying. Your last action is repeated once the service is back.",
  });
}

/** Poll the readiness of the service, now and from now on. */
export async function poll() {
  clearTimeout(timer);
  let seen;
  try {
    const answer = await fetch(new URL("readyz", base), { cache: "no-store" });
    seen = answer.ok ? "ready" : "starting";
    await answer.json();
  } catch {
    seen = "away";
  }
  clearTimeout(timer); // set by another poll meanwhile
  timer = setTimeout(poll, seen === "ready" ? 5000 : 1000);
  if (!doubted) failures = 0;
  if (seen === state && !doubted) return;
  state = seen;
  doubted = false;
  health.dispatchEvent(new Event(seen));
}
