// Worst and best pictures, tables by head, prompt and person, and the view of one picture.
const SHOWN_GROUPS = 12;

function shotsOf(i) {
  const shown = shots(i);
  if (!shown.length) return null;
  return el(
    "span",
    {class: "shots"},
    shown.map(([label, path, note]) =>
      el("span", {class: "shot"}, frame(path, label, note), el("span", {}, label)),
    ),
  );
}
function numbersOf(i, measure = state.measure) {
  const of = measures[measure];
  if (!comparing) return [`${show(values(0, measure)[i], of.unit)}`, ""];
  return [
    show(quantities(measure)[i], unit(measure), true),
    `${show(values(0, measure)[i], of.unit)} → ${show(values(state.run, measure)[i], of.unit)}`,
  ];
}
function caseCard(i) {
  const [number, between] = numbersOf(i);
  return el(
    "button",
    {type: "button", class: "case", onclick: () => view(i)},
    shotsOf(i),
    el(
      "span",
      {class: "facts"},
      el("b", {}, number),
      between ? el("span", {}, between) : null,
      el("span", {}, [head(i), prompt(i)].filter(Boolean).join(" · ")),
      el("span", {}, person(i)),
    ),
  );
}
function drawCases() {
  const numbers = quantities(),
    order = ranked(numbers, sign(state.measure)),
    title = measures[state.measure].title;
  const best = firstOnes(ranked(numbers, -sign(state.measure)), data.shown),
    worst = firstOnes(order, data.shown);
  const direction = sign(state.measure),
    real = comparing ? list => list.filter(i => numbers[i] !== 0) : list => list;
  const better = name => `${name} better`;
  const lists = comparing
    ? [
        [better(runs[state.run].name), real(best).filter(i => numbers[i] * direction > 0)],
        [better(runs[0].name), real(worst).filter(i => numbers[i] * direction < 0)],
      ]
    : binary(state.measure)
      ? [["Failures", worst.filter(i => numbers[i] === (sign(state.measure) > 0 ? 0 : 1))]]
      : measures[state.measure].direction
        ? [
            ["Worst", worst],
            ["Best", best],
          ]
        : [
            ["Lowest", worst],
            ["Highest", best],
          ];
  $("cases-title").textContent = comparing ? "Where they differ most" : "Cases";
  $("cases-hint").textContent = `${title}, one picture for each person`;
  const filled = lists.filter(([, list]) => list.length);
  $("case-lists").replaceChildren(
    ...(filled.length
      ? filled.map(([text, list]) =>
          el(
            "div",
            {class: "case-list"},
            el("h3", {}, text),
            el("div", {class: "case-grid"}, list.map(caseCard)),
          ),
        )
      : [nothing(comparing ? "No pair of pictures differs in this measure." : "No failures.")]),
  );
}

function drawGroups() {
  const numbers = quantities(),
    name = {head, prompt, person}[state.by],
    direction = sign(state.measure);
  const found = [...grouped(name)]
    .map(([text, list]) => ({text, ...meanOf(numbers, list)}))
    .filter(g => g.count);
  found.sort((a, b) => direction * (a.mean - b.mean));
  const most = Math.max(1e-12, ...found.map(g => Math.abs(g.mean)));
  const low = comparing ? -most : Math.min(0, ...found.map(g => g.mean)),
    high = comparing ? most : Math.max(0, ...found.map(g => g.mean));
  const at = linear(low, high, 0, 100);
  const line = group => {
    const from = Math.min(at(0), at(group.mean)),
      until = Math.max(at(0), at(group.mean));
    return el(
      "tr",
      {},
      el(
        "td",
        {class: "name wide"},
        el(
          "button",
          {type: "button", class: "pick", onclick: () => filterBy(state.by, group.text)},
          group.text || "(empty)",
        ),
      ),
      el(
        "td",
        {class: "n soft"},
        whole(group.count) + (group.count < group.all ? ` of ${whole(group.all)}` : ""),
      ),
      el("td", {class: "n value"}, show(group.mean, unit(), comparing)),
      el(
        "td",
        {class: "bar-cell"},
        el(
          "div",
          {class: "barline"},
          el("i", {
            class: comparing && group.mean * direction < 0 ? "first" : "",
            style: {left: `${from}%`, width: `${Math.max(0.6, until - from)}%`},
          }),
        ),
      ),
    );
  };
  const body = el("tbody", {}, found.slice(0, SHOWN_GROUPS).map(line));
  const more =
    found.length > SHOWN_GROUPS
      ? el(
          "button",
          {
            type: "button",
            class: "quiet",
            onclick: () => {
              body.append(...found.slice(SHOWN_GROUPS).map(line));
              more.remove();
            },
          },
          `Show all ${whole(found.length)}`,
        )
      : null;
  $("groups").replaceChildren(
    found.length
      ? el(
          "div",
          {class: "scroll"},
          el(
            "table",
            {class: "stack groups"},
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                el("th", {}, state.by),
                el("th", {class: "n"}, "pictures"),
                el("th", {class: "n"}, comparing ? "mean difference" : "mean"),
                el(
                  "th",
                  {class: "run"},
                  measures[state.measure].direction
                    ? comparing
                      ? `${runs[0].name} better first`
                      : "worst first"
                    : "lowest first",
                ),
              ),
            ),
            body,
          ),
        )
      : nothing("No groups for this measure."),
    ...(more ? [more] : []),
  );
}

let shownNow = null;
function view(i) {
  shownNow = i;
  const facts = [
    ["id", data.id[i]],
    ["person", person(i)],
    ["prompt", prompt(i)],
    ["head", head(i)],
    ["asked", angleText(i)],
    ["seed", data.seed[i]],
  ];
  const numbers = measures
    .map((m, k) => [
      m.title,
      comparing
        ? `${runs.map((_, r) => show(values(r, k)[i], m.unit)).join(" → ")}`
        : show(values(0, k)[i], m.unit),
      k,
    ])
    .filter(([, , k]) => runs.some((_, r) => Number.isFinite(values(r, k)[i])));
  const files = runs.map((run, k) =>
    data.files[k][i]
      ? el("a", {href: data.files[k][i]}, comparing ? `file of ${run.name}` : "file")
      : null,
  );
  $("viewer").replaceChildren(
    el(
      "div",
      {class: "viewer"},
      el(
        "div",
        {class: "row"},
        el("h2", {}, `Picture ${data.id[i]}`),
        el("button", {type: "button", class: "quiet", onclick: () => $("viewer").close()}, "Close"),
      ),
      shotsOf(i),
      el(
        "p",
        {class: "hint facts"},
        facts
          .filter(([, text]) => text !== null && text !== "")
          .map(([name, text]) => `${name}: ${text}`)
          .join(" · "),
      ),
      el(
        "div",
        {class: "columns"},
        numbers.map(([title, text]) => el("div", {}, el("span", {}, title), el("b", {}, text))),
      ),
      el("p", {class: "files"}, files),
    ),
  );
  if (!$("viewer").open) $("viewer").showModal();
}
$("viewer").addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key],
    at = found.indexOf(shownNow);
  if (step && at >= 0 && found[at + step] !== undefined) view(found[at + step]);
});
$("viewer").addEventListener("click", event => {
  if (event.target === $("viewer")) $("viewer").close();
});
