"""Ablations: the same requests with one thing changed or left out, in one table."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion.sampling_params import FIELDS, SamplingParams
from caphuman_jax.errors import SettingError
from caphuman_jax.evaluation import report, summary
from caphuman_jax.io import atomic
from caphuman_jax.person.person import Person

FOLDER, BASELINE = "ablations", "unchanged"
_SHORT = {"guidance": "guidance_scale", "tau": "identity_max_timestep"}
_WITHOUT: dict[str, tuple[str, ...]] = {
    "identity-global": ("vectors",),
    "identity-local": ("image_tokens",),
    "hints": (),
}
"""What can be left out, and which entries of a person are zeros then."""
_SHOWN = (
    "face-found",
    "identity-first-of-all-dlib",
    "identity-dlib",
    "yaw-changed-median",
    "pitch-changed-median",
    "smile-changed-correlation",
    "expression-changed-correlation",
    "prompt-background",
    "sharpness",
)
"""Columns of the table, by the measures' names."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is changed.

    Attributes:
        setting: in words, as in `--ablate`.
        value: of the setting; None for what is left out.
        sampling: fields of `SamplingParams`.
    """

    setting: str
    value: Any = None
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """In words: "guidance=3", "without hints"."""
        return f"without {self.setting}" if self.value is None else f"{self.setting}={self.value}"

    @property
    def folder(self) -> str:
        """Its folder, relative to the report."""
        return f"{FOLDER}/" + re.sub(r"[^A-Za-z0-9.=_-]", "-", self.label)

    @property
    def hints(self) -> bool:
        """Whether the model sees the head."""
        return self.setting != "hints"

    def change(self, person: Person) -> Person:
        """The person with zeros in place of what is left out."""
        names = _WITHOUT.get(self.setting, ())
        zeros = {name: np.zeros_like(getattr(person, name)) for name in names}
        return dataclasses.replace(person, **zeros) if zeros else person


def parse(text: str, config: ModelConfig) -> list[Variant]:
    """Variants from "identity-global,hints,guidance=1:3:5".

    Args:
        text: what is left out, or a setting with its values, between commas.
        config: the model's, which the values are checked with.

    Raises:
        SettingError: something cannot be changed like this.
    """
    variants: list[Variant] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        setting, equals, values = entry.partition("=")
        if not equals:
            if setting not in _WITHOUT:
                raise SettingError(
                    f"--ablate: {entry!r} cannot be left out; there are {', '.join(_WITHOUT)}, and "
                    f"settings with values such as guidance=1:3:5"
                )
            variants.append(Variant(setting))
            continue
        field = _SHORT.get(setting, setting.replace("-", "_"))
        if field not in FIELDS or FIELDS[field].per_image:
            known = [*_SHORT, *(name for name, spec in FIELDS.items() if not spec.per_image)]
            close = difflib.get_close_matches(setting, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise SettingError(f"--ablate: there is no setting {setting!r}; {hint}")
        for value in map(_value, values.split(":")):
            try:
                SamplingParams.create(config, **{field: value})
            except SettingError as problem:
                raise SettingError(f"--ablate: {entry}: {problem}") from problem
            variants.append(Variant(setting, value, {field: value}))
    if not variants:
        raise SettingError("--ablate is empty; name what is left out or changed")
    if len({variant.folder for variant in variants}) < len(variants):
        raise SettingError(f"--ablate: {text} names something twice")
    return variants


def write_table(folder: Path, variants: Sequence[Variant]) -> Path:
    """Write ablations.json and ablations.md from the summaries of the report in `folder` and of
    the variants' folders in it. Returns the latter's path.

    ablations.json: rows of label, setting, value, summary (a path relative to the report), and
    measures {name: {"value", "low", "high"}}, the first of which is the unchanged model.
    """
    rows = [_row(folder, BASELINE, None, None, summary.SUMMARY)]
    rows += [
        _row(folder, v.label, v.setting, v.value, f"{v.folder}/{summary.SUMMARY}") for v in variants
    ]
    document = {"format": "caphuman_jax ablations", "format_version": 1, "rows": rows}
    report.write_json(folder / "ablations.json", document)
    first = json.loads((folder / summary.SUMMARY).read_text())["measures"]
    shown = [m for m in first if m["name"] in _SHOWN and m["value"] is not None]
    shown.sort(key=lambda measure: _SHOWN.index(measure["name"]))
    lines = [
        "# Ablations",
        "",
        "The same people, requests and seeds, with one thing changed or left out. In brackets: the "
        "95 % interval over people. ablations.json has all measures.",
        "",
        "| | " + " | ".join(measure["title"] for measure in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
        *(
            f"| {row['label']} | "
            + " | ".join(_cell(row["measures"].get(m["name"]), m["unit"]) for m in shown)
            + " |"
            for row in rows
        ),
        "",
    ]
    atomic.write_text(folder / "ablations.md", "\n".join(lines))
    return folder / "ablations.md"


def _row(folder: Path, label: str, setting: str | None, value: Any, file: str) -> dict[str, Any]:
    measures = json.loads((folder / file).read_text())["measures"]
    numbers = {m["name"]: {key: m[key] for key in ("value", "low", "high")} for m in measures}
    return {
        "label": label,
        "setting": setting,
        "value": value,
        "summary": file,
        "measures": numbers,
    }


def _cell(numbers: Mapping[str, Any] | None, unit: str) -> str:
    if numbers is None or numbers["value"] is None:
        return ""
    show: Callable[[Any], str] = report.percent if unit == "share" else report.number
    low, high = numbers["low"], numbers["high"]
    return show(numbers["value"]) + (f" ({show(low)}–{show(high)})" if low is not None else "")


def _value(text: str) -> int | float | str:
    for type_ in (int, float):
        try:
            return type_(text)
        except ValueError:
            continue
    return text
