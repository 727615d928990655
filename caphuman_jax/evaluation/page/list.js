// All pictures: filters, search, order, and a list of which only the visible part exists.
const ROW = 76,
  SPARE = 4;
let found = everything,
  pool = new Map(),
  settling = 0,
  lastTop = 0;

const names = new Map(Object.entries(data.index).map(([name, k]) => [name.toLowerCase(), k]));
/** A search: words that have to occur, and comparisons such as yaw>5 of measures and angles. */
function parsed(text) {
  const tests = [],
    words = [];
  for (const word of text.toLowerCase().split(/\s+/).filter(Boolean)) {
    const match = word.match(/^([\w.-]+?)(<=|>=|=|<|>)([-−+]?\d*\.?\d+)°?$/);
    const name = match?.[1],
      limit = match && Number(match[3].replace("−", "-"));
    const measure = match ? names.get(name) : undefined;
    if (measure !== undefined) {
      const numbers = quantities(measure),
        scaled = limit / unitScale(unit(measure));
      tests.push(i => compared(numbers[i], match[2], scaled, 1e-9));
    } else if (name === "faces") tests.push(i => compared(data.faces[i], match[2], limit, 0));
    else if (match && angles.includes(name))
      tests.push(
        i =>
          data.asked[name][i] !== null &&
          (match[2] === "="
            ? asked(i, name) === limit
            : compared(data.asked[name][i], match[2], limit, 0)),
      );
    else words.push(word);
  }
  return {tests, words};
}
function compared(value, relation, limit, near) {
  if (!Number.isFinite(value)) return false;
  return relation === "<"
    ? value < limit
    : relation === ">"
      ? value > limit
      : relation === "<="
        ? value <= limit
        : relation === ">="
          ? value >= limit
          : Math.abs(value - limit) <= near;
}
const lowered = Object.fromEntries(
  Object.entries(data.words).map(([name, list]) => [name, list.map(text => text.toLowerCase())]),
);
function search() {
  const {tests, words} = parsed($("search").value);
  const hits = words.map(word => ({
    word,
    in: Object.fromEntries(
      Object.entries(lowered).map(([name, list]) => [name, list.map(text => text.includes(word))]),
    ),
  }));
  const chosen = ["person", "head", "prompt"]
    .map(name => [data[name], $(name).value])
    .filter(([, value]) => value !== "")
    .map(([column, value]) => [column, Number(value)]);
  found = everything.filter(
    i =>
      chosen.every(([column, value]) => column[i] === value) &&
      hits.every(
        hit =>
          hit.in.person[data.person[i]] ||
          hit.in.prompt[data.prompt[i]] ||
          hit.in.head[data.head[i]] ||
          data.id[i].toLowerCase() === hit.word,
      ) &&
      tests.every(test => test(i)),
  );
  const order = $("order").value;
  if (order !== "made") {
    const numbers = quantities(),
      direction = sign(state.measure) * (order === "worst" ? 1 : -1);
    const last = value => (Number.isFinite(value) ? 0 : 1);
    found.sort(
      (a, b) =>
        last(numbers[a]) - last(numbers[b]) || direction * (numbers[a] - numbers[b]) || a - b,
    );
  }
  $("count").textContent =
    found.length === rows
      ? plural(rows, "picture", "pictures")
      : `${whole(found.length)} of ${plural(rows, "picture", "pictures")}`;
  $("space").style.height = `${found.length * ROW}px`;
  for (const node of pool.values()) node.remove();
  pool.clear();
  $("list").scrollTop = 0;
  drawRows();
}
function itemOf(at, quick) {
  const i = found[at],
    [number, between] = numbersOf(i);
  return el(
    "div",
    {
      class: "slot",
      role: "listitem",
      "aria-setsize": found.length,
      "aria-posinset": at + 1,
      "data-quick": quick,
      style: {top: `${at * ROW}px`},
    },
    el(
      "button",
      {type: "button", class: "item", onclick: () => view(i)},
      el(
        "span",
        {class: "thumbs"},
        shots(i).map(([label, path, note]) => frame(quick ? "" : path, label, quick ? " " : note)),
      ),
      el(
        "span",
        {class: "words"},
        el("span", {}, head(i) || prompt(i)),
        head(i) ? el("span", {class: "low"}, prompt(i)) : null,
        el("span", {class: "low"}, `${person(i)} · ${data.id[i]}`),
      ),
      el("span", {class: "numbers"}, number, between ? el("span", {class: "low"}, between) : null),
    ),
  );
}
/** While the list moves fast, rows come without pictures, which follow when it rests. */
function drawRows() {
  const list = $("list"),
    top = list.scrollTop,
    quick = Math.abs(top - lastTop) > list.clientHeight;
  lastTop = top;
  const first = Math.max(0, Math.floor(top / ROW) - SPARE),
    last = Math.min(found.length, Math.ceil((top + list.clientHeight) / ROW) + SPARE);
  for (const [at, node] of pool)
    if (at < first || at >= last || (!quick && "quick" in node.dataset)) {
      node.remove();
      pool.delete(at);
    }
  for (let at = first; at < last; at++)
    if (!pool.has(at)) {
      const node = itemOf(at, quick);
      pool.set(at, node);
      $("space").append(node);
    }
  clearTimeout(settling);
  if (quick) settling = setTimeout(drawRows, 90);
}
function searchFor(text) {
  clearFilters();
  $("search").value = text;
  search();
  $("pictures").scrollIntoView();
}
function filterBy(name, text) {
  clearFilters();
  $(name).value = String(data.words[name].findIndex(one => one === text || spaced(one) === text));
  search();
  $("pictures").scrollIntoView();
}
function clearFilters() {
  for (const name of ["search", "person", "head", "prompt"]) $(name).value = "";
}
let frameAsked = false;
$("list").addEventListener(
  "scroll",
  () => {
    if (frameAsked) return;
    frameAsked = true;
    requestAnimationFrame(() => {
      frameAsked = false;
      drawRows();
    });
  },
  {passive: true},
);
for (const name of ["search", "person", "head", "prompt", "order"])
  $(name).addEventListener("input", search);
$("clear").addEventListener("click", () => {
  clearFilters();
  $("order").value = "made";
  search();
});
$("list")
  .closest("section")
  .querySelector("form")
  .addEventListener("submit", event => event.preventDefault());
