// Learning curves of the experiments that were chosen, together, as they grow.

import uPlot from "./uplot/uPlot.esm.js";
import { get, path } from "./api.js";
import { Keyed, el, fact, mark, say } from "./elements.js";
import { measured, rate } from "./numbers.js";

const PLACE = new Set(["kind", "step", "epoch", "batch", "time"]); // what a row of metrics holds beside metrics
const AXES = [["step", "step"], ["epoch", "epoch"], ["time", "seconds since its first row"]];
const HEIGHT = 300;

/** Return the curves. `colour(name)` is an experiment's: the name of a CSS variable in `var(...)`. */
export function learningCurves(colour) {
  const known = new Map(); // stream/name -> {id, rows, failed}
  const metric = el("select", { onchange: show });
  const axis = el("select", { onchange: show }, AXES.map(([name, text]) => el("option", { value: name }, text)));
  const none = el("div", { class: "empty" });
  const chart = el("div", { class: "chart", tabindex: 0, role: "img", onkeydown: move, onblur: () => plot?.setCursor({ left: -10, top: -10 }) });
  const legend = el("ul", { class: "legend" });
  const entries = new Keyed(legend, entry);
  const controls = el("div", { class: "line" },
    el("label", {}, "metric ", metric), el("label", {}, "over ", axis));
  document.getElementById("curves").append(none, controls, chart, legend);
  let plot = null;
  let shown = { key: "", series: [], xs: [] };
  let state = null;
  let busy = false;

  new ResizeObserver(() => plot?.setSize({ width: chart.clientWidth, height: HEIGHT })).observe(chart);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { shown.key = ""; show(); });

  return async (next) => {
    state = next;
    show();
    if (busy) return;
    busy = true;
    try {
      for (const experiment of chosen(next)) if (experiment.record) await load(experiment); // others publish nothing
    } finally {
      busy = false;
    }
    show();
  };

  function chosen(of) {
    return of.experiments.filter(({ name }) => of.drawn.has(name));
  }

  /** Ask for the rows that are new. A run that went back behind them, or is another one, is read from its beginning. */
  async function load({ name, stream, record }) {
    const key = `${stream}/${name}`;
    const have = known.get(key) ?? { id: null, rows: [], failed: null };
    if (record.id !== have.id || record.metric_rows < have.rows.length) Object.assign(have, { id: record.id, rows: [] });
    known.set(key, have);
    if (record.metric_rows === have.rows.length) return;
    try {
      const found = await get(path(["experiments", name, "metrics"], { stream, after: have.rows.length }));
      if (found.next < have.rows.length) have.rows = []; // it was begun anew: the next look reads it whole
      have.rows.push(...found.metrics);
      have.failed = null;
    } catch (error) {
      have.failed = error; // the next look tries again
    }
  }

  function rowsOf({ name, stream }) {
    return known.get(`${stream}/${name}`)?.rows ?? [];
  }

  function show() {
    if (state === null) return;
    const experiments = chosen(state);
    const choices = metricsOf(experiments.map(rowsOf));
    const there = choices.length > 0;
    controls.hidden = chart.hidden = legend.hidden = !there;
    none.hidden = there;
    if (!there) {
      explain(experiments);
      return;
    }
    offer(choices);
    const kind = metric.value.split(" ", 1)[0];
    const name = metric.value.slice(kind.length + 1);
    const series = experiments.map((experiment) => ({
      name: experiment.name,
      points: rowsOf(experiment)
        .filter((row) => row.kind === kind && Number.isFinite(row[name]) && Number.isFinite(row[axis.value]))
        .map((row, _, [first]) => [row[axis.value] - (axis.value === "time" ? first.time : 0), row[name]]),
    }));
    entries.update(series, (one) => `${state.stream.stream}/${one.name}`);
    mark(chart, "aria-label", `${metric.value} over ${axis.selectedOptions[0].text}: ${series.map(spoken).join("; ")}. Left and right arrows move through it.`);
    draw(series, name);
  }

  function explain(experiments) {
    const { stream } = state;
    const all = state.experiments.length;
    const text = !all
      ? "Curves come with the first experiment."
      : !experiments.length
        ? "No experiment is chosen: tick one above."
        : experiments.some(({ record }) => record)
          ? "The chosen experiments have no metrics yet: the first come with a first report, or a first validation."
          : "The chosen readers publish no metrics: featurectl train and featurectl sweep do, by themselves.";
    const failed = experiments.map((one) => known.get(`${one.stream}/${one.name}`)?.failed).find(Boolean);
    const key = `${text}${failed?.detail ?? ""}${stream.stream}`;
    if (none.dataset.key === key) return;
    none.dataset.key = key;
    none.replaceChildren(el("p", {}, failed ? `${failed.detail} ${failed.hint ?? ""}` : text));
  }

  /** Offer the metrics that there are; the one that was chosen stays, else the main metric comes first. */
  function offer(choices) {
    const before = [...metric.options].map((option) => option.value);
    if (before.join() === choices.join()) return;
    const kept = metric.value;
    metric.replaceChildren(...choices.map((name) => el("option", { value: name }, name)));
    const main = state.experiments.map(({ record }) => record?.main_metric).find(Boolean);
    metric.value = [kept, `validation ${main}`, `train ${main}`, choices[0]].find((name) => choices.includes(name));
  }

  function draw(series, name) {
    const xs = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))].sort((a, b) => a - b);
    const columns = series.map((one) => {
      const values = new Map(one.points);
      return xs.map((x) => values.get(x));
    });
    const key = [state.stream.stream, metric.value, axis.value, ...series.map((one) => one.name)].join("\n");
    const points = series.map((one) => one.points.length).join();
    if (plot && key === shown.key) {
      if (points !== shown.points) plot.setData([xs, ...columns]);
    } else {
      plot?.destroy();
      plot = new uPlot(options(series, name), [xs, ...columns], chart);
    }
    shown = { key, points, series, xs };
  }

  function options(series, name) {
    const styles = getComputedStyle(document.documentElement);
    const ink = styles.getPropertyValue("--quiet").trim();
    const grid = { stroke: styles.getPropertyValue("--line").trim(), width: 1 };
    const font = "12px system-ui, sans-serif";
    const common = { stroke: ink, grid, ticks: grid, font, labelFont: font, labelSize: 20 };
    const numbers = (_, values) => values.map((value) => (value === null ? "" : String(Number(value.toPrecision(6)))));
    return {
      width: chart.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false } },
      scales: { x: { time: false } },
      axes: [
        { ...common, label: axis.selectedOptions[0].text, values: numbers },
        { ...common, label: name, values: numbers, size: 58 },
      ],
      series: [{}, ...series.map((one, number) => ({
        label: one.name,
        stroke: styles.getPropertyValue(colour(one.name).slice(4, -1)).trim(),
        width: 2,
        spanGaps: true,
        dash: number < 8 ? undefined : [6, 4],
        points: { show: one.points.length < 40, size: 5 },
      }))],
      hooks: { setCursor: [(of) => entries.views.forEach((view) => view.at(of.cursor.left >= 0 ? of.posToVal(of.cursor.left, "x") : null))] },
    };
  }

  function entry({ name }) {
    const value = el("data");
    const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.setProperty("--series", colour(name));
    const node = el("li", { "data-curve": name }, swatch, el("span", { class: "name" }, name), " ", value);
    const view = { node, points: [], x: null, update, at };
    return view;

    function update(one) {
      view.points = one.points;
      at(view.x);
    }

    /** Show the value at a place of the axis; without one the newest. */
    function at(x) {
      view.x = x;
      const { points } = view;
      if (!points.length) return fact(value, null, "no value yet");
      const [where, what] = x === null ? points.at(-1) : points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
      return fact(value, what, `${measured(what)} at ${axis.value === "time" ? `${rate(where)} s` : `${axis.value} ${rate(where)}`}`);
    }
  }

  function move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !plot || !shown.xs.length) return;
    event.preventDefault();
    const at = plot.cursor.left >= 0 ? plot.valToIdx(plot.posToVal(plot.cursor.left, "x")) + step : step > 0 ? 0 : shown.xs.length - 1;
    const index = Math.min(Math.max(at, 0), shown.xs.length - 1);
    plot.setCursor({ left: plot.valToPos(shown.xs[index], "x"), top: 10 });
  }
}

function spoken(one) {
  return one.points.length ? `${one.name} newest ${measured(one.points.at(-1)[1])}` : `${one.name} nothing yet`;
}

/** Return "kind metric" for all that rows have: of validation first. */
function metricsOf(all) {
  const found = new Set();
  for (const row of all.flat()) {
    for (const [name, value] of Object.entries(row)) {
      if (!PLACE.has(name) && Number.isFinite(value)) found.add(`${row.kind} ${name}`);
    }
  }
  const names = [...found];
  return [...names.filter((name) => name.startsWith("validation ")), ...names.filter((name) => !name.startsWith("validation "))];
}
