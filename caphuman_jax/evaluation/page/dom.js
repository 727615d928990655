// Elements and numbers as text. Text from the run only ever enters the page as text.
"use strict";
const $ = id => document.getElementById(id);
const SVG = $("mark").namespaceURI;

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}
const el = (tag, properties = {}, ...children) =>
  fill(document.createElement(tag), properties, children);
const svg = (tag, properties = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), properties, children);

const WRITTEN = {degrees: "°", share: "%", points: "points"};
const unitScale = unit => (unit === "share" || unit === "points" ? 100 : 1);
function unitText(unit) {
  const text = WRITTEN[unit] ?? unit;
  return text === "" || text === "°" ? text : "\u202f" + text;
}
const PLACES = {degrees: 2, share: 1, points: 1};
function digits(value, unit = "") {
  const size = Math.abs(value),
    places = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  const text = value.toFixed(Math.min(places, PLACES[unit] ?? 3));
  return Number(text) ? text.replace("-", "−") : "0";
}
function show(value, unit = "", signed = false) {
  if (!Number.isFinite(value)) return "–";
  const text = digits(value * unitScale(unit), unit) + unitText(unit);
  return signed && value > 0 ? "+" + text : text;
}
const whole = number => number.toLocaleString("en-US");
const plural = (count, one, many) => `${whole(count)} ${count === 1 ? one : many}`;

/** Radio buttons that look like one control. */
function segments(place, name, choices, chosen, changed) {
  place.replaceChildren(
    ...choices.map(([value, text]) =>
      el(
        "label",
        {},
        el("input", {
          type: "radio",
          name,
          value,
          checked: value === chosen,
          onchange: () => changed(value),
        }),
        el("span", {}, text),
      ),
    ),
  );
}
function options(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => el("option", {value}, text)));
}
