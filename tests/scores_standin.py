"""A run folder of `caphuman evaluate` with made-up scores."""

import json

import numpy as np
from PIL import Image

HEADS = ("yaw=-30,pitch=0", "yaw=0,pitch=12.5", "yaw=30,pitch=0", "own")
PROMPTS = ("a photo of a person", "a photo of a person, blue background")
MEASURES = (
    ("face-found", "face found", "share", "up"),
    ("identity", "identity", "", "up"),
    ("yaw-median", "yaw error, median", "degrees", "down"),
    ("yaw-mean", "yaw error, mean", "degrees", "down"),
    ("brightness", "brightness", "", ""),
    ("distance", "Fréchet distance", "", "down"),
)


def write_run(
    folder,
    people=12,
    per_person=4,
    seed=0,
    yaw=0.0,
    prompts=PROMPTS,
    names=None,
    pictures=True,
    **settings,
):
    """Write a run whose yaw errors are `yaw` degrees larger than those of another one with the same
    seed. Returns the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"{i:03d}.jpg" for i in range(people)]
    shared, own, lines = np.random.default_rng(people), np.random.default_rng(seed), []
    for i in range(people * per_person):
        person, head = i // per_person, HEADS[i % len(HEADS)]
        asked = dict(part.split("=") for part in head.split(",")) if "=" in head else {}
        angles = {a: float(asked.get(a, shared.normal() * 3)) for a in ("yaw", "pitch", "roll")}
        error = round(abs(own.normal()) + 1 + yaw, 4)
        found = i % 11 != 10
        scores = {
            "face-found": float(found),
            "identity": round(float(own.uniform(0.4, 0.9)), 4),
            "yaw-median": error,
            "yaw-mean": error,
            "brightness": round(float(own.uniform()), 4),
        }
        if not found:
            scores |= {name: None for name in scores if name != "face-found"}
        line = {
            "id": f"{i:05d}",
            "person": names[person],
            "prompt": prompts[i // 2 % len(prompts)],
            "head": head,
            "seed": int(shared.integers(1000)),
            "file": f"pictures/{i:05d}.png",
            "references": [f"people/{person:05d}.png"],
            "head_file": "heads/00000.webp",
            "faces": int(found),
            "asked": {**angles, "position": [0.5, 0.5, 0.6], "light": [0, 0], "expression": {}},
            "scores": {**scores, "distance": None},
        }
        lines.append(line)
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if pictures:
        files = {file for line in lines for file in (line["file"], *line["references"])}
        for file in files | {"heads/00000.webp"}:
            (folder / file).parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), "teal").save(folder / file)
    summary = [
        {"name": name, "title": title, "unit": unit, "direction": direction}
        | {"value": 0.7, "low": 0.6, "high": 0.8, "chance": 0.1, "floor": 0.95, "copy": None}
        | {
            "people": people,
            "pictures": len(lines),
            "definition": "What it is.",
            "source": "a test",
        }
        for name, title, unit, direction in MEASURES
    ]
    document = {"settings": {"model": "mini", "steps": 20} | settings, "measures": summary}
    (folder / "summary.json").write_text(json.dumps(document))
    return folder
