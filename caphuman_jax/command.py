"""`caphuman generate`: arguments → pictures, with progress, notices and times told along the way. See `cli` for the arguments."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

from caphuman_jax import provenance
from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.person import WantedHead
from caphuman_jax.pipeline import load
from caphuman_jax.sheet import sheet

_STAGES = {
    "photo": "looking at the photo", "head photo": "looking at the head photo", "hints": "rendering the head",
    "compile": "preparing the sampler (compiled once for this size and step count)",
}
_SETTINGS = ("seed", "num", "steps", "guidance", "eta", "strength", "identity_until")


def run(args) -> None:
    """Make the pictures that the arguments ask for, write them, and print their paths. Raises CapHumanError."""
    started = time.perf_counter()
    with _notices(), _Told() as told:
        options = _repeated(args) if args.repeat else _asked(args)
        if args.batch is not None and args.batch < 1:
            raise SettingError(f"--batch must be at least 1, not {args.batch}")
        _check_writable(Path(args.out))
        pipe = load(args.model, dtype=args.dtype, batch=args.batch)
        loaded = time.perf_counter() - started
        result = pipe(reference=args.reference, face=args.face, progress=told, **options)
        if args.repeat:
            _compare(args.repeat, result.settings)
        try:
            paths = provenance.save_pictures(args.out, result.pictures, result.settings, sheet(pipe.head_model, result), args.overwrite)
        except OSError as error:
            raise CapHumanError(f"the pictures cannot be written to {args.out} ({error})") from error
    print(*paths, sep="\n")
    seconds = {"start": loaded, **result.seconds, "in all": time.perf_counter() - started}
    print("; ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), file=sys.stderr)


def _check_writable(out: Path) -> None:
    """Better before the work than after."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SettingError(f"the pictures cannot be written to {out}: {there} is no folder that may be written to; choose another with --out")


def _asked(args) -> dict:
    """Arguments of the pipeline as the command line has them."""
    if args.prompt is None:
        raise SettingError("--prompt is needed: what is the picture to show?")
    if args.head_from is None:
        for name in ("take", "framing", "head_face"):
            if getattr(args, name) is not None:
                raise SettingError(f"--{name.replace('_', '-')} needs --head-from PHOTO")
    options = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    head = {"photo": args.head_from, "take": args.take, "framing": args.framing, "photo_face": args.head_face, "yaw": args.yaw,
            "pitch": args.pitch, "roll": args.roll, "expression": args.expression, "light": args.light,
            "position": None if args.position is None else _numbers(args.position, "--position", ",")}
    head = WantedHead(**{name: value for name, value in head.items() if value is not None})
    size = None if args.size is None else [_pixels(side) for side in args.size.lower().split("x")]
    return {**options, "prompt": args.prompt, "head": head, "hard_gate": args.gate != "soft",
            "size": size[0] if size and len(size) == 1 else size}


def _repeated(args) -> dict:
    """Arguments of the pipeline as a picture of ours records them; the photos are the person's to give again."""
    given = [name for name in (*_SETTINGS, "prompt", "take", "framing", "yaw", "pitch", "roll", "expression", "light", "position", "size", "gate")
             if getattr(args, name) is not None]
    if given:
        raise SettingError(f"--repeat takes its settings from the picture; leave out --{given[0].replace('_', '-')}")
    made = provenance.read_settings(args.repeat)
    try:
        head = dict(made["asked_head"])
        if "photo" in head:
            if args.head_from is None:
                raise SettingError(f"{args.repeat} took its head from {head['photo']['name']}; name that photo with --head-from")
            head |= {"photo": args.head_from, "photo_face": head["photo"]["face"]}
        if args.face is None:
            args.face = made["reference"]["face"]
        options = {name: made[name] for name in ("prompt", "seed", "steps", "guidance", "eta", "strength", "identity_until", "hard_gate", "size")}
        return {**options, "first": made["index"], "head": WantedHead.of(head)}
    except (KeyError, TypeError) as error:
        raise SettingError(f"{args.repeat} does not say all that is needed to make it again ({error})") from error


def _compare(picture, now) -> None:
    """A notice for everything that is not as it was when the picture was made."""
    before = provenance.read_settings(picture)
    photo = lambda settings: settings["asked_head"].get("photo", {}).get("sha256")
    for what, old, new in (("the reference photo", before["reference"]["sha256"], now["reference"]["sha256"]),
                           ("the head photo", photo(before), photo(now)), ("the model", before.get("weights"), now.get("weights")),
                           *((f"the {key}", before.get(key), now[key]) for key in ("dtype", "version", "jax", "backend"))):
        if old != new:
            logging.getLogger("caphuman_jax").warning("%s is not the one that %s was made with; it may not come out the same", what, picture)


def _numbers(text, option, separator):
    try:
        return [float(part) for part in text.split(separator)]
    except ValueError:
        raise SettingError(f"{option} takes numbers separated by {separator!r}, not {text!r}") from None


def _pixels(text):
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"--size is a side in pixels or WIDTHxHEIGHT, such as 256 or 256x320; {text!r} is no number") from None


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
    def emit(self, record):
        tqdm.write(f"caphuman: notice: {record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def _notices():
    """The library's warnings, as lines on stderr."""
    logger, handler = logging.getLogger("caphuman_jax"), _Notices(logging.WARNING)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
