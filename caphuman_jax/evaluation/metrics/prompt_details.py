"""Whether clothes, hair, glasses and beards are as the prompt names them, by the shipped probes."""

from __future__ import annotations

import functools
import re

import numpy as np

from caphuman_jax.evaluation.metrics.base import Measure, Metric, Run, Shown, averaged
from caphuman_jax.face import attributes
from caphuman_jax.face.colors import CLOTHES, color_word, hair_word

_WORN = {"glasses": "glasses", "beard": "beard", "moustache": "moustache", "long-hair": "long hair"}
_FEWEST_CLOTHES = 0.02  # share of the picture


def clothes(shown: Shown) -> str | None:
    """The clothes' color word, or None without a face or clothes."""
    colors = shown.colors
    if colors is None or colors[CLOTHES, 3] <= _FEWEST_CLOTHES:
        return None
    return color_word(colors[CLOTHES, :3])


def hair(shown: Shown) -> str | None:
    """ "dark", "brown" or "grey" where that is clear, else None."""
    return None if shown.colors is None else hair_word(shown.colors)


def worn(shown: Shown) -> np.ndarray:
    """(A,) scores of `face.attributes`, NaN without a face."""
    if shown.recognized is None:
        return np.full(len(attributes.names()), np.nan, np.float32)
    return attributes.scores(shown.recognized[1][None])[0]


def asked(prompt: str, detail: str) -> str | None:
    """What a prompt says of a detail: the color of clothes or hair, "" for what is there or not;
    None where it says nothing.
    """
    if detail == "clothes":
        found = re.search(r"in (?:\w+ )?(\w+) clothes", prompt)
        return found.group(1) if found else None
    if detail == "hair":
        found = re.search(r"\b(dark|brown|grey) hair", prompt)
        return found.group(1) if found else None
    words = _WORN[detail].replace(" ", r" (?:\w+ )?")  # "long dark hair" is long hair, too
    return "" if re.search(rf"\b{words}\b", prompt) else None


def score(run: Run, detail: str) -> np.ndarray:
    """(N,) 1 where the detail is as the prompt names it, 0 where it is not, NaN where the prompt
    does not name it or no face shows.
    """
    answer = np.full(len(run.outcomes), np.nan)
    for i, outcome in enumerate(run.outcomes):
        wanted = asked(outcome.request.prompt, detail) if outcome.request else None
        if wanted is None or not outcome.measured.faces:
            continue
        values = outcome.measured.values
        if detail in _WORN and "worn" in values:
            number = attributes.names().index(_WORN[detail])
            answer[i] = float(values["worn"][number] > 0)
        elif detail in values:
            answer[i] = float((values[detail] or "").split(" ")[-1] == wanted)
    return answer


_DETAILS = {
    "clothes": ("clothes of the color asked for", "whose clothes have the color"),
    "hair": ("hair of the color asked for", "whose hair is clearly of the color"),
    "glasses": ("glasses where asked for", "in which the probe finds the glasses"),
    "beard": ("beard where asked for", "in which the probe finds the beard"),
    "moustache": ("moustache where asked for", "in which the probe finds the moustache"),
    "long-hair": ("long hair where asked for", "in which the probe finds the long hair"),
}


def compute(run: Run) -> dict:
    """prompt_details.DETAIL, shares of the pictures whose prompt names the detail."""
    named = {d: functools.partial(score, detail=d) for d in _DETAILS}
    found = {
        detail: averaged(run, scores)
        for detail, scores in named.items()
        if np.isfinite(scores(run)).any()
    }
    return {"prompt_details": found}


def _measures():
    for detail, (title, counted) in _DETAILS.items():
        source = (
            "linear probes on MobileFaceNet's features (face/attributes.py)"
            if detail in _WORN
            else "medians in Lab of the segmented parts, in words (face/colors.py)"
        )
        yield Measure(
            f"prompt-{detail}",
            title,
            f"prompt_details.{detail}",
            "up",
            f"Share of the pictures with a face {counted} that the prompt names.",
            source,
            "share",
            functools.partial(score, detail=detail),
        )


METRIC = Metric(
    compute,
    measures=tuple(_measures()),
    requests_only=True,
    reads={"clothes": clothes, "hair": hair, "worn": worn},
    order=71,
)
