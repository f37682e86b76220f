// The page: what is known, what a person has chosen, and the parts that show it.

import { forgetToken, get, path, setToken } from "./api.js";
import { comparisonTable } from "./comparison.js";
import { learningCurves } from "./curves.js";
import { command, el, mark, problem, say } from "./elements.js";
import { featureHealth } from "./health.js";
import { experimentLanes } from "./lanes.js";
import { Live } from "./live.js";
import { counted } from "./numbers.js";
import { passesAndTaps } from "./passes.js";
import { batchRows } from "./rows.js";
import { streamCards } from "./streams.js";

const COLOURS = 8;
const DRAWN = 8; // experiments whose curves are shown before a person has chosen any
const REPORT_MS = 5_000;

const state = {
  streams: [], problems: [], now: Date.now(), stream: null, report: null, experiments: [], drawn: new Set(),
  chosen: new URLSearchParams(location.search).get("stream"), all: [],
};
const touched = new Set(); // stream/name of experiments that a person has chosen, or chosen away
const colours = new Map();
const reports = new Map(); // stream -> {report, key, at}

const byId = (id) => document.getElementById(id);
const showStreams = streamCards(choose);
const showExperiments = experimentLanes(colour, draw);
const showCurves = learningCurves(colour);
const showComparison = comparisonTable(colour);
const showHealth = featureHealth();
const showPasses = passesAndTaps();
const showRows = batchRows();
const live = new Live({ overview, problem: trouble, lost, token: askToken });

byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("secret").value.trim());
  byId("secret").value = "";
  status("connecting", "connecting");
  live.now();
});
addEventListener("popstate", () => choose(new URLSearchParams(location.search).get("stream"), { keep: false }));
live.run().catch(bug);

function overview(facts) {
  byId("token").hidden = true;
  byId("streams").hidden = false;
  notice("");
  mark(document.body, "data-stale", null);
  status("live", "live");
  Object.assign(state, { streams: facts.streams, problems: facts.problems, all: facts.experiments, now: Date.parse(facts.at) });
  show();
}

function show() {
  if (!state.streams.some(({ stream }) => stream === state.chosen)) state.chosen = liveliest(state)?.stream ?? state.chosen;
  state.stream = state.streams.find(({ stream }) => stream === state.chosen) ?? null;
  showStreams(state);
  byId("chosen").hidden = state.stream === null;
  if (state.stream === null) return;
  state.experiments = state.all.filter(({ stream }) => stream === state.chosen);
  choosePictured();
  state.report = reports.get(state.chosen)?.report ?? null;
  for (const line of document.querySelectorAll(".of")) say(line, state.chosen);
  const counts = `${counted(state.experiments.length, "experiment")} on ${state.chosen}`;
  say(document.querySelector("[aria-labelledby=experiments-title] .of"), counts);
  showExperiments(state);
  showCurves(state).catch(bug);
  showComparison(state).catch(bug);
  showHealth(state);
  showPasses(state);
  showRows(state);
  loadReport(state.stream).catch(bug);
}

/** The stream to begin with: one that is read, and of those the one that grew last. */
function liveliest({ streams }) {
  const rank = (stream) => `${stream.readers.length ? 1 : 0} ${stream.last_appended_at ?? ""}`;
  return streams.reduce((best, stream) => (best === null || rank(stream) > rank(best) ? stream : best), null);
}

function choose(name, { keep = true } = {}) {
  state.chosen = name;
  if (keep) history.pushState(null, "", `?${new URLSearchParams({ stream: name })}`);
  if (state.streams.length) show();
}

/** A person's choice of curves stays; the first few others are drawn by themselves. */
function choosePictured() {
  const untouched = state.experiments.filter(({ name }) => !touched.has(`${state.chosen}/${name}`));
  const names = new Set(state.experiments.map(({ name }) => name));
  const kept = [...state.drawn].filter((name) => names.has(name) && touched.has(`${state.chosen}/${name}`));
  state.drawn = new Set([...kept, ...untouched.slice(0, Math.max(DRAWN - kept.length, 0)).map(({ name }) => name)]);
}

function draw(name, wanted) {
  touched.add(`${state.chosen}/${name}`);
  if (wanted) state.drawn.add(name);
  else state.drawn.delete(name);
  showCurves(state).catch(bug);
}

/** An experiment's colour, the same everywhere and as long as the page is open. */
function colour(name) {
  const key = `${state.chosen}/${name}`;
  if (!colours.has(key)) {
    const before = [...colours.keys()].filter((one) => one.startsWith(`${state.chosen}/`)).length;
    colours.set(key, `var(--series-${before % COLOURS})`);
  }
  return colours.get(key);
}

/** Ask for everything about the chosen stream where it has changed, and not too often. */
async function loadReport(stream) {
  const key = JSON.stringify([stream.next_batch, stream.first_batch, stream.producer, stream.passes_done]);
  const have = reports.get(stream.stream);
  if (have && (have.key === key || Date.now() - have.at < REPORT_MS)) return;
  reports.set(stream.stream, { report: have?.report ?? null, key, at: Date.now() });
  try {
    const report = await get(path(["streams", stream.stream]));
    reports.set(stream.stream, { report, key, at: Date.now() });
    if (state.chosen === stream.stream) show();
  } catch (error) {
    reports.set(stream.stream, { report: have?.report ?? null, key: "", at: Date.now() }); // the next look tries again
    if (!error.isLost && !have) byId("health").replaceChildren(problem(error));
  }
}

/** Show what is wrong; what is shown already stays, so that it is read aloud once. */
function notice(key, make = null) {
  if (byId("notices").dataset.key === key) return;
  byId("notices").dataset.key = key;
  byId("notices").replaceChildren(...(make ? [make()] : []));
}

function status(kind, text) {
  mark(byId("status"), "data-state", kind);
  say(byId("status"), text);
}

/** What the gateway itself says is wrong; it goes on looking. */
function trouble(error) {
  mark(document.body, "data-stale", true);
  status("lost", "no news");
  notice(error.detail, () => problem(error));
}

function lost(error, seconds) {
  mark(document.body, "data-stale", true);
  status("lost", "gateway lost");
  const text = error.isLost || !error.detail ? "It was stopped, or the way to it is broken." : `${error.detail}. ${error.hint ?? ""}`;
  const seen = state.streams.length ? " What is shown is what was known last." : "";
  const again = `Trying again ${seconds > 1 ? `every ${seconds} s` : "now"}.`;
  notice(text + again, () => el("div", { class: "notice", "data-kind": "bad", role: "alert" },
    el("p", {}, el("strong", {}, "The gateway does not answer. "), `${text}${seen} ${again}`),
    command("featurectl gateway"), el("button", { type: "button", onclick: () => live.now() }, "Try now")));
}

function askToken(error) {
  const given = sessionStorage.length > 0;
  forgetToken();
  status("token", "token needed");
  notice("");
  byId("token").hidden = false;
  byId("streams").hidden = byId("chosen").hidden = true;
  say(byId("refused"), given ? `It was not accepted: ${error.detail}.` : "");
  byId("secret").focus();
}

/** A fault of the page's own is said, and not passed over. */
function bug(error) {
  status("lost", "error");
  const facts = { title: "The page has a fault", detail: String(error), hint: "Reload it; the same facts are at /v1/streams." };
  notice(facts.detail, () => problem(facts));
  throw error;
}
