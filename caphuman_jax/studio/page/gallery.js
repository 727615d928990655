// Pictures as they arrive, and one of them in large.

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const NAMES = {
  prompt: "Prompt", negative_prompt: "Not in it", seed: "Seed", index: "Index", steps: "Steps", sampler: "Sampler",
  guidance_scale: "Guidance", control_scale: "Control", size: "Size", denoise: "May change", model: "Model",
};

export class Gallery {
  // `on` has functions for what can be done with a picture: restore(picture), sameSeed(picture).
  constructor(on) {
    this.on = on;
    this.shown = null;
    $("restore").onclick = () => this.close(on.restore);
    $("same-seed").onclick = () => this.close(on.sameSeed);
    const range = $("compare").querySelector("input");
    range.oninput = () => this.split(Number(range.value));
    $("before").onload = () => this.split(Number(range.value));
  }

  close(then) {
    $("viewer").close();
    then(this.shown);
  }

  // A group with room for pictures; the newest group comes first.
  batch(title, count, aspect, columns = 0, labels = []) {
    const group = element("section", { className: "batch" }, element("p", { textContent: title, title }));
    const list = element("div", { className: columns ? "pictures grid" : "pictures" });
    list.style.setProperty("--columns", columns);
    list.style.setProperty("--aspect", aspect);
    const places = Array.from({ length: count }, (_, i) => {
      const place = element("button", { type: "button", className: "card-wait", disabled: true });
      place.setAttribute("aria-label", "A picture that is being made");
      if (labels[i]) place.append(element("span", { className: "cell", textContent: labels[i] }));
      list.append(place);
      return place;
    });
    group.append(list);
    $("gallery").prepend(group);
    $("none").hidden = true;
    return { group, places };
  }

  // Show a picture in its place. `photo`: the address of the photo that it changes.
  fill(place, picture, photo) {
    const { settings } = picture;
    const image = element("img", { src: picture.url, alt: settings.prompt, loading: "lazy" });
    place.prepend(image);
    place.classList.remove("card-wait");
    place.disabled = false;
    place.setAttribute("aria-label", `Picture: ${settings.prompt}, seed ${settings.seed}, index ${settings.index}`);
    place.onclick = () => this.show(picture, photo);
  }

  // Places that nothing came for are removed.
  end({ group, places }) {
    for (const place of places) if (place.disabled) place.remove();
    if (!group.querySelector("button")) group.remove();
    $("none").hidden = $("gallery").childElementCount > 0;
  }

  clear() {
    $("gallery").replaceChildren();
    $("none").hidden = false;
  }

  show(picture, photo) {
    this.shown = picture;
    const { settings } = picture;
    $("after").src = picture.url;
    $("download").href = `${picture.url}?download`;
    $("download").download = picture.name;
    $("before").hidden = $("compare").hidden = $("edge").hidden = !photo;
    if (photo) $("before").src = photo;
    const facts = Object.entries(NAMES).filter(([name]) => name in settings && settings[name] !== "" && (name !== "denoise" || settings.edit));
    const head = settings.people[0]?.head;
    const rows = facts.map(([name, title]) => [title, name === "size" ? settings.size.join(" × ") : settings[name]]);
    if (head) rows.push(["Head", `yaw ${head.yaw.toFixed(0)}°, pitch ${head.pitch.toFixed(0)}°, roll ${head.roll.toFixed(0)}°`]);
    $("settings").replaceChildren(
      ...rows.flatMap(([title, value]) => [element("dt", { textContent: title }), element("dd", { textContent: String(value) })]),
    );
    $("viewer").showModal();
  }

  // The photo left of the edge, the picture right of it.
  split(part) {
    const [before, box] = [$("before"), $("before").parentElement];
    const ratio = before.naturalWidth / before.naturalHeight || 1;
    const width = Math.min(box.clientWidth, box.clientHeight * ratio);
    before.style.clipPath = `inset(0 ${100 - part}% 0 0)`;
    const margin = (box.clientWidth - width) / 2;
    before.style.clipPath = `inset(0 ${box.clientWidth - margin - (width * part) / 100}px 0 0)`;
    $("edge").style.left = `${margin + (width * part) / 100}px`;
  }
}
