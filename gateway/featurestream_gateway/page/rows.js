// The rows of a batch, and the image behind each.

import { get, getImage, path } from "./api.js";
import { data, el, problem, say, table, waiting } from "./elements.js";
import { clock, count } from "./numbers.js";

const ROWS = 12;
const NUMBERS = 200_000; // features come with rows: an answer is kept to so many

/** Return the rows of the chosen stream: of its newest batch, until a person asks for another one. */
export function batchRows() {
  const place = document.getElementById("rows");
  const dialog = pictureDialog();
  const number = el("input", { type: "number", min: 0, step: 1, required: true, inputmode: "numeric" });
  const range = el("span", { class: "quiet" });
  const step = (by) => () => { number.value = Number(number.value) + by; ask(); };
  const form = el("form", { class: "line", onsubmit: (event) => { event.preventDefault(); ask(); } },
    el("label", {}, "batch ", number), el("button", { type: "submit" }, "Show"),
    el("button", { type: "button", onclick: step(-1), "aria-label": "the batch before" }, "‹ before"),
    el("button", { type: "button", onclick: step(1), "aria-label": "the batch after" }, "after ›"), range);
  const body = el("div", { "aria-live": "polite" });
  place.append(form, body);
  let state = null;
  let of = null;
  return (next) => {
    state = next;
    const { stream } = state;
    const last = stream.next_batch - 1;
    form.hidden = last < stream.first_batch;
    number.min = stream.first_batch;
    number.max = last;
    say(range, `there are ${count(stream.first_batch)} to ${count(last)}`);
    if (form.hidden) {
      body.replaceChildren(el("p", { class: "empty" }, "There is no batch yet."));
      of = null;
    } else if (of !== stream.stream) {
      of = stream.stream;
      number.value = last;
      body.replaceChildren(waiting());
      ask();
    }
  };

  async function ask() {
    const { stream } = state;
    const batch = Math.min(Math.max(Math.trunc(Number(number.value)) || 0, stream.first_batch), stream.next_batch - 1);
    number.value = batch;
    await show(stream.stream, batch, 0);
  }

  async function show(stream, batch, row) {
    try {
      const { taps } = await get(path(["streams", stream, "taps"]));
      const size = (tap) => tap.shape.reduce((product, length) => product * length, 1);
      const narrowest = taps.reduce((best, tap) => (size(tap) < size(best) ? tap : best));
      const n = Math.max(1, Math.min(ROWS, Math.floor(NUMBERS / size(narrowest))));
      const asked = { from: `position:${batch}:${row}`, until: `batch:${batch + 1}`, n, taps: narrowest.name, format: "json" };
      const found = await get(path(["streams", stream, "records"], asked));
      if (of === stream) body.replaceChildren(...drawn(stream, found, () => show(stream, batch, row + n)));
    } catch (error) {
      if (of === stream) body.replaceChildren(problem(error));
    }
  }

  function drawn(stream, { rows, missing, more }, next) {
    const columns = [["row", ""], ["sample", ""], ["index", "number"], ["label", "number"], ["pass", "number"], ["extracted", "number"], ["appended", "number"]];
    const cells = rows.map((row) => [
      el("button", { type: "button", class: "link", "data-row": row.row, "aria-label": `the image behind row ${row.row}`, onclick: () => dialog(stream, row) }, `▣ ${row.row}`),
      el("span", { class: "id" }, row.id), data(row.index, count(row.index)), labelText(row.label), String(row.pass),
      clock(row.extracted_at, state.now), clock(row.appended_at, state.now),
    ]);
    return [
      rows.length ? table("Rows; each one's button shows the image behind it", columns, cells) : el("p", { class: "empty" }, "This batch has no rows: none of its images could be decoded."),
      missing.length ? el("p", { class: "notice", "data-kind": "warn" }, `Missing: ${missing.map((one) => `${one.id} (${one.reason})`).join(", ")}`) : "",
      more === "now" ? el("button", { type: "button", onclick: next }, "The next rows") : "",
    ];
  }
}

function labelText(label) {
  if (label === null) return "–";
  return Array.isArray(label) ? label.join(", ") : String(label);
}

/** Return what opens the picture of a row. */
function pictureDialog() {
  const dialog = document.getElementById("picture");
  const title = document.getElementById("picture-title");
  const body = document.getElementById("picture-body");
  let ends = new AbortController();
  let shown = null;
  document.getElementById("picture-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    ends.abort();
    if (shown) URL.revokeObjectURL(shown);
    shown = null;
    body.replaceChildren();
  });
  return async (stream, row) => {
    say(title, `The image behind row ${row.row} of batch ${row.batch}`);
    body.replaceChildren(el("p", { class: "quiet", role: "status" }, "It is made again from the data …"));
    dialog.showModal();
    ends = new AbortController();
    const where = { batch: row.batch, row: row.row };
    try {
      const [facts, image] = await Promise.all([
        get(path(["streams", stream, "picture"], { ...where, format: "json" }), ends.signal),
        getImage(path(["streams", stream, "picture"], { ...where, format: "png" }), ends.signal),
      ]);
      shown = URL.createObjectURL(image);
      body.replaceChildren(el("img", { src: shown, alt: `What the backbone got of ${facts.id}, beside the original` }), told(facts));
    } catch (error) {
      if (error.name !== "AbortError") body.replaceChildren(problem(error));
    }
  };
}

function told(facts) {
  const checked = facts.checked_row === null
    ? "not checked: the record carries no checksums"
    : facts.checked_row === facts.row
      ? "it is what was fed: the record carries this checksum"
      : `row ${facts.checked_row}, the nearest with a checksum in the record, is what was fed`;
  const pairs = [["sample", facts.id], ["index", count(facts.index)], ["label", labelText(facts.label)], ["fed", `float32 ${facts.shape.join(" × ")}`],
    ["checksum", facts.checksum], ["checked", checked], ["colours", facts.colours]];
  return el("dl", { class: "facts" }, pairs.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", { "data-fact": name }, text))));
}
