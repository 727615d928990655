// The run's data by columns, and the quantity that the page shows: a measure's value in a report,
// the difference from the first run in a comparison.
const data = JSON.parse($("data").textContent);
const rows = data.rows,
  runs = data.runs,
  measures = data.measures;
const comparing = runs.length > 1;
const state = {measure: 0, run: 1, angle: "yaw", by: "head", worstFirst: true};
const decoded = new Map();

function values(run, measure) {
  const key = run * measures.length + measure;
  if (!decoded.has(key))
    decoded.set(
      key,
      Float64Array.from(data.values[run][measure], v => (v === null ? NaN : v)),
    );
  return decoded.get(key);
}
function quantities(measure = state.measure) {
  if (!comparing) return values(0, measure);
  const before = values(0, measure),
    after = values(state.run, measure);
  return after.map((value, i) => value - before[i]);
}
/** Larger is better (for the later run, in a comparison). */
const sign = measure => (measures[measure].direction === "down" ? -1 : 1);
const unit = (measure = state.measure) =>
  comparing && measures[measure].unit === "share" ? "points" : measures[measure].unit;

function meanOf(numbers, chosen) {
  let sum = 0,
    count = 0;
  for (const i of chosen)
    if (Number.isFinite(numbers[i])) {
      sum += numbers[i];
      count++;
    }
  return {mean: sum / count, count, all: chosen.length};
}
function quantile(sorted, share) {
  const place = (sorted.length - 1) * share,
    low = Math.floor(place);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (place - low);
}
const everything = Array.from({length: rows}, (_, i) => i);
const finite = numbers => everything.filter(i => Number.isFinite(numbers[i]));
/** The first `count` of an order, one for each person. */
function firstOnes(order, count) {
  const found = [],
    seen = new Set();
  for (const i of order) {
    if (found.length === count) break;
    if (!seen.has(data.person[i])) {
      seen.add(data.person[i]);
      found.push(i);
    }
  }
  return found;
}
function grouped(key) {
  const groups = new Map();
  for (let i = 0; i < rows; i++) {
    const name = key(i);
    if (name === null) continue;
    const list = groups.get(name);
    if (list) list.push(i);
    else groups.set(name, [i]);
  }
  return groups;
}
/** Whether pictures have a measure or not, such as a face. */
const binary = measure =>
  runs.every((_, run) => values(run, measure).every(v => v === 0 || v === 1 || Number.isNaN(v)));
/** Row numbers from worst to best; equal ones in their order. */
function ranked(numbers, direction) {
  return finite(numbers).sort((a, b) => direction * (numbers[a] - numbers[b]) || a - b);
}

/** The values of an angle that were asked for: those that occur often, where they are most, else
 *  steps of 10°. */
const steps = {},
  rounded = new Set();
function stepOf(angle) {
  if (angle in steps) return steps[angle];
  const counts = new Map(),
    known = data.asked[angle].filter(v => v !== null);
  for (const v of known) counts.set(v.toFixed(2), (counts.get(v.toFixed(2)) ?? 0) + 1);
  const often = [...counts].filter(([, n]) => n >= Math.max(3, known.length * 0.01));
  const centers = often.map(([text]) => Number(text) || 0).sort((a, b) => a - b);
  const covered = often.reduce((sum, [, n]) => sum + n, 0);
  const apart = centers.every((v, k) => !k || v - centers[k - 1] >= 3);
  const nearest = value =>
    centers.reduce((best, v) => (Math.abs(v - value) < Math.abs(best - value) ? v : best));
  if (covered >= known.length / 2 && apart && centers.length > 1)
    return (steps[angle] = value =>
      value === null || Math.abs(nearest(value) - value) > 5 ? null : nearest(value));
  rounded.add(angle);
  return (steps[angle] = value =>
    value === null ? null : Math.sign(value) * Math.round(Math.abs(value) / 10) * 10 || 0);
}
/** What an axis of an angle is called; after its steps were asked for. */
const axisOf = angle => `asked ${angle}, degrees${rounded.has(angle) ? ", in steps of 10" : ""}`;
const degrees = value => `${Number(value.toFixed(1))}`.replace("-", "−");
const asked = (i, angle) => stepOf(angle)(data.asked[angle][i]);
const person = i => data.words.person[data.person[i]];
const prompt = i => data.words.prompt[data.prompt[i]];
const head = i => spaced(data.words.head[data.head[i]]);
const spaced = text => text.replace(/,(?=\S)/g, ", ");
const angles = Object.keys(data.asked);

function frame(path, alt, note) {
  const box = el("span", {class: "frame"});
  if (!path) {
    box.append(note ?? alt);
    return box;
  }
  const image = el("img", {alt, decoding: "async", src: data.pictures[path] ?? path});
  image.addEventListener("error", () => box.replaceChildren("picture not found"));
  box.append(image);
  return box;
}
const angleText = i =>
  angles
    .filter(a => data.asked[a][i] !== null)
    .map(a => `${a} ${show(data.asked[a][i], "degrees")}`)
    .join(", ");
/** [label, path, text without a picture] of the reference, the requested head and the results;
 *  empty in a page without pictures. */
function shots(i) {
  if (!data.illustrated) return [];
  const shown = [
    ["reference", data.references[i]],
    ["asked head", data.heads[i], angleText(i)],
  ];
  if (!data.references.some(Boolean)) shown.shift();
  runs.forEach((run, k) => shown.push([comparing ? run.name : "result", data.files[k][i]]));
  return shown;
}
