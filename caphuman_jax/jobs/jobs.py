"""Jobs files: lines and products of lists → jobs; every entry is checked before anything is
computed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from caphuman_jax.diffusion.sampling_params import FIELDS
from caphuman_jax.errors import SettingError
from caphuman_jax.io import json_reader, picture_formats
from caphuman_jax.io.files import open_regular, printable
from caphuman_jax.jobs.validate import JOB_FIELDS, Checker, nearest
from caphuman_jax.person import identity_file
from caphuman_jax.pipeline.request import Request

MAX_JOBS = 10_000_000
"""Jobs of one run."""
_MOST_WRONG = 10_000
"""Wrong jobs after which the rest of a file is not checked: a line of some bytes makes millions."""
_LONGEST, _LONGEST_LINE = 2**31, 2**26  # bytes of a file of jobs, and of a line in it
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What one job asks for.

    Attributes:
        id: begins the names of its pictures.
        where: file and line, for messages.
        number: among all jobs.
        request: with photos as absolute paths.
    """

    id: str
    where: str
    number: int
    request: Request


@dataclasses.dataclass(frozen=True)
class Jobs:
    """All jobs of a run.

    Attributes:
        jobs: those that can be done.
        fingerprint: SHA-256 of everything that was asked for.
        problems: a line for each wrong entry ("jobs.jsonl:3: head.yaw: …").
    """

    jobs: list[Job]
    fingerprint: str
    problems: list[str]


@dataclasses.dataclass(frozen=True)
class Tally:
    """What `tally` counted.

    Attributes:
        jobs, pictures: that can be made.
        groups: programs and sets of settings among them.
        problems: see `Jobs`.
    """

    jobs: int
    pictures: int
    groups: int
    problems: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A job as it is written: fields, paths relative to `folder`; place: what comes after the
    file's name in messages, or the number of the line there.
    """

    id: str
    place: str | int
    folder: Path
    fields: Mapping


def read_jobs(path: Path, checker: Checker, defaults: Mapping) -> Jobs:
    """The jobs of a JSON Lines file; `defaults`: fields of jobs that do not have them. Raises
    SettingError where the file cannot be read.
    """
    return collect(file_entries(path), checker, defaults, path.name)


def product_jobs(
    identities: Path, prompts: Path, heads: Path | None, checker: Checker, defaults: Mapping
) -> Jobs:
    """The jobs of `product_entries`. Raises SettingError."""
    entries = product_entries(identities, prompts, heads)
    return collect(entries, checker, defaults, identities.name)


def product_entries(identities: Path, prompts: Path, heads: Path | None) -> Iterator[Entry]:
    """Every person with every prompt under every head. identities: a photo or identity file, a
    folder of them, or a file of a path a line, or (.jsonl) of fields a line: "reference", "face",
    "id" …; prompts: a text a line, or .jsonl; heads: .jsonl of heads. Raises SettingError.
    """
    folder = identities if identities.is_dir() else identities.parent
    axes = [
        _axis(path, field, folder)
        for path, field in ((identities, "reference"), (prompts, "prompt"), (heads, "head"))
        if path
    ]

    _check_count(math.prod(map(len, axes)), identities.name)

    def entries():
        for chosen in itertools.product(*axes):
            fields = {name: value for entry in chosen for name, value in entry.fields.items()}
            yield Entry(
                "_".join(entry.id for entry in chosen),
                " × ".join(str(entry.place) for entry in chosen),
                folder,
                fields,
            )

    return entries()


def _check_count(count: int, name: str) -> None:
    if count > MAX_JOBS:
        raise SettingError(f"{printable(name)} makes more than {MAX_JOBS:,} jobs; divide it")


def collect(entries: Iterable[Entry | str], checker: Checker, defaults: Mapping, name: str) -> Jobs:
    """All jobs of the entries of a file `name`, kept. Raises SettingError where there are none."""
    jobs: list[Job] = []
    problems: dict[str, None] = {}
    digest = hashlib.sha256()
    for entry, fields, request in _checked(entries, checker, defaults, name, problems):
        jobs.append(Job(entry.id, _where(name, entry.place), len(jobs), request))
        digest.update(json.dumps([entry.id, fields], sort_keys=True).encode())
    if not jobs and not problems:
        raise SettingError(f"{name} holds no jobs")
    return Jobs(jobs, digest.hexdigest(), list(problems))


def tally(entries: Iterable[Entry | str], checker: Checker, defaults: Mapping, name: str) -> Tally:
    """The same, counted one after the other: nothing of a job is kept but a number for its id."""
    count, pictures, groups = 0, 0, set()
    problems: dict[str, None] = {}
    for _, _, request in _checked(entries, checker, defaults, name, problems):
        count += 1
        pictures += len(request.numbers)
        groups.add(request.program_key)
        checker.trim()
    if not count and not problems:
        raise SettingError(f"{name} holds no jobs")
    return Tally(count, pictures, len(groups), list(problems))


def _checked(
    entries: Iterable[Entry | str],
    checker: Checker,
    defaults: Mapping,
    name: str,
    problems: dict[str, None],
) -> Iterator[tuple[Entry, Mapping, Request]]:
    """The entries that can be done, with all their fields; what is wrong with others goes into
    `problems`.
    """
    failed = 0
    ids: dict[int, str | int] = {}  # by hash: the texts of a million ids would take 100 MB
    for number, entry in enumerate(entries, 1):
        _check_count(number, name)
        if isinstance(entry, str):
            problems[entry] = None
            continue
        fields = {**defaults, **entry.fields} if defaults else entry.fields
        wrong, request = checker(fields, entry.folder)
        if not _ID.fullmatch(entry.id):
            wrong.append(
                f"id: {entry.id!r} cannot be part of a file's name; take up to 120 letters, "
                f"digits, dots, - and _"
            )
        known = len(ids)
        first = ids.setdefault(hash(entry.id.casefold()), entry.place)
        if len(ids) == known:
            wrong.append(f"id: {entry.id!r} is already used by {_where(name, first)}")
        if wrong:
            where = _where(name, entry.place)
            problems |= {f"{where}: {problem}": None for problem in wrong}
            failed += 1
            if failed == _MOST_WRONG:
                problems[f"{where}: is wrong job {failed:,}; the rest was not checked"] = None
                return
        elif request is not None:
            yield entry, fields, request


def _where(name: str, place: str | int) -> str:
    return f"{printable(name)}:{place}" if isinstance(place, int) else place


def file_entries(path: Path) -> Iterator[Entry | str]:
    """Jobs of the lines of a JSON Lines file, or what is wrong with a line, one after the other.
    Raises SettingError where the file cannot be read.
    """
    last = collections.deque(_each_line(path), 1)
    digits = len(str(last[0][0])) if last else 1
    for number, text in _each_line(path):
        where = f"{printable(path.name)}:{number}"
        fields = _object(text)
        if isinstance(fields, str):
            yield f"{where}: {fields}"
            continue
        given = fields.pop("id", None)
        if given is not None and not isinstance(given, (str, int)):
            yield f"{where}: id: must be a text or a whole number, not {given!r}"
            continue
        name = f"{number:0{digits}d}" if given is None else str(given)
        if "product" in fields:
            yield from _product(fields, name, where, path.parent)
        else:
            yield Entry(name, number, path.parent, fields)


def _product(fields: dict, name: str, where: str, folder: Path) -> Iterator[Entry | str]:
    """All combinations of the lists in the field "product", in their order."""
    axes = fields.pop("product")
    if (
        not isinstance(axes, dict)
        or not axes
        or not all(isinstance(values, list) and values for values in axes.values())
    ):
        yield f'{where}: product: must be fields with a list of values each, such as {{"prompt": ["…", "…"], "head": [{{"yaw": 20}}]}}'  # noqa: E501
        return
    for twice in sorted(set(axes) & set(fields)):
        yield f"{where}: product.{twice}: the field stands outside of the product too"
        return
    count = math.prod(map(len, axes.values()))
    if count > MAX_JOBS:
        yield f"{where}: product: makes {count:,} jobs; a file has at most {MAX_JOBS:,}"
        return
    digits = [len(str(len(values) - 1)) for values in axes.values()]
    for chosen in itertools.product(*(enumerate(values) for values in axes.values())):
        numbers = "_".join(f"{i:0{width}d}" for (i, _), width in zip(chosen, digits))
        yield Entry(
            f"{name}_{numbers}",
            where,
            folder,
            {**fields, **dict(zip(axes, (value for _, value in chosen)))},
        )


def _axis(path: Path, field: str, base: Path) -> list[Entry]:
    """The entries of one list of a product, each with an id of its own: its own, the photo's name,
    or its number. Raises SettingError.
    """
    if path.is_dir():
        found = sorted(
            {file.name for file in picture_formats.photos_in(path)}
            | {
                file.name
                for file in path.glob(f"*{identity_file.ENDING}")
                if not file.name.startswith(".")
            }
        )
        folder, rows = path, [(printable(name), {field: name}) for name in found]
    elif field == "reference" and _is_person(path):
        folder, rows = path.parent, [(printable(path.name), {field: path.name})]
    else:
        lines = _list(path) if path.suffix == ".json" else _lines(path)
        rows = [
            (f"{printable(path.name)}:{number}", _row(path, number, text, field))
            for number, text in lines
        ]
        folder = path.parent
    if not rows:
        raise SettingError(f"{path} holds no {field}s")
    digits, taken, entries = len(str(len(rows) - 1)), set(), []
    for number, (where, fields) in enumerate(rows):
        name, photo = fields.pop("id", None), fields.get("reference")
        if name is None and isinstance(photo, str):
            stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(photo).stem)
            name = None if stem in taken else stem
        name = f"{field[0]}{number:0{digits}d}" if name is None else str(name)
        taken.add(name)
        entries.append(Entry(name, where, base, _moved(fields, os.path.relpath(folder, base))))
    return entries


def _is_person(path: Path) -> bool:
    """Whether a file is a photo or an identity file itself, and not a list of them."""
    if path.suffix == identity_file.ENDING:
        return True
    try:
        return picture_formats.picture_format(picture_formats.read_head(path)) is not None
    except OSError:
        return False


def _row(path: Path, number: int, text: str, field: str) -> dict:
    """The fields of a line of a list: plain text, or of .jsonl an object of fields, a head's
    numbers, or the one value.
    """
    if path.suffix not in (".json", ".jsonl"):
        return {field: text.strip()}
    value = _json(text)
    if isinstance(value, _Wrong):
        raise SettingError(f"{path.name}:{number}: {value}")
    if not isinstance(value, dict):
        return {field: value}
    return (
        value
        if field != "head"
        else {"head": value, **({"id": value.pop("id")} if "id" in value else {})}
    )


def _moved(fields: dict, folder: str) -> dict:
    """The photos of a list's entry as seen from another folder."""
    at = lambda photo: (
        os.path.join(folder, photo) if isinstance(photo, str) and folder != "." else photo
    )
    moved = dict(fields)
    if "reference" in fields:
        moved["reference"] = (
            list(map(at, fields["reference"]))
            if isinstance(fields["reference"], list)
            else at(fields["reference"])
        )
    if isinstance(fields.get("head"), dict):
        moved["head"] = {
            name: at(value) if name == "photo" else value for name, value in fields["head"].items()
        }
    elif "head" in fields:
        moved["head"] = at(fields["head"])
    return moved


def _lines(path: Path) -> list[tuple[int, str]]:
    """All of `_each_line`. Raises SettingError."""
    return list(_each_line(path))


def _each_line(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not empty and do not begin with #, read one after
    the other. Raises SettingError.
    """
    number = 0
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _LONGEST:
                raise SettingError(f"{path} has more than {_LONGEST >> 30} GB; divide it")
            while data := file.readline(_LONGEST_LINE):
                number += 1
                if len(data) == _LONGEST_LINE:
                    raise SettingError(f"{path}:{number} has more than {_LONGEST_LINE >> 20} MB")
                line = data.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
                if line.strip() and not line.lstrip().startswith("#"):
                    yield number, line
    except FileNotFoundError:
        raise SettingError(f"{path} does not exist; check the path") from None
    except UnicodeDecodeError as error:
        raise SettingError(
            f"{printable(str(path))} cannot be read (line {number} is not UTF-8 text)"
        ) from error
    except OSError as error:
        raise SettingError(f"{printable(str(path))} cannot be read ({error})") from error


def _list(path: Path) -> list[tuple[int, str]]:
    """(number from 1, JSON) of the elements of a JSON list, or of one object such as a head.json.
    Raises SettingError.
    """
    value = _json("\n".join(text for _, text in _lines(path)))
    if isinstance(value, _Wrong):
        raise SettingError(f"{path}: {value}")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise SettingError(f"{path} must be a JSON list")
    return [(i, json.dumps(element)) for i, element in enumerate(value, 1)]


class _Wrong(str):
    """What is wrong with a line."""


def _json(text: str):
    try:
        return json_reader.parse(text)
    except ValueError as error:
        return _Wrong(f"is not JSON ({error})")


def _object(text: str) -> dict | str:
    value = _json(text)
    if isinstance(value, (_Wrong, dict)):
        return value
    return 'must be an object such as {"reference": "me.jpg", "prompt": "a photo of a person"}'


def parse_defaults(texts: Iterable[str], checker: Checker) -> dict:
    """["steps=20", "negative_prompt=blurry"] → the fields; values are JSON, or else text.

    Raises:
        SettingError: an entry of another form, a field that jobs do not have, or a setting that
            the model cannot be sampled with.
    """
    defaults = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SettingError(f"--default takes NAME=VALUE, such as steps=20, not {text!r}")
        name, parsed = name.strip().replace("-", "_"), _json(value)
        if name not in JOB_FIELDS:
            raise SettingError(
                f"--default {text}: jobs have no field {name!r}{nearest(name, JOB_FIELDS)}"
            )
        defaults[name] = value if isinstance(parsed, _Wrong) else parsed
        if name in FIELDS:  # once, rather than for every job
            for problem in checker({name: defaults[name]}, Path())[0]:
                if problem.startswith(f"{name}: "):
                    raise SettingError(f"--default {text}: {problem.removeprefix(f'{name}: ')}")
    return defaults
