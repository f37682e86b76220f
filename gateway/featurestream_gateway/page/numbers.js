// Numbers and times as people read them.

const ABSENT = "–";

/** A whole number with its thousands apart: 1,797. */
export function count(value) {
  return value === null || value === undefined ? ABSENT : Math.round(value).toLocaleString("en-US");
}

/** A whole number with what it counts: "1 batch", "1,797 batches". */
export function counted(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** Bytes in powers of ten: 912 B, 1.84 GB. */
export function bytes(value) {
  if (value === null || value === undefined) return ABSENT;
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

/** How much a second, to three digits. */
export function rate(value) {
  if (value === null || value === undefined) return ABSENT;
  return value >= 100 ? count(value) : String(Number(value.toPrecision(3)));
}

/** A measured number, to four digits. */
export function measured(value) {
  if (value === null || value === undefined) return ABSENT;
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-4 || size >= 1e6 ? value.toExponential(2) : value.toPrecision(4);
  return text.replace("-", "−");
}

/** A difference, with its sign, to as many places as a metric needs. */
export function signed(value) {
  if (value === null || value === undefined) return ABSENT;
  const text = Math.abs(value).toFixed(Math.abs(value) < 10 ? 4 : 1);
  return `${value < 0 ? "−" : "+"}${text}`;
}

/** A probability, as tables give it. */
export function probability(value) {
  if (value === null || value === undefined) return ABSENT;
  return value < 0.001 ? "< 0.001" : value.toFixed(3);
}

/** A share in percent. */
export function percent(value, digits = 1) {
  return `${(100 * value).toFixed(digits)} %`;
}

/** How long ago a time (ISO 8601) was, of a clock that says `now` in milliseconds. */
export function ago(time, now) {
  if (!time) return ABSENT;
  const seconds = Math.max(0, (now - Date.parse(time)) / 1000);
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return seconds < 1.5 ? "now" : `${Math.round(seconds)} s ago`;
}

/** A moment in local time to the second; with its date where it is not today's. */
export function clock(time, now) {
  if (!time) return ABSENT;
  const moment = new Date(time);
  const two = (number) => String(number).padStart(2, "0");
  const hours = `${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
  if (moment.toDateString() === new Date(now).toDateString()) return hours;
  return `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())} ${hours}`;
}
