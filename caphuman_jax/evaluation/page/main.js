// Puts the page together, and draws again what a choice changes.
function drawMeasure() {
  const measure = measures[state.measure];
  $("pick").value = String(state.measure);
  const direction = {up: "higher is better", down: "lower is better"}[measure.direction] ?? "";
  $("definition").textContent = [
    measure.definition,
    direction && `${direction[0].toUpperCase()}${direction.slice(1)}.`,
    measure.source && `Source: ${measure.source}.`,
  ]
    .filter(Boolean)
    .join(" ");
  $("angle-title").textContent = `${measure.title} by head`;
  $("histogram-title").textContent = comparing
    ? `Differences, ${runs[state.run].name} − ${runs[0].name}`
    : "Distribution over pictures";
  $("map-title").textContent = `${comparing ? "Mean difference" : "Mean"} over the head grid`;
  for (const row of document.querySelectorAll("#summary [data-measure]")) {
    const current =
      data.index[row.dataset.measure] === state.measure &&
      (!row.dataset.run || Number(row.dataset.run) === state.run);
    current ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current");
  }
  drawPlots();
  drawGroups();
  drawCases();
  options(
    $("order"),
    [
      ["made", "as made"],
      ["worst", comparing ? `${runs[0].name} better first` : "worst first"],
      ["best", comparing ? `${runs[state.run].name} better first` : "best first"],
    ].map(([value, text]) => [
      value,
      measure.direction || value === "made"
        ? text
        : {worst: "lowest first", best: "highest first"}[value],
    ]),
  );
  search();
}
let drawnWidth = 0;
function drawPlots() {
  drawnWidth = $("by-angle").clientWidth;
  plotByAngle($("by-angle"));
  plotHistogram($("histogram"));
  plotMap($("map"));
}
function drawBy() {
  segments(
    $("by"),
    "by",
    [
      ["head", "head"],
      ["prompt", "prompt"],
      ["person", "person"],
    ],
    state.by,
    value => {
      state.by = value;
      drawGroups();
    },
  );
}

options(
  $("pick"),
  measures.map((m, k) => [String(k), m.title]),
);
options(
  $("run"),
  runs.slice(1).map((run, k) => [String(k + 1), run.name]),
);
$("run-field").hidden = runs.length < 3;
for (const name of ["person", "head", "prompt"]) {
  const order = data.words[name].map((text, k) => [
    String(k),
    (name === "head" ? spaced(text) : text) || "(empty)",
  ]);
  if (name === "person") order.sort((a, b) => a[1].localeCompare(b[1], "en", {numeric: true}));
  options($(name), [["", "all"], ...order]);
}
options($("order"), [["made", "as made"]]);
segments(
  $("angles"),
  "angle",
  angles.map(a => [a, a]),
  state.angle,
  value => {
    state.angle = value;
    plotByAngle($("by-angle"));
  },
);
drawBy();
$("pick").addEventListener("change", () => {
  state.measure = Number($("pick").value);
  drawMeasure();
});
$("run").addEventListener("change", () => {
  state.run = Number($("run").value);
  drawMeasure();
});
for (const row of document.querySelectorAll("#summary [data-measure]")) {
  const k = data.index[row.dataset.measure],
    button = row.querySelector(".pick");
  if (k === undefined) {
    button?.replaceWith(...button.childNodes);
    continue;
  }
  button?.addEventListener("click", () => {
    state.measure = k;
    if (row.dataset.run) {
      state.run = Number(row.dataset.run);
      $("run").value = row.dataset.run;
    }
    drawMeasure();
    $("measure").scrollIntoView();
  });
}
new ResizeObserver(() => {
  if (measures.length && $("by-angle").clientWidth !== drawnWidth) drawPlots();
}).observe($("measure"));
state.measure = Math.max(0, data.first ?? measures.findIndex((_, k) => !binary(k)));
if (data.first_run) {
  state.run = data.first_run;
  $("run").value = String(data.first_run);
}
if (measures.length) drawMeasure();
document.body.dataset.ready = "true";
