// Elements of the page. Whatever comes from data goes in as text; nothing here, or anywhere, makes HTML of it.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. `attributes`: `on...` are listeners, true and false switch, null leaves out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an element of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Set an element's text where it is another one: what stays is not read aloud again, and keeps its selection. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute where it is another one; null takes it away. */
export function mark(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/** Show a fact: `value` is what programs read, `text` what people do. */
export function fact(node, value, text, title = null) {
  mark(node, "value", value ?? "");
  say(node, text);
  mark(node, "title", title);
}

/** Return an element that shows a fact. */
export function data(value, text, title = null) {
  const node = el("data");
  fact(node, value, text, title);
  return node;
}

/** A list whose elements stay those of their items, so that focus and selection outlive an update. */
export class Keyed {
  /** `make(item)` returns `{node, update(item)}`. */
  constructor(parent, make) {
    this.parent = parent;
    this.make = make;
    this.views = new Map();
  }

  update(items, keyOf) {
    const kept = new Map();
    let place = this.parent.firstElementChild;
    for (const item of items) {
      const key = keyOf(item);
      const view = this.views.get(key) ?? this.make(item);
      kept.set(key, view);
      view.update(item);
      if (view.node === place) place = place.nextElementSibling;
      else this.parent.insertBefore(view.node, place);
    }
    for (const [key, view] of this.views) if (!kept.has(key)) view.node.remove();
    this.views = kept;
  }
}

/** Return a table that may be wider than its place: it scrolls by itself, by keyboard too. `columns`: [name, class]. */
export function table(label, columns, rows) {
  const head = el("tr", {}, columns.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)));
  const cells = (row) =>
    row.map((cell, at) => el(at ? "td" : "th", { class: columns[at][1], scope: at ? null : "row" }, cell));
  const body = rows.map((row) => el("tr", {}, cells(row)));
  return el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": label },
    el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
}

/** Return what stands where an answer has not come yet. */
export function waiting() {
  return el("p", { class: "quiet" }, "loading …");
}

/** Return a command that a person can copy. */
export function command(text) {
  return el("pre", { tabindex: 0 }, text);
}

/** Return what went wrong, and what to do about it. */
export function problem(error) {
  return el("div", { class: "notice", "data-kind": "bad", role: "alert" },
    el("p", {}, el("strong", {}, error.title ?? "Something went wrong"), `: ${error.detail ?? error.message}`),
    error.hint ? el("p", {}, error.hint) : null);
}
