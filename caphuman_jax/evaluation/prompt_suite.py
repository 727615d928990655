"""What is requested of a model: which heads and prompts for which person, decided by one seed."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from caphuman_jax.errors import CapHumanError
from caphuman_jax.head import editing
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head

RANDOM_RANGE = {
    "yaw": 20.0,
    "pitch": 15.0,
    "roll": 20.0,
}  # of a "random" head, degrees to either side
_RANDOM_EXPRESSION = {"smile": 1.0, "mouth-open": 0.8}  # from 0 to this
_RANDOM_SHIFT, _RANDOM_SIZE = 0.06, 0.12  # parts of the picture's side; parts of the own size


@dataclasses.dataclass(frozen=True)
class Request:
    """One requested image.

    Attributes:
        number: in the run.
        person: index of the subject.
        head: see `requested_head`.
        prompt: text.
        seed: of the image's noise.
        people: indices of all subjects in the image from left to right, if it shows several.
    """

    number: int
    person: int
    head: str
    prompt: str
    seed: int
    people: tuple[int, ...] = ()


def deal_requests(
    people: int, heads: Sequence[str], prompts: Sequence[str], per_person: int, seed: int = 0
) -> list[Request]:
    """Requests for people 0 … people - 1, `per_person` each, sorted by person.

    The own head comes first if it is among the heads. The others are dealt from a shuffled deck, so
    that all occur equally often over the people. Each person gets all prompts equally often, in
    random order, so that heads and prompts are independent.
    """
    rng = np.random.default_rng([seed, 0])
    first = ["own"] if "own" in heads else []
    rest = [h for h in heads if h != "own"]
    deck: list[str] = []
    requests = []
    for person in range(people):
        chosen = first[:per_person]
        while rest and len(chosen) < per_person:
            deck = deck or [rest[i] for i in rng.permutation(len(rest))]
            chosen.append(deck.pop())
        chosen += first * (per_person - len(chosen))
        said = [
            prompts[i % len(prompts)]
            for i in rng.permutation(-(-len(chosen) // len(prompts)) * len(prompts))
        ][: len(chosen)]
        for head, prompt in zip(chosen, said):
            requests.append(Request(len(requests), person, head, prompt, int(rng.integers(2**31))))
    return requests


def all_requests(
    people: int, heads: Sequence[str], prompts: Sequence[str], seeds: int, seed: int = 0
) -> list[Request]:
    """Requests for people 0 … people - 1 under every head with every prompt, `seeds` times each,
    sorted by person.
    """
    rng = np.random.default_rng([seed, 0])
    every = itertools.product(range(people), heads, prompts, range(seeds))
    return [
        Request(number, person, head, prompt, int(rng.integers(2**31)))
        for number, (person, head, prompt, _) in enumerate(every)
    ]


def requested_head(model: HeadModel, own: Head, request: Request, seed: int = 0) -> Head:
    """The head that a request asks for, made from the person's own, see `head_numbers`."""
    numbers = head_numbers(model, own, request, seed)
    return editing.from_numbers(model, own, **numbers) if numbers else own


def head_numbers(model: HeadModel, own: Head, request: Request, seed: int = 0) -> dict[str, Any]:
    """What a request asks of the person's own head, as arguments of `editing.from_numbers`, JSON
    types; {} for the own head.

    The request's head is "own" (as in the photo), "random" (a pose within RANDOM_RANGE, smile, open
    mouth, and a place and size near the own ones), or entries "name=value" between commas, of yaw,
    pitch, roll (degrees), light (a preset) and expressions (ARKit names or presets), see
    `editing.from_numbers`.
    """
    if request.head == "own":
        return {}
    if request.head == "random":
        rng = np.random.default_rng([seed, 1, request.number])
        angles = {name: float(rng.uniform(-most, most)) for name, most in RANDOM_RANGE.items()}
        expression = {
            name: float(rng.uniform(0, most)) for name, most in _RANDOM_EXPRESSION.items()
        }
        x, y, size = editing.position_of(model, own)
        shift = rng.uniform(-_RANDOM_SHIFT, _RANDOM_SHIFT, 2)
        larger = 1 + rng.uniform(-_RANDOM_SIZE, _RANDOM_SIZE)
        position = [float(x + shift[0]), float(y + shift[1]), float(size * larger)]
        return {**angles, "expression": expression, "position": position}
    return _numbers(request.head)


def check_heads(model: HeadModel, own: Head, heads: Sequence[str]) -> None:
    """Raises HeadError or CapHumanError for a head that cannot be requested."""
    for head in heads:
        requested_head(model, own, Request(0, 0, head, "", 0))


def asked_background(prompt: str) -> str | None:
    """The color word before "background" in a prompt, or None: "…, dark blue background" gives
    "blue".
    """
    found = re.search(r"(\w+) background", prompt)
    return found.group(1) if found else None


def asks_without_color(prompt: str) -> bool:
    """Whether a prompt asks for a black-and-white picture."""
    return "black-and-white" in prompt or "black and white" in prompt


def _numbers(text: str) -> dict:
    numbers: dict = {}
    expressions = []
    for entry in text.split(","):
        name, _, value = (part.strip() for part in entry.partition("="))
        if name == "light":
            numbers["light"] = value
        elif name in RANDOM_RANGE:
            try:
                numbers[name] = float(value)
            except ValueError:
                raise CapHumanError(
                    f"a head for the evaluation: {entry!r} is not a number of degrees; write for "
                    f"example yaw=-20"
                ) from None
        else:
            expressions.append(entry)
    if expressions:
        numbers["expression"] = ",".join(expressions)
    return numbers
