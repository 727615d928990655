"""The tables and texts of the page that can be read without its scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from caphuman_jax.evaluation.comparison import Comparison, Difference
from caphuman_jax.evaluation.numbers_in_words import (
    as_heading,
    show,
    show_range,
    unit_of_difference,
)
from caphuman_jax.evaluation.page import published
from caphuman_jax.evaluation.scored_run import MeasureSummary

_KEY_FIGURES = (
    *("identity-first-of-50", "yaw-changed-median", "pitch-changed-median"),
    *("smile-changed-correlation", "jaw-changed-correlation"),
    *("changed-outside", "seam", "clip-prompt-accuracy", "prompt-clothes", "face-found"),
)
"""Beginnings of names of measures, what says most first."""
_FIGURES = 6
_LONGEST = 28  # letters of a run's name over a column
_ARROWS = {"up": "↑ higher is better", "down": "↓ lower is better"}

LEGEND = (
    '<p class="legend"><span><i class="dot"></i>value</span><span><i class="span"></i>95 % '
    'interval</span><span><i class="chance"></i>chance</span><span><i class="copy"></i>copy</span>'
    '<span><i class="floor"></i>floor</span><span>↑ higher is better</span>'
    "<span>↓ lower is better</span></p>"
)
LEGEND_OF_DIFFERENCES = (
    '<p class="legend"><span><i class="span better"></i>better</span><span><i class="span worse">'
    '</i>worse</span><span><i class="span none"></i>no difference shown</span>'
    "<span>↑ higher is better</span><span>↓ lower is better</span></p>"
)

METHOD = """<ul>
<li>Where a measure has ↑, higher is better, and where it has ↓, lower is better; on its scale,
right is always better.</li>
<li><b>Chance</b>: the value with the pictures assigned to the requests at random. Where all
requests that count ask for the same, it is the value itself and says nothing.</li>
<li><b>Copy</b>: the value of a model that returns the reference photo, whatever is asked for.</li>
<li><b>Floor</b>: the value of the reference photos themselves, turned by a known angle: the error
of the measurement, which a perfect model would show too.</li>
<li><b>Interval</b>: 95 %, by the bootstrap over people.</li>
<li>Plots, tables and cases show the values of single pictures. A picture without a value, most
often without a face, is in none of them; the measure of faces found counts it.</li>
</ul>"""

METHOD_OF_COMPARISON = """<ul>
<li>Where a measure has ↑, higher is better, and where it has ↓, lower is better. On the scale of a
difference, right is always better, and the line is 0: an interval that reaches across the line may
be chance.</li>
<li>Each picture is paired with that of the same person, prompt and head in the other run. Pairs in
which only one has a value are left out, and counted.</li>
<li>People are the units: the difference is the mean over people of each person's mean difference.
It may therefore differ from the difference of two medians of the reports.</li>
<li><b>Interval</b>: 95 % of this one difference, by the paired bootstrap over people.</li>
<li><b>p</b>: sign-flip permutation test over people, two-sided, and after Holm's correction for all
tests of the comparison. Only a corrected p of at most 0.05 counts as a difference.</li>
<li><b>No difference shown</b> does not mean that there is none: the interval says how large it may
be.</li>
</ul>"""


def key_figures(measures: Sequence[MeasureSummary]) -> str:
    """The values that say most, large; empty if the run has none of them."""
    known = [one for one in measures if math.isfinite(one.value)]
    starting = lambda start: next((one for one in known if one.name.startswith(start)), None)
    chosen = [one for one in map(starting, _KEY_FIGURES) if one][:_FIGURES]
    items = "".join(
        f"<li><b>{show(one.value, one.unit)}</b><span>{html.escape(as_heading(one.title))}</span>"
        f'<span class="hint">95 % interval {show_range(*one.interval, one.unit)}</span></li>'
        for one in chosen
    )
    return f'<ul class="figures" aria-label="Key figures">{items}</ul>' if items else ""


def summary(measures: Sequence[MeasureSummary]) -> str:
    """The table of a run's measures; those without a value are named under it."""
    rows = "".join(_summary_row(one) for one in measures if math.isfinite(one.value))
    empty = "; ".join(
        one.title + (f" (needs {one.needs})" if one.needs else "")
        for one in measures
        if not math.isfinite(one.value)
    )
    note = f'<p class="note">Not measured in this run: {html.escape(empty)}.</p>' if empty else ""
    heads = (
        ("measure", ""),
        ("value", "n"),
        ("95 % interval", "n"),
        ("worse → better", ""),
        ("chance", "n"),
    )
    heads += ("copy", "n"), ("floor", "n"), ("pictures", "n")
    return _table(heads, f"<tbody>{rows}</tbody>") + note


def _summary_row(one: MeasureSummary) -> str:
    cells = [
        _name(one.title, one.direction, one.definition),
        _cell(show(one.value, one.unit, "–"), "n value half", "value"),
        _cell(show_range(*one.interval, one.unit), "n half", "95 % interval"),
        f'<td class="wide scale-cell">{_scale(one)}</td>',
        _cell(show(one.chance, one.unit), "n soft", "chance"),
        _cell(show(one.copy, one.unit), "n soft", "copy"),
        _cell(show(one.floor, one.unit), "n soft", "floor"),
        _cell(f"{one.pictures:,}" if one.pictures else "", "n soft", "pictures"),
    ]
    return f'<tr data-measure="{html.escape(one.name)}">{"".join(cells)}</tr>'


def _scale(one: MeasureSummary) -> str:
    """The value among its landmarks, with the better side to the right."""
    landmarks = {"chance": one.chance, "copy": one.copy, "floor": one.floor}
    known = {name: at for name, at in landmarks.items() if math.isfinite(at)}
    if not math.isfinite(one.value) or not known:
        return ""
    whole = (0.0, 1.0) if one.unit == "share" else ()  # all that is possible
    place = _places([one.value, *one.interval, *known.values(), *whole], one.sign)
    marks = [_mark(name, place(at)) for name, at in known.items()]
    span = _span(place, one.interval)
    return f'<span class="scale">{span}{"".join(marks)}{_mark("dot", place(one.value))}</span>'


def differences(found: Comparison) -> str:
    """The table of a comparison, one body for each run but the first."""
    first = found.runs[0].name
    bodies = []
    for i, run in enumerate(found.runs[1:], 1):
        rows = [_difference_row(found, one) for one in found.differences if one.run == i]
        title = (
            f'<tr><th colspan="7">{html.escape(run.name)}</th></tr>' if len(found.runs) > 2 else ""
        )
        bodies.append(f"<tbody>{title}{''.join(rows)}</tbody>")
    other = found.runs[1].name if len(found.runs) == 2 else "other"
    heads = (
        ("measure", ""),
        (_short(first), "n run"),
        (_short(other), "n run"),
        ("difference, 95 % interval", "n"),
    )
    heads += ("worse → better", ""), ("p", "n"), ("result", "")
    return _table(heads, "".join(bodies), "differences") + _left_out(found)


def _difference_row(found: Comparison, one: Difference) -> str:
    unit = unit_of_difference(one.measure.unit)
    difference = show(one.difference, unit)
    plus = "+" if one.difference > 0 and float(difference.split("°")[0].split()[0]) else ""
    interval = show_range(*one.interval, unit)
    look = one.outcome if one.shown else "none"
    cells = [
        _name(
            one.measure.title, one.measure.direction, f"{one.people} people, {one.pictures:,} pairs"
        ),
        _cell(show(one.before, one.measure.unit, "–"), "n", found.runs[0].name),
        _cell(show(one.after, one.measure.unit, "–"), "n", found.runs[one.run].name),
        f'<td class="n" data-label="difference"><b>{plus}{html.escape(difference)}'
        f'</b><div class="hint">{html.escape(interval)}</div></td>',
        f'<td class="wide scale-cell">{_difference_scale(one, look)}</td>',
        f'<td class="n soft" data-label="p">{_p(one.p)}<div class="hint">Holm '
        f"{_p(one.adjusted)}</div></td>",
        f'<td><span class="chip {look}">{one.outcome}</span></td>',
    ]
    name = html.escape(one.measure.name)
    return f'<tr data-measure="{name}" data-run="{one.run}">{"".join(cells)}</tr>'


def _difference_scale(one: Difference, look: str) -> str:
    known = [abs(v) for v in (one.difference, *one.interval) if math.isfinite(v)]
    most = max(known, default=0.0) or 1.0
    place = _places([-most, most], one.measure.sign)
    marks = _span(place, one.interval, look) + _mark(f"dot {look}", place(one.difference))
    return f'<span class="scale">{_mark("zero", 50.0)}{marks}</span>'


def _left_out(found: Comparison) -> str:
    reasons: dict[str, list[str]] = {}
    for title, why in found.left_out.items():
        reasons.setdefault(why, []).append(title)
    notes = (f"Not compared, since {why}: {'; '.join(titles)}." for why, titles in reasons.items())
    return "".join(f'<p class="note">{html.escape(text)}</p>' for text in notes)


def paper() -> str:
    """What the paper reports, marked as second-hand."""
    heads = [("as the paper reports", "")]
    heads += [(f"{name} {_ARROWS[way][0]}", "n") for name, (way, _) in published.COLUMNS.items()]
    rows = "".join(
        f'<tr><td class="wide">{html.escape(name)}</td>'
        + "".join(
            _cell(f"{value:g}", "n", label) for value, label in zip(values, published.COLUMNS)
        )
        + "</tr>"
        for name, values in published.ROWS.items()
    )
    return (
        '<section class="card" id="paper" aria-labelledby="paper-title"><h2 id="paper-title">The '
        f"paper’s figures, second-hand</h2>{_table(heads, f'<tbody>{rows}</tbody>')}"
        f'<p class="note">{html.escape(published.NOTE)}</p></section>'
    )


def _short(name: str) -> str:
    """A run's name that fits over a column."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _table(heads: Iterable[tuple[str, str]], bodies: str, look: str = "") -> str:
    row = "".join(f'<th class="{look}">{html.escape(text)}</th>' for text, look in heads)
    head = f"<thead><tr>{row}</tr></thead>"
    return f'<div class="scroll"><table class="stack {look}">{head}{bodies}</table></div>'


def _name(title: str, direction: str, text: str) -> str:
    arrow = _ARROWS.get(direction, "")
    way = f' <span class="dir" title="{arrow}">{arrow[:1]}</span>' if arrow else ""
    shown = html.escape(as_heading(title))
    return (
        f'<td class="wide"><button type="button" class="pick">{shown}{way}</button>'
        f'<div class="hint">{html.escape(text)}</div></td>'
    )


def _cell(text: str, look: str, label: str) -> str:
    return f'<td class="{look}" data-label="{html.escape(label)}">{html.escape(text)}</td>'


def _places(values: Sequence[float], sign: int):
    """place(value) in percent of the scale's width, the middle where all values are the same."""
    known = [v for v in values if math.isfinite(v)]
    low, high = min(known), max(known)

    def place(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return 4 + 92 * (1 - share if sign < 0 else share)

    return place


def _mark(look: str, at: float) -> str:
    return f'<i class="{look}" style="left:{at:.1f}%"></i>' if math.isfinite(at) else ""


def _span(place, interval: tuple[float, float], look: str = "") -> str:
    if not all(map(math.isfinite, interval)):
        return ""
    left, right = sorted(map(place, interval))
    return f'<i class="span {look}" style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'


def _p(value: float) -> str:
    return "" if not math.isfinite(value) else "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
