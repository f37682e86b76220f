// Experiments as lanes on the stream's axis: from the first batch that is left to the newest one.

import { Keyed, command, el, fact, mark, say } from "./elements.js";
import { clock, count, counted, measured, rate } from "./numbers.js";

const WINDOW_MS = 10_000; // a speed that the experiment does not tell itself is taken over so long

/** Return the lanes. `colour(name)` is an experiment's; `draw(name, wanted)` puts its curves into the picture. */
export function experimentLanes(colour, draw) {
  const place = document.getElementById("experiments");
  const none = el("div", { class: "empty", hidden: true });
  const axis = ruler();
  const list = el("ul", { class: "lanes" });
  const lanes = new Keyed(list, (item) => lane(item, colour, draw));
  place.append(none, axis.node, list);
  return (state) => {
    const { stream, experiments } = state;
    const there = experiments.length > 0;
    none.hidden = there;
    axis.node.hidden = list.hidden = !there;
    if (!there) {
      if (none.dataset.of !== stream.stream) none.replaceChildren(...invitation(stream));
      none.dataset.of = stream.stream;
      return;
    }
    const span = spanOf(stream);
    axis.update(state, span);
    lanes.update(experiments.map((experiment) => ({ experiment, state, span })), ({ experiment }) => `${stream.stream}/${experiment.name}`);
  };
}

function invitation(stream) {
  return [
    el("p", {}, el("strong", {}, "No experiment reads this stream yet."), " One that does appears here by itself:"),
    command(`featurectl train ${stream.stream} --tap ${stream.taps[0]} --name E1`),
  ];
}

/** The part of the stream that the axis shows, as a function from batches to percent. */
function spanOf({ first_batch: first, next_batch: end }) {
  const length = Math.max(end - first, 1);
  return { first, end, at: (batch) => Math.min(Math.max((100 * (batch - first)) / length, 0), 100) };
}

function ruler() {
  const left = el("span", { class: "end" });
  const right = el("span", { class: "end" });
  const track = el("div", { class: "track ruler", "aria-hidden": "true" });
  const node = el("div", { class: "lane axis" }, el("div", { class: "track-cell" }, el("div", { class: "ends" }, left, right), track));
  let drawn = "";
  return { node, update };

  function update({ stream, report, now }, span) {
    say(left, `batch ${count(span.first)} · ${clock(stream.first_appended_at, now)}`);
    say(right, `${clock(stream.last_appended_at, now)} · batch ${count(Math.max(span.end - 1, span.first))}`);
    const size = report?.pass_batches ?? 0;
    const key = [span.first, span.end, size].join();
    if (key === drawn) return;
    drawn = key;
    track.replaceChildren(...passMarks(span, size));
  }
}

/** Marks where passes begin, as many as can be told apart. */
function passMarks(span, size) {
  if (!size) return [];
  const first = Math.ceil(span.first / size);
  const last = Math.ceil(span.end / size) - 1;
  const step = Math.max(1, Math.ceil((last - first + 1) / 10));
  const marks = [];
  for (let number = first; number <= last; number += step) {
    const node = el("span", { class: "pass" }, `pass ${number}`);
    node.style.left = `${span.at(number * size)}%`;
    node.style.maxWidth = `${span.at((number + step) * size) - span.at(number * size)}%`;
    marks.push(node);
  }
  return marks;
}

function lane({ experiment: { name } }, colour, draw) {
  const box = el("input", { type: "checkbox", onchange: () => draw(name, box.checked) });
  const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
  swatch.style.setProperty("--series", colour(name));
  const chip = el("span", { class: "chip" });
  const done = el("span", { class: "done" });
  const behind = el("span", { class: "behind" });
  const head = el("span", { class: "head" });
  const gone = el("span", { class: "gone", hidden: true }, "gone");
  const track = el("div", { class: "track", role: "img" }, done, behind, head, gone);
  done.style.setProperty("--series", colour(name));
  head.style.setProperty("--series", colour(name));
  const facts = {};
  const pairs = ["position", "lag", "speed", "progress", "newest"].map((what) => {
    facts[what] = el("data", { "data-fact": what });
    return el("div", {}, el("dt", {}, what), el("dd", {}, facts[what]));
  });
  const looks = [];
  const node = el("li", { class: "lane", "data-experiment": name },
    el("div", { class: "who" }, el("label", { title: "Show its learning curve" }, box, swatch, el("span", { class: "name" }, name)), chip),
    el("div", { class: "track-cell" }, track),
    el("dl", { class: "facts" }, pairs));
  return { node, update };

  function update({ experiment, state, span }) {
    const { position, record } = experiment;
    box.checked = state.drawn.has(name);
    const [word, look, title] = stateOf(experiment);
    say(chip, word);
    mark(chip, "data-state", look);
    mark(chip, "title", title);
    const where = position === null ? "not known yet" : position.row ? `batch ${count(position.batch)}, row ${count(position.row)}` : `batch ${count(position.batch)}`;
    fact(facts.position, position === null ? null : `${position.batch}:${position.row}`, where);
    const lag = experiment.lag_batches;
    const lagRows = experiment.lag_rows === null ? "" : ` · ${counted(experiment.lag_rows, "row")}`;
    fact(facts.lag, lag, lag === null ? (record ? "reads no more" : "–") : lag ? `${counted(lag, "batch", "batches")}${lagRows}` : "none");
    fact(facts.speed, ...speedOf(experiment, looks, state.now));
    const epochs = record?.epochs;
    facts.progress.closest("div").hidden = !epochs;
    if (epochs) fact(facts.progress, record.epoch, `epoch ${count(record.epoch)} of ${count(epochs)} · step ${count(record.step)}`);
    const main = mainMetric(record);
    facts.newest.closest("div").hidden = main === null;
    if (main) fact(facts.newest, main[1], `${main[0]} ${measured(main[1])}`);
    paint(experiment, span);
    mark(track, "aria-label", `${name}: reads next ${where}; the stream has batches ${span.first} to ${span.end - 1}; ${lag === null ? "lag not known" : `${lag} behind`}`);
  }

  function paint({ position, record, lag_batches: lag }, span) {
    const from = span.at(record?.start?.batch ?? span.first);
    const at = position === null ? from : span.at(position.batch);
    gone.hidden = position === null || position.batch >= span.first;
    done.style.left = `${Math.min(from, at)}%`;
    done.style.width = `${Math.max(at - from, 0)}%`;
    behind.style.left = `${at}%`;
    behind.style.width = `${position === null || lag === null ? 0 : span.at(position.batch + lag) - at}%`;
    head.style.left = `${at}%`;
    head.hidden = position === null;
  }
}

/** Return an experiment's state in a word, how it looks, and what it means. */
function stateOf({ state, live, record }) {
  if (state !== null && state !== undefined) return [state, state, record?.reason ?? null];
  return live ? ["reading", "live", "it holds its reader's lease"] : ["away", "none", "nobody holds its reader's lease"];
}

/** Return its speed as a fact: what it says of itself, or how its position moves. */
function speedOf({ position, record }, looks, now) {
  if (record?.rows_per_s !== null && record?.rows_per_s !== undefined) {
    return [record.rows_per_s, `${rate(record.rows_per_s)} rows/s`];
  }
  if (position === null) return [null, "–"];
  if (looks.length && position.batch < looks.at(-1)[1]) looks.length = 0;
  looks.push([now, position.batch]);
  while (looks.length > 2 && now - looks[1][0] >= WINDOW_MS) looks.shift();
  const [since, before] = looks[0];
  if (now <= since) return [null, "–"];
  const speed = (1000 * (position.batch - before)) / (now - since);
  return [speed, `${rate(speed)} batches/s`];
}

function mainMetric(record) {
  const metrics = Object.entries(record?.metrics ?? {});
  return metrics.find(([name]) => name === record.main_metric) ?? metrics[0] ?? null;
}
