// The controls of a head: sliders, presets, and dragging in the view.

import { EXPRESSIONS, POSE } from "./heads.js";
import { $, element } from "./gallery.js";

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function slider(id, label, low, high, step, unit, set) {
  const input = element("input", { type: "range", id, min: low, max: high, step, value: 0 });
  const output = element("output", { htmlFor: id });
  let last = null;
  const shown = (value) => {
    if (value === last) return; // what is written again is laid out again
    input.value = last = value;
    output.textContent = step < 1 ? Number(value).toFixed(2) : `${Math.round(value)}${unit}`;
  };
  input.oninput = () => {
    shown(Number(input.value));
    set(Number(input.value));
  };
  const row = element("div", { className: "slider" }, element("label", { htmlFor: id, textContent: label }), input, output);
  return { row, shown };
}

// The words of one person, and the part of the picture that they are for. `person()` is the one who
// is chosen, `changed()` is called after each change.
export function ownWords(person, changed) {
  const edges = [["from", "Left edge", 0], ["to", "Right edge", 1]].map(([id, label, side]) => {
    const made = slider(`band-${id}`, label, 0, 1, 0.01, "", (value) => {
      const { band } = person();
      band[side] = side ? Math.max(value, band[0] + 0.05) : Math.min(value, band[1] - 0.05);
      changed();
    });
    $("band").append(made.row);
    return made;
  });
  $("own-prompt").oninput = () => {
    person().words = $("own-prompt").value.trim();
    changed();
  };
  $("own-place").onchange = () => {
    const { now } = person();
    const side = (x) => clamp(Math.round(100 * x) / 100, 0, 1);
    person().band = $("own-place").value === "band" ? [side(now.x - now.size), side(now.x + now.size)] : null;
    changed();
  };
  return () => {
    const one = person();
    $("own-name").textContent = one.photo.name;
    if ($("own-prompt").value.trim() !== one.words) $("own-prompt").value = one.words;
    $("own-place").value = one.band ? "band" : "head";
    $("band").hidden = !one.band;
    if (one.band) edges.forEach((made, side) => made.shown(one.band[side]));
  };
}

function press(button, on) {
  if (button.getAttribute("aria-pressed") !== String(on)) button.setAttribute("aria-pressed", String(on));
}

function chip(text, click) {
  const made = element("button", { type: "button", textContent: text, onclick: click });
  made.setAttribute("aria-pressed", "false");
  return made;
}

export class Controls {
  // `person()` is the one who is controlled; `changed()` is called after each change.
  constructor(model, person, changed) {
    Object.assign(this, { model, person, changed });
    this.rows = [];
    for (const [name, label, low, high, step, unit] of POSE) {
      this.add("pose", slider(`pose-${name}`, label, low, high, step, unit, (value) => this.set((p) => (p.now[name] = value))), (p) => p.now[name]);
    }
    const known = EXPRESSIONS.map(([label, names]) => [label, names.filter((name) => model.names.includes(name))]);
    known.filter(([, names]) => names.length).forEach(([label, names], i) => {
      const set = (value) => this.set((p) => names.forEach((name) => (value ? (p.now.weights[name] = value) : delete p.now.weights[name])));
      const mean = (p) => names.reduce((sum, name) => sum + (p.now.weights[name] || 0), 0) / names.length;
      this.add("expression", slider(`expression-${i}`, label, 0, 1, 0.01, "", set), mean);
    });
    this.presets = Object.keys(model.presets).map((name) => [chip(name.replace("-", " "), () => this.set((p) => p.use(model.presets[name]))), model.presets[name]]);
    $("presets").replaceChildren(...this.presets.map(([made]) => made));
    this.lights = Object.keys(model.lights).map((name) => [
      chip(name.replace("-", " "), () => this.set((p) => {
        p.lamp = null;
        p.now.light = model.lights[name];
      })),
      name,
    ]);
    $("lights").replaceChildren(...this.lights.map(([made]) => made));
    const strength = slider("light-strength", "Strength", 0, 1, 0.01, "", (value) => this.set((p) => p.shine(p.lamp?.[0] || [0, 0.3, 1], value)));
    this.add("light", strength, (p) => p.lamp?.[1] ?? 0.5);
    this.drag($("view"));
  }

  add(place, { row, shown }, read) {
    $(place).append(row);
    this.rows.push([shown, read]);
  }

  set(change) {
    const person = this.person();
    if (!person) return;
    change(person);
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.show();
    });
    this.changed();
  }

  show() {
    const person = this.person();
    if (!person) return;
    for (const [shown, read] of this.rows) shown(read(person));
    const weights = JSON.stringify(person.now.weights);
    for (const [made, preset] of this.presets) press(made, JSON.stringify(preset) === weights);
    for (const [made, name] of this.lights) press(made, !person.lamp && person.now.light === this.model.lights[name]);
  }

  // Turn, move or light by (dx, dy) in parts of the canvas; (x, y) is where the pointer is.
  act(tool, dx, dy, x, y) {
    this.set((p) => {
      const { now } = p;
      if (tool === "turn") {
        now.yaw = clamp(now.yaw + 140 * dx, -this.model.limits.yaw, this.model.limits.yaw);
        now.pitch = clamp(now.pitch - 110 * dy, -this.model.limits.pitch, this.model.limits.pitch);
      } else if (tool === "move") {
        now.x = clamp(now.x + dx, 0, 1);
        now.y = clamp(now.y + dy, 0, 1);
      } else {
        const [u, v] = [clamp(2 * x - 1, -1, 1), clamp(1 - 2 * y, -1, 1)];
        p.shine([1.4 * u, 1.4 * v, Math.max(0.15, 1 - Math.hypot(u, v))], p.lamp?.[1] ?? 0.6);
      }
    });
  }

  drag(canvas) {
    const tool = () => document.querySelector("input[name=tool]:checked").value;
    let last = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = at(event);
      this.pick?.(...last);
      if (tool() === "light") this.act("light", 0, 0, ...last);
    };
    canvas.onpointermove = (event) => {
      if (!last) return;
      const now = at(event);
      if (event.shiftKey && tool() === "turn") this.set((p) => (p.now.roll = clamp(p.now.roll + 140 * (now[0] - last[0]), -180, 180)));
      else this.act(tool(), now[0] - last[0], now[1] - last[1], ...now);
      last = now;
    };
    canvas.onpointerup = canvas.onpointercancel = () => (last = null);
    canvas.addEventListener("wheel", (event) => {
      if (tool() !== "move" || !this.person()) return;
      event.preventDefault();
      this.set((p) => (p.now.size = clamp(p.now.size * Math.exp(-event.deltaY / 900), 0.1, 1.5)));
    }, { passive: false });
    canvas.onkeydown = (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [dx, dy] = step;
      if (event.shiftKey && tool() === "turn") this.set((p) => (p.now.roll = clamp(p.now.roll + 4 * dx, -180, 180)));
      else if (tool() === "light") {
        const [x, y] = this.person()?.lamp?.[0] || [0, 0];
        this.act("light", 0, 0, (x / 1.4 + 0.15 * dx + 1) / 2, (1 - y / 1.4 + 0.15 * dy) / 2);
      } else this.act(tool(), 0.03 * dx, 0.03 * dy, 0.5, 0.5);
    };
  }
}

// Call `take` with the files that are dropped on the page; `sign` is shown while they are over it.
export function onDrop(sign, take) {
  let depth = 0;
  const files = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  window.ondragenter = (event) => {
    if (files(event)) sign.hidden = ++depth < 1;
  };
  window.ondragleave = (event) => {
    if (files(event)) sign.hidden = --depth < 1;
  };
  window.ondragover = (event) => event.preventDefault();
  window.ondrop = (event) => {
    event.preventDefault();
    depth = 0;
    sign.hidden = true;
    take([...event.dataTransfer.files]);
  };
}

// The yaws and the pairs [expression, yaw] of the grid's form.
export function gridCells() {
  const yaws = $("yaws").value.split(/[,\s]+/).filter(Boolean).map(Number).filter(Number.isFinite);
  const names = [...$("grid-expressions").querySelectorAll("input:checked")].map((box) => box.value);
  return { yaws, cells: names.flatMap((name) => yaws.map((yaw) => [name, yaw])) };
}

// A button that changes between light and dark; the choice stays.
export function themes(button) {
  const { dataset } = document.documentElement;
  const kept = localStorage.getItem("caphuman-theme");
  if (kept) dataset.theme = kept;
  button.onclick = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
    dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("caphuman-theme", dataset.theme);
  };
}
