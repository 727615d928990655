"""The verbs that write, each as one small command, and what has to be the same whatever happened.

Commands run in a folder of their own with `in/` (what they read) and `work/` (where they write), so
that paths in their results do not depend on the place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
_VOLATILE = {"seconds", "time", "versions", "compile_seconds"}
"""Entries of JSON results that say how long something took, or when it was."""
OWN = "NOTES.txt"
"""The user's own file in a folder that a command replaces."""
_HIDDEN = re.compile(r"(^|/)\.")


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        name: in the table.
        command: its arguments; in/ and work/ are relative to where it runs.
        inputs: what of the built inputs it reads: names in in/.
        before: {path in work/: name of what is copied there} before it runs.
        logs: pattern of paths in work/ that may be incomplete, and that differ from run to run:
            journals, checkpoints and unfinished work that only the same command reads.
        numbered: whether a rerun writes next to what is there, under the next numbers, so that only
            the contents of files are compared.
        weights: the model folder in in/ whose weights become NaN; None where it has none.
        memory: whether it runs compiled programs that can find the device's memory full.
        slow: whether it takes so long that it meets few faults, most of them once.
        many: whether it goes on without one of the files that it reads, and says so.
    """

    name: str
    command: str
    inputs: tuple[str, ...] = ()
    before: tuple[tuple[str, str], ...] = ()
    logs: str = r"^$"
    numbered: bool = False
    weights: str | None = "tiny"
    memory: bool = False
    many: bool = False
    slow: bool = False


_SAMPLE = "--model in/tiny --steps 2 --batch 2"
_RUN = r"^run/(\w+/)?((checkpoints|hosts|tensorboard|pictures)/|(starts|metrics)\.jsonl$)"
VERBS = [
    Verb(
        "import",
        "import work/m --caphuman in/caphuman.safetensors --config in/tiny.json --partial "
        "--head anny",
        ("caphuman.safetensors", "tiny.json"),
        weights="caphuman.safetensors",
    ),
    Verb(
        "import over",
        "import work/m --caphuman in/caphuman.safetensors --config in/tiny.json --partial "
        "--head anny --overwrite",
        ("caphuman.safetensors", "tiny.json"),
        before=(("m", "old"),),
        weights="caphuman.safetensors",
    ),
    Verb("export ldm", "export in/sd work/x.safetensors --to ldm", ("sd",), weights="sd"),
    Verb("export diffusers", "export in/sd work/x --to diffusers", ("sd",), weights="sd"),
    Verb("export run", "export in/run work/model", ("run", "records"), weights=None),
    Verb("export lora", "export in/lora work/model", ("lora", "tiny", "tokens")),
    Verb(
        "identity",
        "identity --reference in/photos/a.png --model in/tiny --out work/a.identity",
        ("photos", "tiny"),
        memory=True,
    ),
    Verb(
        "head",
        "head --reference in/a.identity --sequence in/heads.csv --model in/tiny --out work/heads "
        "--npz",
        ("a.identity", "heads.csv", "tiny"),
        weights=None,
        memory=True,
    ),
    Verb(
        "generate",
        "generate --reference in/a.identity --prompt=photo --num-images 3 --out work/out "
        f"{_SAMPLE}",
        ("a.identity", "tiny"),
        numbered=True,
        memory=True,
    ),
    Verb(
        "edit",
        "edit --photo in/photos/a.png --no-person --mask whole --prompt=photo --num-images 2 "
        f"--out work/out {_SAMPLE}",
        ("photos", "tiny"),
        numbered=True,
        memory=True,
    ),
    Verb(
        "sample",
        "sample --jobs in/jobs.jsonl --model in/tiny --batch 2 --out work/pictures",
        ("a.identity", "b.identity", "jobs.jsonl", "tiny"),
        logs=r"^pictures/(index|failed)\.jsonl$",
        many=True,
        memory=True,
    ),
    Verb(
        "sample records",
        "sample --jobs in/jobs.jsonl --model in/tiny --batch 2 --out work/pictures "
        "--format array_record",
        ("a.identity", "b.identity", "jobs.jsonl", "tiny"),
        logs=r"^pictures/(index|failed)\.jsonl$",
        many=True,
        memory=True,
    ),
    Verb(
        "evaluate",
        "evaluate --photos in/people --model in/tiny --report work/report --per-person 1 "
        "--heads own --prompts=photo --steps 2 --batch 2",
        ("people", "tiny"),
        logs=r"^report/pictures/(index|failed)\.jsonl$",
        many=True,
        memory=True,
    ),
    Verb(
        "train",
        "train --config in/tiny_recipe.py --workdir work/run",
        ("tiny_recipe.py",),
        logs=_RUN,
        weights=None,
        memory=True,
    ),
    Verb(
        "train mini",
        "train --config in/mini.py --workdir work/run --config.data=in/records "
        "--config.loop.save_every=1",
        ("mini.py", "records"),
        logs=_RUN,
        weights=None,
        slow=True,
        memory=True,
    ),
    Verb(
        "train lora",
        "train --config in/sd15.py --workdir work/run --config.data=in/tokens "
        "--config.base=in/tiny --config.hints=pictures --config.loader=grain "
        "--config.loop.save_every=1 --config.training.lora_rank=2",
        ("sd15.py", "tokens", "tiny"),
        logs=_RUN,
        memory=True,
        slow=True,
    ),
    Verb(
        "prepare",
        "prepare --photos in/photos --out work/records --size 64 --min-face 1 --min-sharpness 0 "
        "--workers 1 -- --direct_running_mode=in_memory",
        ("photos",),
        logs=r"^records/\.work-",
        many=True,
        weights=None,
        memory=True,
    ),
    Verb(
        "compile",
        "compile --config in/sd15.py --topology local --what sample --steps 1 "
        "--out work/table.json",
        ("sd15.py",),
        weights=None,
    ),
]


def build(folder: Path, small: bool = False) -> None:
    """Make what the commands read, in `folder`, with the real commands where there is one. `small`:
    without what takes long, which only some commands read.
    """
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    import tiny_model
    from photos_standin import write_people
    from records_standin import write_standin
    from small_configs import MINI_CONFIG, SD15_CONFIG

    from caphuman_jax.cli import app
    from caphuman_jax.head.models.registry import load_head
    from caphuman_jax.io import atomic

    def run(command: str) -> None:
        code = app.main(command.split())
        assert code == 0, f"{command}: {code}"

    with atomic.folder(folder) as part:
        tiny_model.write_folder(part / "tiny", tiny_model.make_params())
        _write_sd(part / "sd")
        (part / "tiny.json").write_text((part / "tiny" / "config.json").read_text())
        run(f"export {part}/tiny {part}/caphuman.safetensors --to ldm")
        shutil.copytree(part / "tiny", part / "old")
        (part / "old" / OWN).write_text("the user's own")
        shutil.copy(TESTS / "tiny_recipe.py", part)
        if small:
            return
        write_people(part / "all", 3)
        for name, number in (("photos", (0, 1)), ("people", (0, 1, 2))):
            (part / name).mkdir()
            for letter, person in zip("abc", number):
                shutil.copy(
                    part / "all" / f"person{person}" / "a.png", part / name / f"{letter}.png"
                )
        for letter in "ab":
            run(
                f"identity --reference {part}/photos/{letter}.png --model {part}/tiny "
                f"--out {part}/{letter}.identity"
            )
        (part / "heads.csv").write_text("yaw,smile\n0,0\n10,0.3\n20,0.6\n")
        jobs = [
            {"reference": f"{letter}.identity", "prompt": prompt, "num_images": 2, "steps": 2}
            for letter in "ab"
            for prompt in ("a photo", "a hat")
        ]
        (part / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
        colors = json.dumps({"kind": "colour", "smile": "smiling"})
        write_standin(
            part / "records",
            9,
            test=4,
            size=64,
            stored=88,
            albedo=load_head().mean.shape,
            change=lambda record, number: record | {"attributes": colors},
        )
        tokens = (9, tiny_model.TINY.identity.image_width)
        write_standin(part / "tokens", 8, size=64, stored=88, hints=True, image_tokens=tokens)
        (part / "mini.py").write_text(MINI_CONFIG)
        (part / "sd15.py").write_text(SD15_CONFIG)


def _write_sd(folder: Path) -> None:
    """A model folder whose networks all have names elsewhere, with a ControlNet."""
    sys.path.insert(0, str(TESTS / "weights"))
    import jax
    import numpy as np
    from weight_standins import TINY

    from caphuman_jax.models import registry
    from caphuman_jax.weights.model_folder import save_model

    config = dataclasses.replace(TINY, controlnets=("edges",))
    shapes = {name: tree for name, (_, tree) in registry.abstract(config).items()}
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
    save_model(folder, config, jax.tree.map(draw, shapes))


def digests(folder: Path, verb: Verb) -> dict[str, str]:
    """{path: digest} of the files that a person sees in `folder`, without what `logs` names; times
    in JSON files do not count.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not _HIDDEN.search(name) and not re.search(verb.logs, name):
            found[name] = _digest(path)
    return found


def hidden(folder: Path) -> list[str]:
    """Names of hidden files and folders, without the random part of temporary ones."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(re.sub(r"\.[0-9a-f]{32}\.", ".*.", name) for name in names)


def wrong_files(found: dict[str, str], expected: dict[str, str], verb: Verb) -> list[str]:
    """Files that are there and are not what an undisturbed run writes."""
    if verb.numbered:
        return [name for name, digest in found.items() if digest not in expected.values()]
    old = {f"{place}/{name}" for place, _ in verb.before for name in ()}
    return [
        name for name, digest in found.items() if expected.get(name) != digest and name not in old
    ]


def complete(found: dict[str, str], expected: dict[str, str], verb: Verb) -> bool:
    """Whether everything is there that an undisturbed run writes."""
    if verb.numbered:
        return set(expected.values()) <= set(found.values())
    return found == expected


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json":
        try:
            data = json.dumps(_without_times(json.loads(data)), sort_keys=True).encode()
        except ValueError:
            pass  # half a file has its own digest
    elif path.suffix == ".md":
        data = re.sub(rb"## Time\n.*?\n## ", b"", data, flags=re.DOTALL)
    return hashlib.sha256(data).hexdigest()[:16]


def _without_times(value):
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _VOLATILE}
    return [_without_times(v) for v in value] if isinstance(value, list) else value
