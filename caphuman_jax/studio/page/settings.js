// What is asked for: the people, the mode, and the numbers of the form.

import { $ } from "./gallery.js";

export const state = { people: [], chosen: 0, model: null, head: null, photos: new Map(), pending: null };
export const person = () => state.people[state.chosen];
export const mode = () => document.querySelector("input[name=mode]:checked").value;
export const editing = () => mode() === "edit";
export const aspect = () => (editing() ? 1 : Number($("shape").value));

// The numbers of a job, as docs/serve.md has them.
export function settings() {
  const values = { prompt: $("prompt").value.trim(), seed: Number($("seed").value), num_images: Number($("number").value) };
  if ($("negative").value.trim()) values.negative_prompt = $("negative").value.trim();
  for (const [id, name] of [["steps", "steps"], ["guidance", "guidance_scale"], ["control", "control_scale"], ["denoise", "denoise"], ["detail", "detail"]]) {
    const asked = { denoise: editing(), detail: !editing() && Number($(id).value) > 0 }[id] ?? true;
    if ($(id).value !== "" && asked) values[name] = Number($(id).value);
  }
  const shape = aspect();
  if (!editing() && shape !== 1 && state.model) {
    const { image_size: side, size_step: step } = state.model;
    const sized = (factor) => Math.max(step, Math.round((side * factor) / step) * step);
    values.size = shape > 1 ? [sized(shape), side] : [side, sized(1 / shape)];
  }
  return values;
}

// The form as it was when a picture was made.
export function setSettings(made) {
  $("prompt").value = made.prompt;
  $("negative").value = made.negative_prompt || "";
  $("seed").value = made.seed;
  $("steps").value = made.steps ?? "";
  $("guidance").value = made.guidance_scale ?? "";
  $("control").value = made.control_scale ?? 1;
  $("detail").value = made.detail || "";
  // As many as there were, from the first picture of the seed.
  if (made.num_images) $("number").value = (made.first_image || 0) + Number(made.num_images);
  if (made.edit && made.denoise) $("denoise").value = made.denoise;
  const shape = made.size ? made.size[0] / made.size[1] : 1;
  const choices = [...$("shape").options].map((option) => Number(option.value));
  const nearest = choices.reduce((a, b) => (Math.abs(a - shape) < Math.abs(b - shape) ? a : b));
  $("shape").selectedIndex = choices.indexOf(nearest);
}

export function setMode(name) {
  document.querySelector(`input[name=mode][value=${name}]`).checked = true;
  document.body.dataset.mode = name;
}
