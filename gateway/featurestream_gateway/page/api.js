// What the page asks the gateway for.

const KEPT = "featurestream.token"; // in sessionStorage: gone with the tab, and in no file
const QUIET_MS = 20_000; // a live connection that says nothing for so long is dead: its events come every other second

/** An answer that is an error (RFC 9457), or none at all. */
export class Problem extends Error {
  constructor(facts) {
    super(facts.detail ?? "");
    Object.assign(this, { title: facts.title, detail: facts.detail, hint: facts.hint, status: facts.status });
    this.kind = String(facts.type ?? "").split(":").pop();
    this.facts = facts;
  }

  /** Whether it is the way that is broken, and the same request may do later. */
  get isLost() {
    return this.status === 0;
  }

  get needsToken() {
    return this.status === 401;
  }
}

const lost = () => new Problem({ title: "The gateway does not answer", detail: "nothing came back", status: 0 });

export function setToken(text) {
  sessionStorage.setItem(KEPT, text);
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT);
}

/** Return a path with its parameters. */
export function path(parts, parameters = {}) {
  const query = new URLSearchParams(parameters);
  const text = `/v1/${parts.map(encodeURIComponent).join("/")}`;
  return query.size ? `${text}?${query}` : text;
}

async function ask(url, accept, signal) {
  const headers = { Accept: accept };
  const token = sessionStorage.getItem(KEPT);
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(url, { headers, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw error.name === "AbortError" ? error : lost();
  }
  if (answer.ok) return answer;
  const facts = await answer.json().catch(() => ({}));
  throw new Problem({ title: `The gateway answered ${answer.status}`, detail: answer.statusText, ...facts, status: answer.status });
}

/** Return the JSON values of an answer; throws Problem. */
export async function get(url, signal) {
  const answer = await ask(url, "application/json", signal);
  return answer.json().catch(() => { throw lost(); });
}

/** Return a picture; throws Problem. */
export async function getImage(url, signal) {
  const answer = await ask(url, "image/png", signal);
  return answer.blob().catch(() => { throw lost(); });
}

/** Yield [event, data] of a live connection until it ends; throws Problem. EventSource could not send a token. */
export async function* events(url, signal) {
  const ends = new AbortController();
  signal.addEventListener("abort", () => ends.abort());
  const watch = { timer: 0 };
  const alive = () => {
    clearTimeout(watch.timer);
    watch.timer = setTimeout(() => ends.abort(), QUIET_MS);
  };
  alive();
  try {
    const answer = await ask(url, "text/event-stream", ends.signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      const blocks = (rest + value.replaceAll("\r\n", "\n")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parse(block);
        if (found) yield found;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem) throw error;
    throw lost();
  } finally {
    clearTimeout(watch.timer);
    ends.abort();
  }
}

function parse(block) {
  let event = "message";
  const lines = [];
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    const name = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (name === "event") event = value;
    if (name === "data") lines.push(value);
  }
  return lines.length ? [event, JSON.parse(lines.join("\n"))] : null;
}
