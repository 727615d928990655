"""Suites of `caphuman evaluate`: what is asked of a model, as plain TOML files. Those of this
directory are known by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from caphuman_jax.diffusion.sampling_params import FIELDS
from caphuman_jax.errors import SettingError
from caphuman_jax.evaluation import prompt_suite
from caphuman_jax.io.files import read_regular

FOLDER = Path(__file__).parent
DEFAULT = "requests"
_OF_KIND = {
    "requests": ("plan", "heads", "grids", "prompts", "seeds"),
    "edit": ("changes",),
    "small-faces": ("sizes",),
    "people": ("counts",),
}
"""Entries of each kind of suite, besides those of all."""
_PLANS = ("dealt", "every")
_LONGEST = 2**24  # bytes of a suite
_MOST_HEADS = 100_000
_MOST_PICTURES = 10_000_000


@dataclasses.dataclass(frozen=True)
class SuiteFile:
    """A suite.

    Attributes:
        name: of the file, without its ending.
        title, about: for people.
        kind: "requests": pictures made from noise. The others change photos, make small faces, or
            several people in one picture, see `suites.kinds`.
        people: at most this many; None: all.
        per_person: pictures of each person; not of the plan "every".
        plan: "dealt": heads and prompts are dealt over the people, see
            `prompt_suite.deal_requests`; "every": each person with all of them.
        heads, prompts: see `prompt_suite.Request`.
        seeds: pictures of each person, head and prompt of the plan "every".
        sampling: fields of `SamplingParams`.
        changes, sizes, counts: of the other kinds.
    """

    name: str
    title: str
    kind: Literal["requests", "edit", "small-faces", "people"] = "requests"
    about: str = ""
    people: int | None = None
    per_person: int = 8
    plan: str = "dealt"
    heads: tuple[str, ...] = ("own",)
    prompts: tuple[str, ...] = ("a photo of a person",)
    seeds: int = 1
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changes: tuple[Mapping[str, Any], ...] = ()
    sizes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def parameters(self) -> dict[str, Any]:
        """The entries of this kind that say what is asked for, by name."""
        names = ("heads", "prompts") if self.kind == "requests" else _OF_KIND[self.kind]
        return {name: getattr(self, name) for name in names}

    def requests(self, people: int, seed: int) -> list[prompt_suite.Request]:
        """What is asked for of the people 0 … people - 1."""
        if self.plan == "every":
            heads, prompts = self.heads, self.prompts
            return prompt_suite.all_requests(people, heads, prompts, self.seeds, seed)
        return prompt_suite.deal_requests(people, self.heads, self.prompts, self.per_person, seed)

    def check_size(self, people: int, times: int = 1) -> None:
        """Raises SettingError where this suite asks for too many pictures of that many people.

        times: how often all pictures are made, such as once and once for each ablation.
        """
        each = self.per_person
        if self.plan == "every":
            each = len(self.heads) * len(self.prompts) * self.seeds
        each *= times * max(1, len(self.counts))
        count = people * each
        if count > _MOST_PICTURES:
            raise SettingError(
                f"{each:,} pictures of each person are {count:,} in all; an evaluation makes at "
                f"most {_MOST_PICTURES:,}"
            )


def names() -> list[str]:
    """The suites that are known by name."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(suite: str) -> SuiteFile:
    """A suite by name, or from the path of a TOML file.

    Raises:
        SettingError: there is none, or an entry is wrong.
    """
    path = Path(suite) if suite.endswith(".toml") else FOLDER / f"{suite}.toml"
    if not path.is_file():
        close = difflib.get_close_matches(suite, names(), 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names())}"
        raise SettingError(
            f"there is no suite {suite!r}; {hint} (your own is the path of a file .toml)"
        )
    try:
        entries = tomllib.loads(read_regular(path, _LONGEST).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"the suite {path} cannot be read: {error}") from error
    try:
        return _checked(path.stem, entries)
    except SettingError as problem:
        raise SettingError(f"the suite {path}: {problem}") from problem


def _checked(name: str, entries: Mapping[str, Any]) -> SuiteFile:
    kind = entries.get("kind", "requests")
    if not isinstance(kind, str) or kind not in _OF_KIND:
        raise SettingError(f"kind is one of {', '.join(_OF_KIND)}, not {kind!r}")
    known = ("title", "about", "kind", "people", "per_person", "sampling", *_OF_KIND[kind])
    for entry in entries:
        if entry not in known:
            close = difflib.get_close_matches(entry, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise SettingError(f"there is no entry {entry!r} of the kind {kind!r}; {hint}")
    fields: dict[str, Any] = {"title": name, **entries}
    for entry, type_ in (("title", str), ("about", str), ("sampling", dict), ("grids", list)):
        if not isinstance(fields.get(entry, type_()), type_):
            raise SettingError(f"{entry} has the wrong type: {fields[entry]!r}")
    for entry in ("people", "per_person", "seeds"):
        value = fields.get(entry, 1)
        if type(value) is not int or value < 1:
            raise SettingError(f"{entry} is a whole number from 1 on, not {value!r}")
    if fields.get("plan", "dealt") not in _PLANS:
        raise SettingError(f"plan is one of {', '.join(_PLANS)}, not {fields['plan']!r}")
    for field in fields.get("sampling", {}):
        if field not in FIELDS or FIELDS[field].per_image:
            shared = [name for name, spec in FIELDS.items() if not spec.per_image]
            raise SettingError(f"sampling.{field}: there are {', '.join(shared)}")
    if "heads" in fields:
        _list_of(str, "heads", fields["heads"])
    heads = [*fields.get("heads", ()), *_grid_heads(fields.pop("grids", ()))]
    if heads:
        fields["heads"] = heads
    of_kind = (
        ("heads", str),
        ("prompts", str),
        ("changes", dict),
        ("sizes", int),
        ("counts", int),
    )
    for entry, type_ in of_kind:
        if entry in fields:
            fields[entry] = _list_of(type_, entry, fields[entry])
    for entry in ("changes", "sizes", "counts"):
        if entry in known and entry not in fields:
            raise SettingError(f"{entry} is missing; the kind {kind!r} needs it")
    return SuiteFile(name=name, **fields)


def _grid_heads(grids: Sequence[Mapping[str, Any]]) -> list[str]:
    """The heads of all combinations of each grid's lists: "yaw=-45,pitch=25"."""
    heads = []
    for grid in grids:
        if not isinstance(grid, dict) or not all(isinstance(v, list) for v in grid.values()):
            raise SettingError("grids is a list of tables such as {yaw = [-20, 20], pitch = [0]}")
        axes = [[f"{name}={value}" for value in values] for name, values in grid.items()]
        count = len(heads) + math.prod(map(len, axes))
        if count > _MOST_HEADS:
            raise SettingError(f"grids make {count:,} heads; a suite has at most {_MOST_HEADS:,}")
        heads += [",".join(chosen) for chosen in itertools.product(*axes)]
    return heads


def _list_of(type_: type, name: str, values: Any) -> tuple:
    if (
        not isinstance(values, list)
        or not values
        or any(type(value) is not type_ for value in values)
    ):
        raise SettingError(f"{name} is a list with entries of the type {type_.__name__}")
    return tuple(values)
