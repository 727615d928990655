// The page: photos, people and settings in; pictures out.

import * as server from "./server.js";
import { HeadModel, HeadView } from "./head_view.js";
import { Person, job, sideBySide } from "./heads.js";
import { Controls, gridCells, onDrop, ownWords, themes } from "./controls.js";
import { $, Gallery, element } from "./gallery.js";
import { aspect, editing, mode, person, setMode, setSettings, settings, state } from "./settings.js";

const KEPT = "caphuman";
const view = new HeadView($("view"));
let controls = null, running = null;
const showWords = ownWords(() => person(), () => changed());

function problem(error) {
  if (error?.name === "AbortError") return;
  $("problem").textContent = error ? error.message : "";
}

function notices(lines) {
  $("notices").replaceChildren(...lines.map((line) => element("li", { textContent: line })));
}

// ---------------------------------------------------------------- people and their heads

function draw() {
  const several = state.people.length > 1 && !editing();
  const people = editing() ? state.people.slice(state.chosen, state.chosen + 1) : state.people;
  $("stage").style.aspectRatio = aspect();
  view.draw(people.map((one) => one.shown(aspect(), several)), aspect());
  $("own").hidden = !several;
  const band = several ? person().band : null;
  $("part").hidden = !band;
  if (band) Object.assign($("part").style, { left: `${100 * band[0]}%`, right: `${100 * (1 - band[1])}%` });
  if (several) showWords();
}

function changed() {
  draw();
  keep();
}

function choose(index) {
  state.chosen = index;
  state.people.forEach((one, i) => (one.current = i === index));
  show();
}

// Everything that depends on who is there.
function show() {
  const there = state.people.length > 0;
  $("empty").hidden = there || !$("busy").hidden;
  $("make").disabled = $("grid").disabled = !there || Boolean(running);
  $("make").textContent = editing() ? "Edit the photo" : "Make pictures";
  const chips = state.people.map((one, i) => {
    const picture = element("img", { src: `/v1/photos/${one.photo.id}`, alt: "" });
    const made = element("button", { type: "button", onclick: () => choose(i), title: one.photo.name }, picture, element("span", { textContent: one.photo.name }));
    made.setAttribute("aria-pressed", String(i === state.chosen));
    return made;
  });
  if (there) {
    chips.push(element("button", { type: "button", className: "add make-only", textContent: "+ person", onclick: () => pickFile("add") }));
    if (chips.length > 2) chips.push(element("button", { type: "button", className: "add make-only", textContent: "Remove", onclick: remove }));
  }
  $("people").replaceChildren(...chips);
  $("photo").hidden = !there;
  $("controls").inert = $("reset").disabled = !there;
  if (there) showPhoto(person());
  controls?.show();
  changed();
}

function showPhoto(one) {
  const boxes = $("photo").querySelector(".boxes");
  const image = boxes.querySelector("img");
  const address = `/v1/photos/${one.photo.id}`;
  if (!image.src.endsWith(address)) image.src = address;
  const faces = one.faces.map((face, i) => {
    const [left, top, right, bottom] = face.box.map((side) => 100 * side);
    const made = element("button", { type: "button", onclick: () => i !== one.face && chooseFace(i) });
    Object.assign(made.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    made.setAttribute("aria-label", `Face ${i + 1} of ${one.faces.length}`);
    made.setAttribute("aria-pressed", String(i === one.face));
    return made;
  });
  boxes.replaceChildren(image, ...faces);
  // In a corner of the view; where a face has to be chosen, below it and large enough for that.
  const many = one.faces.length > 1;
  $("photo").classList.toggle("many", many);
  if (many) $("stage").after($("photo"));
  else $("stage").append($("photo"));
  $("photo").querySelector("figcaption").textContent = many ? `${one.faces.length} faces: choose one.` : "";
}

function remove() {
  state.people.splice(state.chosen, 1);
  if (state.people.length === 1) state.people[0].center();
  else sideBySide(state.people, aspect());
  choose(0);
}

function replaceChosen(made) {
  if (state.people.length > 1) made.replace(person());
  state.people[state.chosen] = made;
}

async function chooseFace(face) {
  const one = person();
  await waiting(async () => {
    replaceChosen(new Person(await server.head(one.photo.id, face)));
  }, "Fitting the head …");
  choose(state.chosen);
}

let purpose = "replace";
function pickFile(what) {
  purpose = what;
  $("file").click();
}

async function waiting(work, text) {
  $("busy").hidden = false;
  $("busy").querySelector("span").textContent = text;
  $("empty").hidden = true;
  problem(null);
  try {
    return await work();
  } catch (error) {
    problem(error);
  } finally {
    $("busy").hidden = true;
    show();
  }
}

// A photo, or a picture of ours, which brings everything back.
async function take(file, what) {
  await waiting(async () => {
    const photo = await server.addPhoto(file);
    state.photos.set(photo.sha256, photo.id);
    if (photo.settings) return restore(photo.settings);
    if (state.pending && state.pending.people.some((one) => one.reference.sha256 === photo.sha256)) return restore(state.pending);
    const made = new Person(await server.head(photo.id));
    if (what === "add" && state.people.length && !editing()) {
      state.people.push(made);
      sideBySide(state.people, aspect());
      state.chosen = state.people.length - 1;
    } else if (what === "replace" && state.people.length) replaceChosen(made);
    else state.people = [made];
    state.people.forEach((one, i) => (one.current = i === state.chosen));
    notices(made.notices);
  }, "Finding the face …");
}

// ---------------------------------------------------------------- as it was

// Everything as it was when a picture was made. Photos are known by their checksums.
async function restore(made) {
  const names = made.people.filter((one) => !state.photos.has(one.reference.sha256)).map((one) => one.reference.name);
  setSettings(made);
  setMode(made.edit ? "edit" : "make");
  if (names.length) {
    state.pending = made;
    notices([`Drop ${names.join(" and ")} too: the picture was made from it.`]);
    return;
  }
  state.pending = null;
  const several = made.people.length > 1;
  const people = [];
  for (const recorded of made.people) {
    const answer = await server.head(state.photos.get(recorded.reference.sha256), recorded.reference.face);
    people.push(new Person(answer));
    if (!made.edit) people.at(-1).restore(recorded, state.head.faceHeight, several);
    else people.at(-1).restoreAsked(recorded.asked_head);
  }
  state.people = people;
  choose(0);
  notices([]);
}

let keeping = 0;
function keep() {
  keeping ||= setTimeout(keepNow, 300);
}

function keepNow() {
  clearTimeout(keeping);
  keeping = 0;
  const people = state.people.map(({ photo, face, now, lamp, words, band }) => ({ photo: photo.id, face, now, lamp, words, band }));
  const kept = { people, settings: settings(), number: $("number").value, mode: mode() };
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(kept));
  } catch {
    // Private windows may have no room: a reload begins empty.
  }
}

async function resume(photos) {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) || "null");
  if (!kept) return;
  setSettings(kept.settings);
  setMode(kept.mode);
  const there = new Set(photos.map((photo) => photo.id));
  const known = kept.people.filter((one) => there.has(one.photo));
  if (!known.length) return;
  await waiting(async () => {
    for (const { photo, face, ...rest } of known) {
      const one = new Person(await server.head(photo, face));
      Object.assign(one, rest);
      state.people.push(one);
    }
    choose(0);
  }, "Fitting the head …");
}

// ---------------------------------------------------------------- making pictures

async function run(count, work) {
  running = new AbortController();
  $("cancel").hidden = false;
  $("progress").style.visibility = "visible";
  $("progress").max = count;
  $("progress").value = 0;
  problem(null);
  show();
  try {
    await work(running.signal);
  } catch (error) {
    problem(error);
  } finally {
    running = null;
    $("cancel").hidden = true;
    $("progress").style.visibility = "hidden";
    show();
  }
}

const done = () => ($("progress").value += 1);

// `more`: fields of the job that the form does not have.
function make(more = {}) {
  const asked = { ...settings(), ...more };
  const wanted = job(editing() ? [person()] : state.people, asked, editing());
  const photo = editing() ? `/v1/photos/${person().photo.id}` : null;
  const shape = editing() ? person().photo.width / person().photo.height : aspect();
  return run(asked.num_images, async (signal) => {
    const batch = gallery.batch(asked.prompt, asked.num_images, shape);
    let next = 0;
    try {
      await server.make(wanted, {
        started: (facts) => notices(facts.notices),
        picture: (picture) => {
          gallery.fill(batch.places[next++], picture, photo);
          done();
        },
      }, signal);
    } finally {
      gallery.end(batch);
    }
  });
}

function makeGrid() {
  const { yaws, cells } = gridCells();
  const asked = { ...settings(), num_images: 1 };
  return run(cells.length, async (signal) => {
    const labels = cells.map(([name, yaw]) => `${name.replace("-", " ")}, ${yaw}°`);
    const batch = gallery.batch(`${asked.prompt} · yaw × expression`, cells.length, aspect(), yaws.length, labels);
    const waiting = cells.map((cell, i) => [...cell, i]);
    // Two at a time, so that they can share a batch of the device.
    const worker = async () => {
      while (waiting.length && !signal.aborted) {
        const [name, yaw, i] = waiting.shift();
        const wanted = job(state.people, asked, false);
        const own = wanted.people ? wanted.people[state.chosen] : wanted;
        own.head = { ...own.head, yaw, expression: state.head.presets[name] };
        await server.make(wanted, {
          picture: (picture) => {
            gallery.fill(batch.places[i], picture);
            done();
          },
        }, signal);
      }
    };
    try {
      await Promise.all([worker(), worker()]);
    } finally {
      gallery.end(batch);
    }
  });
}

const gallery = new Gallery({
  restore: (picture) => waiting(() => restore({ ...picture.settings, num_images: picture.settings.num_images }), "Fitting the head …"),
  sameSeed: ({ settings: made }) => {
    setSettings({ ...made, first_image: 0, num_images: 1 });
    setMode(made.edit ? "edit" : "make");
    show();
    if (state.people.length && !running) make({ first_image: made.index });
  },
});

// ---------------------------------------------------------------- events

function wire() {
  $("choose").onclick = $("another").onclick = () => pickFile("replace");
  $("sample").onclick = async () => {
    const answer = await fetch("/sample.png");
    take(new File([await answer.blob()], "astronaut.png", { type: "image/png" }), "replace");
  };
  $("file").onchange = async () => {
    const files = [...$("file").files];
    $("file").value = "";
    for (const [i, file] of files.entries()) await take(file, i ? "add" : purpose);
  };
  $("take").onclick = () => $("head-file").click();
  $("head-file").onchange = async () => {
    const [file] = $("head-file").files;
    $("head-file").value = "";
    const parts = [...$("other-head").querySelectorAll("input:checked")].map((box) => box.value);
    if (!file || !person()) return;
    await waiting(async () => person().take(await server.head((await server.addPhoto(file)).id), parts), "Fitting the head …");
  };
  $("reset").onclick = () => {
    if (!person()) return;
    const { x, y, size } = person().now;
    person().reset();
    if (state.people.length > 1) Object.assign(person().now, { x, y, size });
    show();
  };
  $("form").onsubmit = (event) => {
    event.preventDefault();
    if (!running && state.people.length) make();
  };
  $("form").oninput = keep;
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  };
  $("shape").onchange = () => {
    if (state.people.length > 1) sideBySide(state.people, aspect());
    show();
  };
  $("dice").onclick = () => {
    $("seed").value = Math.floor(Math.random() * 1e6);
    keep();
  };
  $("cancel").onclick = () => running?.abort();
  $("grid").onclick = () => $("grid-dialog").showModal();
  $("grid-form").oninput = () => ($("grid-count").textContent = gridCells().cells.length);
  $("grid-dialog").onclose = () => {
    if ($("grid-dialog").returnValue === "make") makeGrid();
    $("grid-dialog").returnValue = "";
  };
  for (const input of document.querySelectorAll("input[name=mode]")) {
    input.onchange = () => {
      setMode(input.value);
      show();
    };
  }
  $("forget").onclick = async () => {
    running?.abort();
    await server.endSession().catch(problem);
    clearTimeout(keeping);
    keeping = 0;
    sessionStorage.removeItem(KEPT);
    Object.assign(state, { people: [], chosen: 0, pending: null });
    state.photos.clear();
    gallery.clear();
    await server.session();
    notices(["Photos and pictures are deleted."]);
    show();
  };
  onDrop($("drop"), async (files) => {
    for (const [i, file] of files.entries()) await take(file, i ? "add" : "replace");
  });
  window.addEventListener("pagehide", () => keeping && keepNow());
  new ResizeObserver(draw).observe($("stage"));
}

function showStatus(status) {
  const usable = ["ready", "warming up"].includes(status) && state.model;
  const text = usable ? `Ready · ${state.model.name}` : status === "gone" ? "The server does not answer" : "Loading the model …";
  $("status").className = usable ? "ready" : status === "gone" ? "gone" : "";
  $("status").lastElementChild.textContent = text;
}

async function watch() {
  const status = await server.stage();
  showStatus(status);
  setTimeout(watch, status === "ready" ? 10000 : 700);
}

async function start() {
  themes($("theme"));
  setMode("make");
  if (window.innerWidth < 900) for (const part of document.querySelectorAll("#controls details")) part.open = false;
  wire();
  watch();
  const kept = await server.session();
  for (const photo of kept.photos) state.photos.set(photo.sha256, photo.id);
  for (const picture of kept.pictures) {
    const { places } = gallery.batch(picture.settings.prompt, 1, picture.settings.edit ? 1 : picture.settings.size[0] / picture.settings.size[1]);
    const edit = picture.settings.edit && state.photos.get(picture.settings.edit.photo.sha256);
    gallery.fill(places[0], picture, edit && `/v1/photos/${edit}`);
  }
  await server.loaded();
  const { models, limits } = await server.models();
  [state.model] = models;
  for (const [id, name] of [["steps", "steps"], ["guidance", "guidance_scale"]]) if (!$(id).value) $(id).value = state.model.sampling[name];
  $("number").max = limits.max_pictures;
  state.head = new HeadModel(await server.headModel());
  view.use(state.head);
  controls = new Controls(state.head, person, changed);
  controls.pick = (x, y) => {
    if (state.people.length < 2 || editing()) return;
    const away = state.people.map((one) => Math.hypot((one.now.x - x) * aspect(), one.now.y - y));
    const nearest = away.indexOf(Math.min(...away));
    if (nearest !== state.chosen) choose(nearest);
  };
  const chosen = ["neutral", "smile"];
  $("grid-expressions").replaceChildren(
    ...Object.keys(state.head.presets).map((name) => {
      const box = element("input", { type: "checkbox", value: name, checked: chosen.includes(name) });
      return element("label", {}, box, ` ${name.replace("-", " ")}`);
    }),
  );
  showStatus("ready");
  await resume(kept.photos);
  show();
}

// For tests.
window.studio = { state, view, gallery };
start().catch(problem);
