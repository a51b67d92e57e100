// The service's public API: asked, and its refusals told as errors.

export const base = new URL("..", import.meta.url); // where the service is

const KEY = "unrolled-key";

/** Says "ready", "starting" and "away" as the service comes and goes; and "ready" again
 * some time after something has failed, which is then to be done once more. */
export const health = new EventTarget();
export let state = "unknown";
let timer;
let failures = 0; // in a row
let doubted = false;

/** What the service refused with: an RFC 9457 problem, or that it is not there. */
export class Problem extends Error {
  constructor(status, told) {
    super(told.detail ?? "");
    Object.assign(this, { status, told });
  }
}

export const key = () => sessionStorage.getItem(KEY) ?? "";
/** Keep a key, without what no header can hold. */
export const setKey = (value) =>
  sessionStorage.setItem(KEY, value.replace(/[^\x21-\x7e]/g, ""));

/** The answer, JSON as a value and all else as text; a POST where there is a body. */
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
  const title = answer.statusText || `Refused with status ${answer.status}`; // by a proxy
  const told = typeof value === "object" ? value : { title };
  throw new Problem(answer.status, told);
}

/** The problem of a service that is not there; it is looked for from now on. */
export function away() {
  doubted = true;
  clearTimeout(timer);
  timer = setTimeout(look, Math.min(200 * 2 ** failures++, 8000));
  return new Problem(0, {
    title: "The service cannot be reached",
    detail: "It is looked for; what you did is done again once it is back.",
  });
}

/** Look whether the service is there, and go on looking. */
export async function look() {
  clearTimeout(timer);
  let seen;
  let told = {};
  try {
    const answer = await fetch(new URL("readyz", base), { cache: "no-store" });
    seen = answer.ok ? "ready" : "starting";
    told = await answer.json();
  } catch {
    seen = "away";
  }
  clearTimeout(timer); // of another look meanwhile
  timer = setTimeout(look, seen === "ready" ? 5000 : 1000);
  if (!doubted) failures = 0;
  if (seen === state && !doubted) return;
  state = seen;
  doubted = false;
  health.dispatchEvent(new CustomEvent(seen, { detail: told }));
}
