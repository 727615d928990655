// Plots as SVG in the size of their place; colors come from the style sheet.
const PAD = {left: 46, right: 14, top: 10, bottom: 36};

function niceSteps(low, high, wanted) {
  const raw = (high - low) / wanted || 1,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(s => s * power).find(s => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step)
    found.push(v);
  return found;
}
function canvas(place, height) {
  const width = Math.max(280, Math.round(place.clientWidth || 560));
  return {width, height, root: svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img"})};
}
function axes({width, height, root}, x, y, xTitle, xTicks, yTicks, xShow, yShow) {
  for (const tick of yTicks) {
    root.append(
      svg("line", {class: "grid", x1: PAD.left, x2: width - PAD.right, y1: y(tick), y2: y(tick)}),
      svg("text", {x: PAD.left - 7, y: y(tick) + 4, "text-anchor": "end"}, yShow(tick)),
    );
  }
  for (const tick of xTicks)
    root.append(svg("text", {x: x(tick), y: height - 20, "text-anchor": "middle"}, xShow(tick)));
  root.append(
    svg("line", {
      class: "axis",
      x1: PAD.left,
      x2: width - PAD.right,
      y1: height - PAD.bottom,
      y2: height - PAD.bottom,
    }),
    svg(
      "text",
      {x: (PAD.left + width - PAD.right) / 2, y: height - 3, "text-anchor": "middle"},
      xTitle,
    ),
  );
}
const linear = (low, high, from, to) => value =>
  from + ((value - low) / (high - low || 1)) * (to - from);
const nothing = text => el("p", {class: "nothing"}, text);
const tickText = tickUnit => value =>
  String(Number((value * unitScale(tickUnit)).toPrecision(3))).replace("-", "−");

function plotByAngle(place) {
  const angle = state.angle,
    measure = measures[state.measure];
  const shown = comparing
    ? [
        [0, "first"],
        [state.run, ""],
      ]
    : [[0, ""]];
  const curves = shown.map(([run, look]) => {
    const numbers = values(run, state.measure);
    const bins = [...grouped(i => (Number.isFinite(numbers[i]) ? asked(i, angle) : null))]
      .map(([at, list]) => ({at, sorted: list.map(i => numbers[i]).sort((a, b) => a - b)}))
      .sort((a, b) => a.at - b.at);
    return {run, look, numbers, bins};
  });
  const yesNo = binary(state.measure),
    bins = curves.flatMap(curve => curve.bins);
  const middle = b =>
    yesNo ? b.sorted.reduce((sum, v) => sum + v, 0) / b.sorted.length : quantile(b.sorted, 0.5);
  if (!bins.length)
    return place.replaceChildren(
      nothing("This measure has no value for single pictures with a known head."),
    );
  const area = canvas(place, 250),
    {root, width, height} = area;
  const edgeShare = comparing ? 0.25 : 0.02; // a comparison has no spots beyond its bands
  const ends = bins.flatMap(b => [
    quantile(b.sorted, edgeShare),
    quantile(b.sorted, 1 - edgeShare),
  ]);
  let low = Math.min(...ends),
    high = Math.max(...ends);
  const share = measure.unit === "share" || binary(state.measure);
  if (low >= 0 && (low < high * 0.35 || share)) low = 0;
  if (share) high = Math.max(high, 1);
  if (low === high) {
    low -= 0.5;
    high += 0.5;
  }
  const places = bins.map(b => b.at),
    margin = 4;
  const x = linear(
    Math.min(...places) - margin,
    Math.max(...places) + margin,
    PAD.left,
    width - PAD.right,
  );
  const y = linear(low, high, height - PAD.bottom, PAD.top);
  const all = [...new Set(places)].sort((a, b) => a - b),
    every = Math.ceil(all.length / (width / 46));
  axes(
    area,
    x,
    y,
    axisOf(angle),
    all.filter((_, i) => i % every === 0),
    niceSteps(low, high, 4),
    degrees,
    tickText(measure.unit),
  );
  for (const {look, numbers, bins: own} of curves) {
    if (!comparing && !yesNo) {
      const list = finite(numbers),
        stride = Math.ceil(list.length / 1200);
      for (let k = 0; k < list.length; k += stride) {
        const i = list[k],
          at = data.asked[angle][i];
        if (at !== null && numbers[i] >= low && numbers[i] <= high)
          root.append(svg("circle", {class: "spot", cx: x(at), cy: y(numbers[i]), r: 2}));
      }
    }
    const edge = share => own.map(b => `${x(b.at)},${y(quantile(b.sorted, share))}`);
    if (!yesNo)
      root.append(
        svg("polygon", {
          class: `band ${look}`,
          points: [...edge(0.25), ...edge(0.75).reverse()].join(" "),
        }),
      );
    root.append(
      svg("polyline", {
        class: `line ${look}`,
        points: own.map(b => `${x(b.at)},${y(middle(b))}`).join(" "),
      }),
    );
    for (const b of own)
      root.append(
        svg(
          "circle",
          {class: `knot ${look}`, cx: x(b.at), cy: y(middle(b)), r: 3.2},
          svg(
            "title",
            {},
            `${degrees(b.at)}°: ${yesNo ? "mean" : "median"} ${show(middle(b), measure.unit)} of ` +
              plural(b.sorted.length, "picture", "pictures"),
          ),
        ),
      );
  }
  const key = shown.map(([run, look]) =>
    el("span", {}, el("i", {class: `line ${look}`}), runs[run].name),
  );
  root.setAttribute("aria-label", `${measure.title} by asked ${angle}`);
  place.replaceChildren(...(comparing ? [el("p", {class: "legend names"}, key)] : []), root);
}

function plotHistogram(place) {
  const numbers = quantities(),
    measure = measures[state.measure];
  const sorted = finite(numbers)
    .map(i => numbers[i])
    .sort((a, b) => a - b);
  if (!sorted.length)
    return place.replaceChildren(nothing("This measure has no value for single pictures."));
  const marks = comparing
    ? [["zero", 0, "no difference"]]
    : [
        ["chance", measure.chance, "chance"],
        ["copy", measure.copy, "copy"],
        ["floor", measure.floor, "floor"],
      ];
  const known = marks.filter(([, at]) => Number.isFinite(at));
  let low = quantile(sorted, 0.005),
    high = quantile(sorted, 0.995);
  for (const [, at] of known) {
    low = Math.min(low, at);
    high = Math.max(high, at);
  }
  if (low === high) {
    low -= 0.5;
    high += 0.5;
  }
  const area = canvas(place, 250),
    {root, width, height} = area,
    count = Math.max(8, Math.min(40, Math.round(width / 14)));
  const bars = new Array(count).fill(0);
  for (const v of sorted)
    bars[Math.max(0, Math.min(count - 1, Math.floor(((v - low) / (high - low)) * count)))]++;
  const x = linear(low, high, PAD.left, width - PAD.right),
    mean = sorted.reduce((a, b) => a + b, 0) / sorted.length;
  const free = [],
    marked = [...known, ["mean", mean, "mean"]]
      .sort((a, b) => a[1] - b[1])
      .map(([look, at, text]) => {
        const room = text.length * 6.8 + 6,
          center = Math.min(width - room / 2, x(at));
        let line = free.findIndex(end => end <= center - room / 2);
        if (line < 0) line = free.length;
        free[line] = center + room / 2; // the end of the words in each line of words
        return {look, at, text, center, line};
      });
  const most = Math.max(...bars),
    top = PAD.top + 13 * free.length,
    y = linear(0, most, height - PAD.bottom, top + 4);
  axes(
    area,
    x,
    y,
    (comparing ? "difference of a pair of pictures" : "value of a picture") +
      (unit() ? `, ${WRITTEN[unit()] ?? unit()}` : ""),
    niceSteps(low, high, width / 90),
    niceSteps(0, most, 4).filter(Number.isInteger),
    tickText(unit()),
    v => whole(Math.abs(v)),
  );
  bars.forEach(
    (n, k) =>
      n &&
      root.append(
        svg("rect", {
          class: "bar",
          x: x(low + (k * (high - low)) / count) + 0.5,
          width: Math.max(1, (width - PAD.left - PAD.right) / count - 1),
          y: y(n),
          height: height - PAD.bottom - y(n),
        }),
      ),
  );
  const baseOf = line => top - 3 - 13 * line;
  for (const {look, at, line} of marked)
    root.append(
      svg("line", {
        class: `mark ${look}`,
        x1: x(at),
        x2: x(at),
        y1: baseOf(line) + 3,
        y2: height - PAD.bottom,
      }),
    );
  for (const {look, text, center, line} of marked)
    root.append(
      svg(
        "text",
        {
          x: center,
          y: baseOf(line),
          "text-anchor": "middle",
          class: look === "mean" ? "over label" : "over",
        },
        text,
      ),
    );
  root.setAttribute("aria-label", `Distribution of ${measure.title}`);
  place.replaceChildren(root);
}

/** How a mean is colored: worse is orange and better is pale; in a comparison, the color is that of
 *  the run that is better. */
function shading(means) {
  const direction = sign(state.measure),
    goods = means.map(m => m * direction).sort((a, b) => a - b);
  if (comparing) {
    const most = Math.max(1e-12, ...goods.map(Math.abs));
    return mean => [mean * direction < 0 ? "blue" : "accent", Math.abs(mean) / most];
  }
  const low = goods[0],
    high = goods[goods.length - 1];
  return mean => ["accent", high === low ? 0 : (high - mean * direction) / (high - low)];
}
function plotMap(place) {
  const numbers = quantities(),
    measure = measures[state.measure];
  if (!angles.includes("yaw") || !angles.includes("pitch"))
    return place.replaceChildren(
      nothing("The run has no angles of the heads that were asked for."),
    );
  const cells = [
    ...grouped(i =>
      Number.isFinite(numbers[i]) && asked(i, "yaw") !== null && asked(i, "pitch") !== null
        ? `${asked(i, "yaw")} ${asked(i, "pitch")}`
        : null,
    ),
  ].map(([name, list]) => {
    const [yaw, pitch] = name.split(" ").map(Number);
    return {yaw, pitch, ...meanOf(numbers, list)};
  });
  if (!cells.length)
    return place.replaceChildren(nothing("This measure has no value for single pictures."));
  const yaws = [...new Set(cells.map(c => c.yaw))].sort((a, b) => a - b),
    pitches = [...new Set(cells.map(c => c.pitch))].sort((a, b) => b - a);
  const wide = Math.max(280, Math.round(place.clientWidth || 900)),
    left = 58,
    tall = 40;
  const side = (wide - left - 4) / yaws.length,
    height = pitches.length * tall + 42;
  const root = svg("svg", {
    viewBox: `0 0 ${wide} ${height}`,
    role: "img",
    "aria-label": `${measure.title} over the head grid`,
  });
  const paint = shading(cells.map(c => c.mean));
  pitches.forEach((p, r) =>
    root.append(
      svg(
        "text",
        {x: left - 9, y: r * tall + tall / 2 + 4, "text-anchor": "end"},
        `${degrees(p)}°`,
      ),
    ),
  );
  yaws.forEach((v, c) =>
    root.append(
      svg(
        "text",
        {x: left + (c + 0.5) * side, y: pitches.length * tall + 16, "text-anchor": "middle"},
        `${degrees(v)}°`,
      ),
    ),
  );
  root.append(
    svg(
      "text",
      {x: left + (yaws.length * side) / 2, y: height - 5, "text-anchor": "middle"},
      axisOf("yaw"),
    ),
    svg(
      "text",
      {
        transform: `translate(11 ${(pitches.length * tall) / 2}) rotate(-90)`,
        "text-anchor": "middle",
      },
      "asked pitch",
    ),
  );
  for (const cell of cells) {
    const x = left + yaws.indexOf(cell.yaw) * side,
      y = pitches.indexOf(cell.pitch) * tall,
      [hue, share] = paint(cell.mean);
    const ink =
      share > 0.75
        ? `var(--on-${hue})`
        : share < 0.6
          ? "var(--ink)"
          : `light-dark(var(--ink), var(--on-${hue}))`;
    root.append(
      svg(
        "g",
        {class: "cell", onclick: () => searchFor(`yaw=${cell.yaw} pitch=${cell.pitch}`)},
        svg(
          "title",
          {},
          `yaw ${degrees(cell.yaw)}°, pitch ${degrees(cell.pitch)}°: mean ` +
            `${show(cell.mean, unit(), comparing)} of ${plural(cell.count, "picture", "pictures")}`,
        ),
        svg("rect", {
          x,
          y,
          width: side,
          height: tall,
          rx: 5,
          style: {
            fill: `color-mix(in oklab, var(--${hue}) ${Math.round(6 + 90 * share)}%, var(--card))`,
          },
        }),
        svg(
          "text",
          {
            x: x + side / 2,
            y: y + (side > 44 ? 19 : 24),
            style: {fill: ink, fontWeight: 600, fontSize: side > 44 ? "" : "10px"},
          },
          side > 24 ? digits(cell.mean * unitScale(unit()), unit()) : "",
        ),
        side > 44
          ? svg(
              "text",
              {class: "small", x: x + side / 2, y: y + 32, style: {fill: ink}},
              `n ${whole(cell.count)}`,
            )
          : null,
      ),
    );
  }
  place.replaceChildren(root);
  const mix = (hue, share) => `color-mix(in oklab, var(--${hue}) ${share}%, var(--card))`;
  const key = el("i", {
    style: {
      background: comparing
        ? `linear-gradient(90deg, ${mix("blue", 96)}, ${mix("accent", 6)}, ${mix("accent", 96)})`
        : `linear-gradient(90deg, ${mix("accent", 96)}, ${mix("accent", 6)})`,
    },
  });
  $("map-key").replaceChildren(
    comparing ? `${runs[0].name} better` : measures[state.measure].direction ? "worse" : "less",
    key,
    comparing
      ? `${runs[state.run].name} better`
      : measures[state.measure].direction
        ? "better"
        : "more",
  );
}
