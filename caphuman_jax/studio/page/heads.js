// People and their heads: what was fitted, what is wanted now, and the job that asks for it.

import { decode, lampLight } from "./head_view.js";

// Sliders of expressions: a label and the expressions that it moves together.
export const EXPRESSIONS = [
  ["Smile", ["mouthSmileLeft", "mouthSmileRight"]],
  ["Open mouth", ["jawOpen"]],
  ["Pucker", ["mouthPucker"]],
  ["Frown", ["mouthFrownLeft", "mouthFrownRight"]],
  ["Brows up", ["browInnerUp", "browOuterUpLeft", "browOuterUpRight"]],
  ["Brows down", ["browDownLeft", "browDownRight"]],
  ["Shut left", ["eyeBlinkLeft"]],
  ["Shut right", ["eyeBlinkRight"]],
  ["Eyes wide", ["eyeWideLeft", "eyeWideRight"]],
  ["Squint", ["eyeSquintLeft", "eyeSquintRight"]],
  ["Puff cheeks", ["cheekPuff"]],
  ["Sneer", ["noseSneerLeft", "noseSneerRight"]],
];
export const POSE = [
  ["yaw", "Yaw", -60, 60, 1, "°"],
  ["pitch", "Pitch", -45, 45, 1, "°"],
  ["roll", "Roll", -60, 60, 1, "°"],
  ["x", "Left–right", 0, 1, 0.01, ""],
  ["y", "Up–down", 0, 1, 0.01, ""],
  ["size", "Size", 0.15, 1, 0.01, ""],
];

const copy = (now) => ({ ...now, weights: { ...now.weights }, light: now.light.map((row) => [...row]) });

// The head that the server measured, as a view shows it in a square picture.
function measured(answer) {
  const { head } = answer;
  const [x, y, size] = head.position;
  return { yaw: head.yaw, pitch: head.pitch, roll: head.roll, x, y, size, weights: answer.weights, light: head.light };
}

export class Person {
  constructor(answer) {
    this.photo = answer.photo;
    this.faces = answer.faces;
    this.face = answer.face;
    this.notices = answer.notices;
    this.mesh = { shape: decode(answer.shape, Float32Array), colors: decode(answer.colors, Uint8Array) };
    this.fitted = measured(answer);
    this.now = copy(this.fitted);
    this.lamp = null; // [direction, strength] where the light was dragged
    this.words = ""; // of this person alone, next to others
    this.band = null; // [left, right] of this person's part of the picture; null: around the head
    this.current = true;
  }

  // The photo's head.
  reset() {
    this.now = copy(this.fitted);
    this.lamp = null;
  }

  // The photo's place, for whoever is alone in the picture.
  center() {
    const { x, y, size } = this.fitted;
    Object.assign(this.now, { x, y, size });
  }

  // Stand where `other` stood among several people, with their words.
  replace(other) {
    const { x, y, size } = other.now;
    Object.assign(this.now, { x, y, size });
    Object.assign(this, { words: other.words, band: other.band });
  }

  use(preset) {
    this.now.weights = { ...preset };
  }

  shine(direction, strength) {
    this.lamp = [direction, strength];
    this.now.light = lampLight(direction, strength);
  }

  // Take parts of the head in another photo.
  take(answer, parts) {
    const other = measured(answer);
    const fields = { position: ["x", "y", "size"], pose: ["yaw", "pitch", "roll"], expression: ["weights"], lighting: ["light"] };
    for (const part of parts) for (const field of fields[part]) this.now[field] = other[field];
    if (parts.includes("lighting")) this.lamp = null;
    this.now = copy(this.now);
  }

  // The head as a job asks for it: only what differs from the photo's.
  target(aspect, several, edited) {
    const { now, fitted } = this;
    const differs = (a, b) => Math.abs(a - b) > 1e-6;
    const head = {};
    for (const name of ["yaw", "pitch", "roll"]) if (differs(now[name], fitted[name])) head[name] = now[name];
    const moved = ["x", "y", "size"].some((name) => differs(now[name], fitted[name]));
    // A square's place in a picture of another shape: the height stays, about the center.
    const x = 0.5 + (now.x - 0.5) / (several ? 1 : aspect);
    if (!edited && (moved || several)) head.position = [x, now.y, now.size];
    if (JSON.stringify(now.weights) !== JSON.stringify(fitted.weights)) head.expression = now.weights;
    if (this.lamp) head.light = [...this.lamp[0], this.lamp[1]].map((n) => n.toFixed(3)).join(",");
    else if (JSON.stringify(now.light) !== JSON.stringify(fitted.light)) head.light = now.light;
    return head;
  }

  // As it stands in a picture of this shape, for a view.
  shown(aspect, several) {
    return { mesh: this.mesh, current: this.current, now: several ? this.now : { ...this.now, x: 0.5 + (this.now.x - 0.5) / aspect } };
  }

  // What a picture of ours says of its head.
  restore(recorded, faceHeight, several) {
    const head = recorded.head;
    const [height, width] = head.size;
    const aspect = width / height;
    const x = head.translation[0] / width;
    this.now = copy({
      yaw: head.yaw,
      pitch: head.pitch,
      roll: head.roll,
      x: several ? x : 0.5 + (x - 0.5) * aspect,
      y: head.translation[1] / height,
      size: (head.scale * faceHeight) / height,
      weights: head.expression,
      light: head.light,
    });
    this.lamp = null;
    this.words = recorded.prompt || "";
    this.band = recorded.box ? [recorded.box[0], recorded.box[2]] : null;
  }

  // What a job says of this person's part of the picture.
  region() {
    const { words, band } = this;
    return { ...(words ? { prompt: words } : {}), ...(band ? { box: [band[0], 0, band[1], 1] } : {}) };
  }

  // An edit's head is recorded as it stands in its canvas: what was asked for is taken instead.
  restoreAsked(asked) {
    for (const name of ["yaw", "pitch", "roll"]) if (asked[name] != null) this.now[name] = asked[name];
    if (asked.expression && typeof asked.expression === "object") this.use(asked.expression);
    if (typeof asked.light === "string") {
      const numbers = asked.light.split(",").map(Number);
      this.shine(numbers.slice(0, 3), numbers[3]);
    } else if (asked.light) this.now.light = asked.light;
  }
}

// Several people stand side by side, as `pipeline.head_target.place_side_by_side` puts them.
export function sideBySide(people, aspect) {
  people.forEach((person, i) => {
    person.now.x = (i + 0.5) / people.length;
    person.now.y = 0.5;
    person.now.size = Math.min(0.45, (0.62 * aspect) / people.length);
  });
}

// The fields of a job, as docs/serve.md has them.
export function job(people, settings, edited) {
  const several = people.length > 1 && !edited;
  const aspect = settings.size ? settings.size[0] / settings.size[1] : 1;
  const { size, denoise, ...numbers } = settings;
  const [first] = people;
  if (edited) {
    return { ...numbers, denoise, edit: { photo: first.photo.id, face: first.face }, head: first.target(1, false, true) };
  }
  const one = (person) => ({ reference: person.photo.id, face: person.face, head: person.target(aspect, several) });
  const shown = several ? { people: people.map((person) => ({ ...one(person), ...person.region() })) } : one(first);
  return { ...numbers, ...(size ? { size } : {}), ...shown };
}
