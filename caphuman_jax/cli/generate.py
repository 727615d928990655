"""`caphuman generate`: arguments → pictures, with progress, notices and times told along the way.
See `cli` for the arguments.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from caphuman_jax.cli import head_arguments
from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.io import metadata
from caphuman_jax.person.person import WantedHead
from caphuman_jax.pipeline.contact_sheet import sheet
from caphuman_jax.pipeline.pipeline import load
from caphuman_jax.weights import lora

_STAGES = {
    "photo": "looking at the photo",
    "head photo": "looking at the head photo",
    "hints": "rendering the head",
    "compile": "preparing the sampler (compiled once for this size and step count)",
}
_NUMBERS = (
    "seed",
    "sampler",
    "steps",
    "eta",
    "guidance",
    "identity_guidance",
    "head_guidance",
    "guidance_rescale",
    "strength",
    "identity_until",
)
_SAVINGS = ("guidance_interval", "reuse")  # not in pictures of earlier versions
_SETTINGS = ("num", "negative", "photos", *_NUMBERS, *_SAVINGS)
_HEAD = {"yaw": float, "pitch": float, "roll": float, "framing": str}


def run(args) -> None:
    """Make the pictures that the arguments ask for, write them, and print their paths. Raises
    CapHumanError.
    """
    started = time.perf_counter()
    with _notices(), _Told() as told:
        options = _repeated(args) if args.repeat else _asked(args)
        if args.batch is not None and args.batch < 1:
            raise SettingError(f"--batch must be at least 1, not {args.batch}")
        _check_writable(Path(args.out))
        pipe = load(args.model, dtype=args.dtype, batch=args.batch, memory=args.memory)
        if args.lora:
            pipe.use_loras([lora.parse(text) for text in args.lora])
        loaded = time.perf_counter() - started
        result = pipe(progress=told, **options)
        if args.repeat:
            _compare(args.repeat, result.settings)
        try:
            paths = metadata.save_pictures(
                args.out,
                result.pictures,
                result.settings,
                sheet(pipe.head_model, result),
                args.overwrite,
            )
        except OSError as error:
            raise CapHumanError(
                f"the pictures cannot be written to {args.out} ({error})"
            ) from error
    print(*paths, sep="\n")
    seconds = {"start": loaded, **result.seconds, "in all": time.perf_counter() - started}
    print("; ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), file=sys.stderr)


def _check_writable(out: Path) -> None:
    """Better before the work than after."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SettingError(
            f"the pictures cannot be written to {out}: {there} is not a directory that may be "
            f"written to; choose another with --out"
        )


def _asked(args) -> dict:
    """Arguments of the pipeline as the command line has them."""
    if args.prompt is None:
        raise SettingError("--prompt is needed: what is the picture to show?")
    if args.head_from is None:
        for name in head_arguments.OF_THE_PHOTO:
            if getattr(args, name) is not None:
                raise SettingError(f"--{name.replace('_', '-')} needs --head-from PHOTO")
    options = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    return {
        **options,
        "prompt": args.prompt,
        "people": _people(args),
        "controls": [_control(text) for text in args.control or ()],
        "hard_gate": args.gate != "soft",
        "size": None if args.size is None else head_arguments.pixels(args.size),
    }


def _people(args) -> list[dict]:
    """The people that are asked for, with --person each, or one with options of their own."""
    if args.person:
        given = [
            name
            for name in ("reference", *head_arguments.OPTIONS)
            if getattr(args, name) is not None
        ]
        if given:
            raise SettingError(
                f"with --person, each person has their own head: leave out "
                f"--{given[0].replace('_', '-')}"
            )
        return [_person(text) for text in args.person]
    if not args.reference:
        raise SettingError("--reference PHOTO is needed: whose picture is it to be?")
    return [
        {"reference": args.reference, "face": args.face, "head": head_arguments.wanted_head(args)}
    ]


def _person(text: str) -> dict:
    """ "ref=me.jpg,yaw=15,expression=smile:0.8+jawOpen:0.3" → one of the pipeline's people."""
    references, face, head = [], None, {}
    for entry in text.split(","):
        key, equals, value = entry.partition("=")
        key = key.strip()
        if not equals or not value:
            raise SettingError(f"--person takes entries such as ref=me.jpg,yaw=15, not {entry!r}")
        if key == "ref":
            references.append(value)
        elif key in ("face", "head-face"):
            number = _typed(int, value, key)
            face, head = (number, head) if key == "face" else (face, head | {"photo_face": number})
        elif key in _HEAD:
            head[key] = _typed(_HEAD[key], value, key)
        elif key == "head":
            head["photo"] = value
        elif key == "take":
            head["take"] = value.replace("+", ",")
        elif key == "expression":
            head["expression"] = value.replace(":", "=").replace("+", ",")
        elif key == "light":
            head["light"] = value.replace(":", "=").replace("/", ",")
        elif key == "position":
            head["position"] = head_arguments.numbers(value, "position of --person", "/")
        else:
            raise SettingError(
                f"--person has no entry {key!r}; it has ref, face, head, head-face, take, framing, "
                f"yaw, pitch, roll, expression, "
                "light and position"
            )
    if not references:
        raise SettingError(f"--person {text} names no photo: begin with ref=PHOTO")
    return {"reference": references, "face": face, "head": WantedHead(**head)}


def _control(text: str) -> dict:
    """ "openpose=body.png:0.8" → one of the pipeline's controls."""
    name, equals, picture = text.partition("=")
    if not equals or not picture:
        raise SettingError(f"--control takes NAME=PICTURE or NAME=PICTURE:STRENGTH, not {text!r}")
    before, colon, strength = picture.rpartition(":")
    try:
        return (
            {"name": name, "picture": before, "strength": float(strength)}
            if colon
            else {"name": name, "picture": picture}
        )
    except ValueError:  # the colon belongs to the file's name
        return {"name": name, "picture": picture}


def _repeated(args) -> dict:
    """Arguments of the pipeline as a picture of ours records them; the photos are the person's to
    give again.
    """
    given = [
        name
        for name in (*_SETTINGS, "prompt", *head_arguments.OPTIONS, "size", "gate")
        if name not in ("head_from", "face", "head_face") and getattr(args, name) is not None
    ]
    if given:
        raise SettingError(
            f"--repeat takes its settings from the picture; leave out "
            f"--{given[0].replace('_', '-')}"
        )
    made = metadata.read_settings(args.repeat)
    try:
        people = _repeated_people(args, made["people"])
        controls = {control["name"]: control for control in map(_control, args.control or ())}
        for control in made["controls"]:
            if isinstance(control["picture"], str):
                controls[control["name"]] = {"picture": control["picture"]}
            elif control["name"] not in controls:
                raise SettingError(
                    f"{args.repeat} was made with the ControlNet {control['name']} and "
                    f"{control['picture']['name']}; name that picture "
                    f"with --control {control['name']}=PICTURE"
                )
        options = {
            name: made[name]
            for name in ("prompt", "negative", "photos", *_NUMBERS, "hard_gate", "size")
        }
        options |= {name: made[name] for name in _SAVINGS if name in made}
        return {
            **options,
            "first": made["index"],
            "people": people,
            "controls": [
                {**controls[c["name"]], "name": c["name"], "strength": c["strength"]}
                for c in made["controls"]
            ],
        }
    except (KeyError, TypeError) as error:
        raise SettingError(
            f"{args.repeat} does not say all that is needed to make it again ({error})"
        ) from error


def _repeated_people(args, made) -> list[dict]:
    """The people of a picture with the photos that are given for them, in their order."""
    given = (
        [_person(text) for text in args.person]
        if args.person
        else [{"reference": args.reference, "head": WantedHead(photo=args.head_from)}]
    )
    if len(given) != len(made):
        raise SettingError(
            f"{args.repeat} shows {len(made)} people; name their photos in the same order with "
            f"--person ref=PHOTO, once for each"
        )
    people = []
    for photos, person in zip(given, made):
        if not photos["reference"]:
            raise SettingError(f"name the photo of {person['reference']['name']} with --reference")
        head = dict(person["asked_head"])
        if "photo" in head:
            if photos["head"].photo is None:
                how = "head=PHOTO in --person" if args.person else "--head-from"
                raise SettingError(
                    f"{args.repeat} took its head from {head['photo']['name']}; name that photo "
                    f"with {how}"
                )
            head |= {"photo": photos["head"].photo, "photo_face": head["photo"]["face"]}
        people.append(
            {
                "reference": photos["reference"],
                "face": person["reference"]["face"],
                "head": WantedHead.of(head),
            }
        )
    return people


def _compare(picture, now) -> None:
    """A notice for everything that is not as it was when the picture was made."""
    before = metadata.read_settings(picture)
    references = lambda settings: [person["reference"]["sha256"] for person in settings["people"]]
    photos = lambda settings: [
        person["asked_head"].get("photo", {}).get("sha256") for person in settings["people"]
    ]
    for what, old, new in (
        ("the reference photo", references(before), references(now)),
        ("the head photo", photos(before), photos(now)),
        ("a ControlNet's picture", before["controls"], now["controls"]),
        ("the model", before.get("weights"), now.get("weights")),
        ("what measured the heads", before.get("head_by"), now.get("head_by")),
        *(
            (f"the {key}", before.get(key), now.get(key))
            for key in ("loras", "dtype", "memory", "version", "jax", "backend")
        ),
    ):
        if old != new:
            logging.getLogger("caphuman_jax").warning(
                "%s is not the one that %s was made with; it may not come out the same",
                what,
                picture,
            )


def _typed(kind, value, key):
    try:
        return kind(value)
    except ValueError:
        raise SettingError(f"{key} of --person takes a number, not {value!r}") from None


class _Told:
    """Tells of the pipeline's stages: a line and its time for each, a bar over the pictures."""

    def __init__(self):
        self.bar, self.stage = None, None

    def __call__(self, stage, done, total):
        if stage == "pictures":
            if self.bar is None:
                self.bar = tqdm(total=total, unit="picture", desc="sampling", file=sys.stderr)
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
        elif done == 0:
            self.stage = _Stage(_STAGES[stage])
        else:
            self._end(True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._end(kind is None)
        if self.bar is not None:
            self.bar.close()

    def _end(self, well):
        if self.stage is not None:
            self.stage.end(well)
        self.stage = None


class _Stage:
    """A line for a stage of unknown length; on a terminal its seconds run."""

    def __init__(self, text):
        self.text, self.started, self.over = text, time.perf_counter(), threading.Event()
        self.live = sys.stderr.isatty()
        self.clock = threading.Thread(target=self._run, daemon=True)
        if self.live:
            self.clock.start()

    def end(self, well):
        self.over.set()
        if self.live:
            self.clock.join()
            sys.stderr.write("\r\x1b[K")
        if well:
            print(f"{self.text}: {time.perf_counter() - self.started:.1f} s", file=sys.stderr)

    def _run(self):
        while True:
            sys.stderr.write(f"\r\x1b[K{self.text} … {time.perf_counter() - self.started:.0f} s")
            sys.stderr.flush()
            if self.over.wait(1):
                return


class _Notices(logging.Handler):
    def __init__(self, once):
        super().__init__(logging.WARNING)
        self.told = set() if once else None

    def emit(self, record):
        message = record.getMessage()
        if self.told is not None:
            if message in self.told:
                return
            self.told.add(message)
        tqdm.write(f"caphuman: notice: {message}", file=sys.stderr)


@contextlib.contextmanager
def _notices(once=False):
    """The library's warnings, as lines on stderr; with `once`, none twice."""
    logger, handler = logging.getLogger("caphuman_jax"), _Notices(once)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
