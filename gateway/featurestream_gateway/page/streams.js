// The streams: how fast each grows, its passes, what retention has left, and what it takes on disk.

import { Keyed, el, fact, mark, problem, say } from "./elements.js";
import { ago, bytes, clock, count, counted, rate } from "./numbers.js";

const PRODUCERS = {
  live: "its producer runs",
  ended: "its producer has ended by itself",
  lost: "its producer is gone without a word: the same command goes on",
  none: "no producer has begun",
};

/** Return the cards. `choose(name)` is called for the one that a person picks. */
export function streamCards(choose) {
  const empty = document.getElementById("no-stream");
  const problems = new Keyed(document.getElementById("stream-problems"), (error) => ({ node: problem(error), update() {} }));
  const cards = new Keyed(document.getElementById("stream-list"), (item) => card(item, choose));
  return (state) => {
    empty.hidden = state.streams.length + state.problems.length > 0;
    problems.update(state.problems.map(named), (error) => `${error.stream} ${error.detail}`);
    cards.update(state.streams.map((stream) => ({ stream, state })), (item) => item.stream.stream);
  };
}

function named(error) {
  return { ...error, title: `Stream ${error.stream} cannot be shown` };
}

function card({ stream: { stream: name } }, choose) {
  const pick = el("button", { type: "button", class: "pick", onclick: () => choose(name) }, name);
  const producer = el("span", { class: "chip" });
  const model = el("p", { class: "quiet" });
  const speed = el("data", { class: "big" });
  const speedBytes = el("span", { class: "quiet" });
  const bar = el("span", { class: "bar" }, el("span"));
  const facts = {};
  const pairs = ["passes", "on the log", "retention edge", "disk", "newest batch", "readers"].map((what) => {
    facts[what] = el("data", { "data-fact": what });
    return el("div", {}, el("dt", {}, what), el("dd", {}, facts[what], what === "passes" ? bar : null));
  });
  const node = el("li", { class: "card", "data-stream": name },
    el("div", { class: "heading" }, el("h3", {}, pick), producer),
    model,
    el("p", { class: "speed" }, speed, el("span", { class: "unit" }, " rows/s"), speedBytes),
    el("dl", { class: "facts" }, pairs));
  return { node, update };

  function update({ stream, state }) {
    mark(pick, "aria-current", stream.stream === state.chosen ? "true" : null);
    say(producer, stream.producer);
    mark(producer, "data-state", stream.producer);
    mark(producer, "title", PRODUCERS[stream.producer]);
    say(model, `${stream.model}, weights ${stream.weights} · ${counted(stream.samples, "sample")} · ${stream.taps.join(", ")}`);
    fact(speed, stream.rows_per_s, rate(stream.rows_per_s));
    say(speedBytes, stream.bytes_per_s === null ? " measuring …" : ` ${bytes(stream.bytes_per_s)}/s`);
    const asked = stream.passes === null ? "endless" : `of ${count(stream.passes)}`;
    fact(facts.passes, stream.passes_done, `${count(stream.passes_done)} ${asked}${stream.complete ? ", complete" : ""}`);
    bar.hidden = stream.passes === null;
    bar.firstChild.style.width = `${(100 * stream.passes_done) / Math.max(stream.passes ?? 1, 1)}%`;
    const held = stream.next_batch - stream.first_batch;
    const range = held > 0 ? ` (${count(stream.first_batch)} to ${count(stream.next_batch - 1)})` : "";
    fact(facts["on the log"], stream.next_batch, `${counted(held, "batch", "batches")}${range}`);
    fact(facts["retention edge"], stream.first_batch, edge(stream, state.now), stream.first_appended_at);
    fact(facts.disk, stream.bytes, bytes(stream.bytes), `${count(stream.bytes)} bytes`);
    fact(facts["newest batch"], stream.last_appended_at, ago(stream.last_appended_at, state.now), stream.last_appended_at);
    fact(facts.readers, stream.readers.length, count(stream.readers.length));
  }
}

function edge(stream, now) {
  if (!stream.first_appended_at) return "nothing yet";
  const gone = stream.first_batch ? `batch ${count(stream.first_batch)}` : "batch 0, nothing deleted";
  return stream.first_batch ? `${gone}, of ${clock(stream.first_appended_at, now)}` : gone;
}
