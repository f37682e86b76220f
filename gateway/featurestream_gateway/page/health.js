// What the producer has seen of inputs and features, tap by tap.

import { data, el, table, waiting } from "./elements.js";
import { count, measured, percent } from "./numbers.js";

/** Return the health of the chosen stream's features. */
export function featureHealth() {
  const place = document.getElementById("health");
  let shown = "";
  return ({ report, stream }) => {
    const key = JSON.stringify([stream.stream, report?.health, report?.warnings, report?.retention_warnings]);
    if (key === shown) return;
    shown = key;
    place.replaceChildren(...(report ? drawn(report) : [waiting()]));
  };
}

function drawn({ health, canary, warnings, retention_warnings: retention }) {
  if (!health.length) {
    return [el("div", { class: "empty" }, el("p", {}, "Nothing yet: the producer writes what it sees after its first eight batches, and at the end of each pass."))];
  }
  const told = [...warnings, ...retention.map(({ at, text }) => `${at}: ${text}`)];
  const verdict = told.length
    ? el("ul", { class: "notice", "data-kind": "warn" }, told.map((text) => el("li", {}, text)))
    : el("p", { class: "notice", "data-kind": "good" }, "No warnings.");
  const several = health.length > 1;
  const columns = [["tap", ""], ...(several ? [["worker", ""]] : []), ["canary", ""], ["rows looked at", "number"], ["mean", "number"], ["std", "number"],
    ["std between rows", "number"], ["zeros", "number"], ["largest", "number"], ["separability", "number"]];
  const rows = health.flatMap((worker) => worker.taps.map((tap) => [
    el("span", { "data-tap": tap.name }, tap.name),
    ...(several ? [`${worker.worker}, ${worker.device}`] : []),
    judged(tap.name, worker, canary, health[0]),
    data(tap.rows, count(tap.rows)),
    data(tap.mean, measured(tap.mean)),
    data(Math.sqrt(tap.variance), measured(Math.sqrt(tap.variance))),
    tap.spread === null ? "–" : data(Math.sqrt(tap.spread), measured(Math.sqrt(tap.spread))),
    data(tap.zeros, percent(tap.zeros / Math.max(tap.numbers, 1))),
    data(tap.largest, measured(tap.largest)),
    data(tap.separability, measured(tap.separability)),
  ]));
  const inputs = health.map(({ worker, device, batches, inputs: { mean, std } }) =>
    el("li", {}, `${several ? `worker ${worker}, ` : ""}${device}: ${count(batches)} batches looked at; inputs of mean ${mean.map(measured).join(" ")}, std ${std.map(measured).join(" ")} (red, green, blue)`));
  return [verdict, table("Feature health of each tap", columns, rows), el("ul", { class: "quiet plain" }, inputs)];
}

/** Say whether a worker makes of the fixed input what the stream's first run made of it. */
function judged(name, worker, canary, firstWorker) {
  const mine = worker.canary.taps.find((tap) => tap.name === name);
  const first = (canary ?? firstWorker.canary).taps.find((tap) => tap.name === name);
  if (!mine || !first) return el("span", { class: "chip" }, "not known");
  if (mine.checksum === first.checksum) {
    return el("span", { class: "chip", "data-state": "live", title: `checksum ${mine.checksum}` }, "same bits");
  }
  const apart = distance(mine.sketch, first.sketch);
  return el("span", { class: "chip", "data-state": apart > 0.05 ? "failed" : "none", title: `${mine.checksum}, and ${first.checksum} at first` }, `${percent(apart, 2)} apart`);
}

/** |one - other| / |other|, as the producer takes it. */
function distance(one, other) {
  if (one.length !== other.length || !one.length) return one.length === other.length ? 0 : 1;
  const size = Math.hypot(...other);
  const apart = Math.hypot(...one.map((value, at) => value - other[at]));
  return size ? apart / size : Number(apart > 0);
}
