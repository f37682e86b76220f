// The finished passes of the chosen stream, and what the log holds of each tap.

import { data, el, table, waiting } from "./elements.js";
import { bytes, clock, count } from "./numbers.js";

const SHOWN = 6; // an endless stream has thousands

/** Return passes and taps of the chosen stream. */
export function passesAndTaps() {
  const place = document.getElementById("passes");
  let shown = "";
  return ({ report, stream, now }) => {
    const key = JSON.stringify([stream.stream, report?.pass_records, report?.taps, stream.first_batch]);
    if (key === shown) return;
    shown = key;
    const parts = report ? [tapsOf(report), passesOf(report, stream, now)] : [waiting()];
    place.replaceChildren(...parts.map((part) => el("div", {}, part)));
  };
}

function tapsOf({ taps, manifest }) {
  const columns = [["tap", ""], ["layer and pool", ""], ["shape of a row", "number"], ["bytes of a row", "number"], ["records", "number"], ["on disk", "number"]];
  return table(`Taps, ${manifest.dtype}`, columns, taps.map((tap) => [
    el("span", { "data-tap": tap.name }, tap.name), tap.spec, tap.shape.join(" × ") || "one number", data(tap.row_bytes, count(tap.row_bytes)),
    data(tap.records, count(tap.records)), data(tap.bytes, bytes(tap.bytes), `${count(tap.bytes)} bytes`),
  ]));
}

function passesOf({ pass_records: passes }, stream, now) {
  if (!passes.length) return [el("p", { class: "quiet" }, "No pass is finished yet.")];
  const columns = [["pass", ""], ["samples", "number"], ["missing", "number"], ["batches", "number"], ["took", "number"], ["finished", "number"], ["left", ""]];
  const rows = passes.slice(-SHOWN).reverse().map((done) => [
    el("span", { "data-pass": done.number }, String(done.number)), data(done.samples, count(done.samples)), data(done.missing, count(done.missing)),
    `${count(done.first_batch)} to ${count(done.last_batch)}`, seconds(done), clock(done.finished_at, now), left(done, stream),
  ]);
  const more = passes.length - rows.length;
  return [table("Finished passes, the newest first", columns, rows),
    more > 0 ? el("p", { class: "quiet" }, `and ${count(more)} earlier ones`) : ""];
}

function seconds({ started_at: began, finished_at: ended }) {
  const took = (Date.parse(ended) - Date.parse(began)) / 1000;
  return took >= 100 ? `${count(took)} s` : `${Number(took.toPrecision(2))} s`;
}

/** Say what retention has left of a pass. */
function left(done, { first_batch: edge }) {
  if (done.last_batch < edge) return "gone";
  return done.first_batch < edge ? `from batch ${count(edge)} on` : "whole";
}
