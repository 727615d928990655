"""The beginning of the page: what was made and compared, of whom, and the verdict in words."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Sequence

from caphuman_jax.evaluation import comparison as comparing
from caphuman_jax.evaluation.comparison import Comparison, Difference
from caphuman_jax.evaluation.numbers_in_words import (
    as_heading,
    listed,
    show,
    show_range,
    unit_of_difference,
)
from caphuman_jax.evaluation.scored_run import ScoredRun

NOT_SHOWN = (
    '<p class="hint">Pictures of people, names of photos and links to files are left out, so that '
    "this page can be published.</p>"
)
_SETTINGS = ("model", "suite", "steps", "guidance_scale", "sampler", "seed")
_CHECKSUM = 12  # digits that are shown
_GROUPS = ("better", "worse", "higher", "lower", "no difference shown")


def of_run(run: ScoredRun, model: str) -> str:
    """What a run made and measured."""
    heads, prompts = _counts(run)
    return _lead(
        f"{_name(model)} made {_count(len(run.pictures), 'picture')} of "
        f"{_people(run)}: {heads}, {prompts}. Each picture was measured without knowing what was "
        "asked for; the measurements were then compared with it.",
        _facts([run], _SETTINGS[1:]),
    )


def of_comparison(found: Comparison) -> str:
    """What was compared, and on whom."""
    first, heads, prompts = found.runs[0], *_counts(found.runs[0])
    same = f"{heads}, {prompts} and seeds" if found.same_seeds else f"{heads} and {prompts}"
    return _lead(
        f"{listed([_name(run.name) for run in found.runs])} each made "
        f"{_count(len(first.pictures), 'picture')} of the same {_people(first)}, with the same "
        f"{same}. All were measured in the same way, and each picture is compared with "
        f"{_name(first.name)}’s picture of the same person, prompt and head.",
        _facts(found.runs, _SETTINGS),
    )


def verdict(found: Comparison) -> str:
    """The card with the comparison in words: a sentence, and the measures of each outcome."""
    said = "".join(_verdict_of_run(found, i) for i in range(1, len(found.runs)))
    notes = "".join(
        f'<li class="hint caution">{html.escape(text)}</li>' for text in comparing.cautions(found)
    )
    other = {name.replace("_", " "): list(map(str, v)) for name, v in found.settings.items()}
    weights = [run.sha256[:_CHECKSUM] for run in found.runs]
    if len(set(weights)) > 1 and all(weights):
        other["weights (SHA-256)"] = weights
    differ = [f"{name}: {' → '.join(values)}" for name, values in other.items()]
    text = f"What differs: {'; '.join(differ)}." if differ else "The runs have the same settings."
    return (
        '<section class="card verdict" aria-labelledby="verdict-title"><h2 id="verdict-title">'
        f'Verdict</h2>{said}<ul>{notes}<li class="hint">{html.escape(text)}</li></ul></section>'
    )


def _verdict_of_run(found: Comparison, i: int) -> str:
    groups: dict[str, list[Difference]] = defaultdict(list)
    for one in found.differences:
        if one.run == i:
            groups[one.outcome].append(one)
    items = "".join(
        f'<dt><span class="chip {word if groups[word][0].shown else "none"}">{word}</span></dt>'
        f"<dd>{_shown(groups[word]) if groups[word][0].shown else _unshown(groups[word])}</dd>"
        for word in _GROUPS
        if groups[word]
    )
    return f"<p>{html.escape(comparing.headline(found, i))}</p><dl>{items}</dl>"


def _shown(differences: Iterable[Difference]) -> str:
    lines = []
    for one in sorted(differences, key=lambda one: one.p):
        unit = unit_of_difference(one.measure.unit)
        sign = "+" if one.difference > 0 else ""
        lines.append(
            f"<li><b>{html.escape(as_heading(one.measure.title))}</b>: "
            f"{show(one.before, one.measure.unit)} → {show(one.after, one.measure.unit)} "
            f'<span class="hint">({sign}{show(one.difference, unit)}; 95 % '
            f"{show_range(*one.interval, unit)}; {one.people} people)</span></li>"
        )
    return f"<ul>{''.join(lines)}</ul>"


def _unshown(differences: Iterable[Difference]) -> str:
    return (
        f'<span class="hint">{html.escape("; ".join(d.measure.title for d in differences))}</span>'
    )


def _lead(text: str, facts: str) -> str:
    return f'<p class="lead">{text}</p>' + (f'<p class="hint">{facts}</p>' if facts else "")


def _name(text: str) -> str:
    return f"<b>{html.escape(text)}</b>"


def _counts(run: ScoredRun) -> tuple[str, str]:
    heads, prompts = ({getattr(one, n) for one in run.pictures} for n in ("head", "prompt"))
    return _count(len(heads), "head"), _count(len(prompts), "prompt")


def _people(run: ScoredRun) -> str:
    return "person" if len(run.people) == 1 else f"{len(run.people):,} people"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _facts(runs: Sequence[ScoredRun], names: Sequence[str]) -> str:
    """Settings that the runs share."""
    facts = []
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if values[0] is not None and all(value == values[0] for value in values):
            value = f"{values[0]:g}" if isinstance(values[0], float) else values[0]
            facts.append(f"{name.replace('_', ' ')} {value}")
    return html.escape(" · ".join(facts))
