"""What a dataset holds, as counts and histograms: collected record by record in constant memory,
and drawn as one picture."""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path

import cv2
import numpy as np

from caphuman_jax.face import colors
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head.angles import angles_of
from caphuman_jax.head.spherical_harmonics import SH_CONSTANTS

FEATURES = (
    "captions",
    "colours",
    "expression",
    "face_px",
    "head/light",
    "head/residual",
    "head/rotation",
    "sharpness",
)
"""What `Tally.add` reads from a record."""

_BINS = 400  # of values without a natural range; empty ends are not drawn
_HISTOGRAMS: dict[str, np.ndarray] = {
    "yaw (degrees, to the right)": np.linspace(-90, 90, 61),
    "pitch (degrees, up)": np.linspace(-90, 90, 61),
    "roll (degrees, clockwise)": np.linspace(-90, 90, 61),
    "face (pixels of the photo, log)": np.geomspace(10, 10000, 91),
    "sharpness (log)": np.geomspace(1e-6, 1e6, _BINS + 1),
    "error of the head's fit": np.linspace(0, 0.2, 201),
    "smile": np.linspace(0, 1, 41),
    "open mouth (jawOpen)": np.linspace(0, 1, 41),
    "light, directed over even part": np.linspace(0, 1.5, 61),
}
_LIGHT = np.linspace(-1, 1, 41)
_SHOWN = 0.3  # an expression weight that is visible
_NO_COLOR, _NOT_SEEN = "(no colors)", "(not seen)"
_SILENT = frozenset("a an and at by in is of on or the to with".split())
_WORDS = 100_000  # different words kept, so that captions of every kind do not fill the memory


@dataclasses.dataclass
class Tally:
    """Counts over records; `add` one, `merge` others, `draw` all."""

    records: int = 0
    histograms: dict[str, np.ndarray] = dataclasses.field(
        default_factory=lambda: {
            name: np.zeros(len(edges) - 1, np.int64) for name, edges in _HISTOGRAMS.items()
        }
    )
    light: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros((len(_LIGHT) - 1,) * 2, np.int64)
    )
    expressions: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(len(expression_names()), np.int64)
    )
    backgrounds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    words: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, record: dict) -> None:
        """Count one decoded record (see FEATURES)."""
        self.records += 1
        light = np.mean(record["head/light"], axis=1) * SH_CONSTANTS
        direction = light[1:4] / max(float(light[0]), 1e-3)
        expression = np.asarray(record["expression"])
        by_name = dict(zip(expression_names(), expression.tolist()))
        values = (
            *angles_of(record["head/rotation"], np).tolist(),
            record["face_px"],
            record["sharpness"],
            record["head/residual"],
            (by_name["mouthSmileLeft"] + by_name["mouthSmileRight"]) / 2,
            by_name["jawOpen"],
            np.linalg.norm(direction),
        )
        for (name, edges), value in zip(_HISTOGRAMS.items(), values, strict=True):
            self.histograms[name][_bin(edges, float(value))] += 1
        self.light[_bin(_LIGHT, float(direction[1])), _bin(_LIGHT, float(direction[0]))] += 1
        self.expressions += expression > _SHOWN
        self.backgrounds[_background(record["colours"])] += 1
        self.words.update(
            {word for text in record["captions"] for word in re.findall(r"[\w'’-]+", text.lower())}
            - _SILENT
        )
        self._forget()

    def merge(self, other: Tally) -> None:
        """Add the counts of another part of the records."""
        self.records += other.records
        for name, counts in other.histograms.items():
            self.histograms[name] += counts
        self.light += other.light
        self.expressions += other.expressions
        self.backgrounds.update(other.backgrounds)
        self.words.update(other.words)
        self._forget()

    def _forget(self):
        if len(self.words) > 2 * _WORDS:
            self.words = collections.Counter(dict(self.words.most_common(_WORDS)))

    def draw(self, path: str | Path, title: str) -> None:
        """All histograms as one PNG picture. Needs matplotlib (extra `data`)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(16, 12.5), layout="constrained")
        figure.suptitle(title)
        panels = iter(figure.subplots(4, 4).flat)
        for name, edges in _HISTOGRAMS.items():
            _histogram(next(panels), name, edges, self.histograms[name])
        _light_map(next(panels), self.light)
        shown = sorted(zip(self.expressions.tolist(), expression_names()), reverse=True)
        share = lambda counts: [(name, count / max(self.records, 1)) for name, count in counts]
        _bars(
            next(panels),
            f"expressions above {_SHOWN}, share of photos",
            share((name, count) for count, name in shown[:16]),
        )
        found = self.backgrounds.most_common()
        _bars(
            next(panels),
            "background, share of photos",
            share(found),
            [_rgb(name) for name, _ in found],
        )
        common = self.words.most_common(48)
        for start in range(0, len(common), 16):
            _bars(
                next(panels),
                f"captions' words from {start + 1}, share of photos",
                share(common[start : start + 16]),
            )
        for panel in panels:
            panel.axis("off")
        figure.savefig(path, dpi=100)


def _bin(edges, value):
    """Number of the bin that holds a value; values beyond the ends count in the last bin there."""
    return int(np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(edges) - 2))


def _background(measured):
    if colors.is_monochrome(measured):
        return _NO_COLOR
    return colors.color_word(measured[colors.BACKGROUND, :3]) or _NOT_SEEN


def _rgb(word):
    lab = np.array(colors.SURFACE.get(word, (85, 0, 0)), np.float32)
    return tuple(np.clip(cv2.cvtColor(lab[None, None], cv2.COLOR_LAB2RGB)[0, 0], 0, 1).tolist())


def _histogram(panel, name, edges, counts):
    from matplotlib.ticker import FuncFormatter, LogLocator

    used = np.flatnonzero(counts)
    first, last = (
        (max(used[0] - 1, 0), min(used[-1] + 2, len(counts))) if len(used) else (0, len(counts))
    )
    panel.stairs(counts[first:last], edges[first : last + 1], fill=True, color="#44749e")
    if "log" in name:
        panel.set_xscale("log")
        for axis in ("major", "minor"):
            getattr(panel.xaxis, f"set_{axis}_locator")(
                LogLocator(subs=(1.0,) if axis == "major" else (2.0, 5.0))
            )
            getattr(panel.xaxis, f"set_{axis}_formatter")(
                FuncFormatter(lambda value, _: f"{value:g}")
            )
    if len(used):
        below = np.searchsorted(np.cumsum(counts), counts.sum() / 2)
        panel.axvline(edges[below : below + 2].mean(), color="#c0562b", linewidth=1)
        name = f"{name}; median {edges[below : below + 2].mean():.3g}"
    panel.set_title(name, fontsize=9)


def _light_map(panel, counts):
    panel.imshow(
        np.log1p(counts), origin="lower", extent=(-1, 1, -1, 1), cmap="magma", aspect="auto"
    )
    panel.set_title("light: → from the picture's right, ↑ from above (log)", fontsize=9)


def _bars(panel, name, shares, color="#44749e"):
    names, values = [name for name, _ in shares], [value for _, value in shares]
    panel.barh(range(len(names)), values, color=color, edgecolor="#999999", linewidth=0.5)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.invert_yaxis()
    panel.set_title(name, fontsize=9)
