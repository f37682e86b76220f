// Experiments against each other on the same samples, as `featurectl compare` tells it.

import { get, path } from "./api.js";
import { command, data, el, problem, svg, table, waiting } from "./elements.js";
import { count, measured, probability, signed } from "./numbers.js";

const LEAST_MS = 5_000; // a comparison draws thousands of samples: not more often than so

/** Return the comparison. It is asked for again when an experiment has come, or has something new to say. */
export function comparisonTable(colour) {
  const place = document.getElementById("comparison");
  let asked = "";
  let askedAt = 0;
  let busy = false;
  return async (state) => {
    const stream = state.stream.stream;
    const key = JSON.stringify([stream, state.experiments.map(({ name, state: is, record }) => [name, is, record?.metrics])]);
    const another = !asked.startsWith(JSON.stringify([stream]).slice(0, -1));
    if (key === asked || busy || (!another && Date.now() - askedAt < LEAST_MS)) return;
    asked = key;
    if (!state.experiments.some(({ record }) => record)) {
      place.replaceChildren(...nothing(state.stream));
      return;
    }
    busy = true;
    if (another) place.replaceChildren(waiting());
    try {
      const found = await get(path(["compare"], { stream }));
      place.replaceChildren(...(found.runs.length ? drawn(found, colour) : nothing(state.stream)));
    } catch (error) {
      if (error.isLost) asked = "";
      place.replaceChildren(problem(error));
    } finally {
      askedAt = Date.now();
      busy = false;
    }
  };
}

function nothing(stream) {
  return [el("div", { class: "empty" },
    el("p", {}, "There is nothing to compare yet: experiments with a validation stream appear here."),
    command(`featurectl train ${stream.stream} --tap ${stream.taps[0]} --name E1 --validate VALIDATION`))];
}

function drawn({ metric, runs }, colour) {
  const ends = runs.flatMap(({ low, high, difference }) => [low, high, difference]).filter(Number.isFinite);
  const span = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const best = runs[0];
  const against = [...new Set(runs.map((run) => run.against).filter(Boolean))];
  const than = against.length === 1 ? against[0] : "the best it can be compared with";
  const columns = [["experiment", ""], [metric ?? "metric", "number"], [`difference to ${than}`, "number"],
    ["95 % interval", ""], ["p (Holm)", "number"], ["samples", "number"], ["tap", ""], ["head", ""], ["epochs", "number"], ["state", ""]];
  const rows = runs.map((run) => {
    const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.setProperty("--series", colour(run.run));
    const isBest = run === best && !Number.isFinite(run.difference) && !run.not_compared;
    return [
      el("span", { class: "run", "data-run": run.run }, swatch, el("span", { class: "name" }, run.run)),
      fact("metric", run[metric], measured(run[metric])),
      isBest ? el("span", { class: "quiet" }, "the best") : run.not_compared ? el("span", { class: "quiet" }, run.not_compared) : fact("difference", run.difference, signed(run.difference)),
      Number.isFinite(run.low) && Number.isFinite(run.high) ? interval(run, span) : "",
      fact("p_holm", run.p_holm, probability(run.p_holm)),
      Number.isFinite(run.paired_samples) ? `${count(run.paired_samples)} ${run.samples}` : `${run.samples ?? ""}`,
      run.tap ?? "", run.head ?? "", count(run.epochs), run.state ?? "",
    ];
  });
  return [table("Comparison of experiments", columns, rows),
    el("p", { class: "quiet" }, "Differences are paired: on the very same validation samples, with an interval of 95 %. One that spans 0 is no difference that these samples can show. Different letters under samples cannot be compared.")];
}

function fact(name, value, text) {
  const node = data(value, text);
  node.dataset.fact = name;
  return node;
}

/** Return a difference with its interval, drawn on one scale for all rows, and in numbers. */
function interval({ low, high, difference }, [least, most]) {
  const width = 120;
  const x = (value) => 4 + ((width - 8) * (value - least)) / Math.max(most - least, 1e-12);
  const apart = low > 0 || high < 0;
  const drawing = svg("svg", { class: "interval", width, height: 16, viewBox: `0 0 ${width} 16`, "aria-hidden": "true", "data-apart": String(apart) },
    svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 1, y2: 15 }),
    svg("line", { class: "whisker", x1: x(low), x2: x(high), y1: 8, y2: 8 }),
    svg("circle", { cx: x(difference), cy: 8, r: 3.5 }));
  return el("span", { class: "run" }, drawing, el("span", {}, fact("low", low, signed(low)), " to ", fact("high", high, signed(high))));
}
