"""Prompts as people write them: weights, BREAK, any length, words with embeddings of their own.

The grammar and the arithmetic are those of AUTOMATIC1111's stable-diffusion-webui ("Attention/
emphasis" in its documentation), which most prompts on the web are written for:

    (word)         weight 1.1; brackets nest: ((word)) is 1.21
    [word]         weight 1/1.1
    (word:1.3)     weight 1.3
    \\( \\) \\[ \\]    literal brackets
    BREAK          begins the next chunk

Each chunk has as many tokens as the text encoder takes, between a start and an end token. A chunk
that fills up ends at its last comma, if that is at most 20 tokens back. Weights multiply the
encoder's output, whose mean over the chunk is then restored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from caphuman_jax.errors import SettingError
from caphuman_jax.models.tokenizer import END_ID, START_ID, ClipTokenizer

_WORD = re.compile(r"[^\W\d_]{2,}(?:[-'’][^\W\d_]+)*")
_SMALL_WORDS = frozenset(
    "the and or on at to is are as by for from over near his her their this that".split()
)
_STEP = 1.1
_COMMA_BACKTRACK = 20
_LONGEST = 40  # chunks; attention over a prompt costs as much as its length
_SIGNS = re.compile(r"[()\[\]\\<]|BREAK")
# Possessive repetitions (++, *+) keep the time linear in the prompt's length.
_BREAK = re.compile(r"(?:(?<!\s)\s++)?+\bBREAK\b\s*+")
_PIECES = re.compile(
    r"\\[()\[\]\\]|\\|[(\[]|:\s*+(?P<weight>[+-]?(?:\d++\.?+\d*+|\.\d++))\s*+\)|[)\]]|[^\\()\[\]:]+|:"
)
_TAG = re.compile(r"<(lora|lyco|lycoris|hypernet):([^:<>]+)(?::([^<>]*))?>", re.IGNORECASE)
# Names of embeddings that many prompts on the web have, mostly in negative prompts; and the ways in
# which diffusers (<name>) and ComfyUI (embedding:name) write any.
_EMBEDDINGS = re.compile(
    r"""<(?P<tag>[\w.-]{2,60})> | \bembedding:(?P<comfy>[\w.-]{2,60})
    | (?<![\w-])(?: easy_?negative(?:v2)? | negative_hand(?:-neg)? | bad-?hands?-?v?[45]
      | bad_prompt(?:_version2)?(?:-neg)? | bad-?artist(?:-anime)? | bad-image-v2-39000
      | bad_pictures | bad-picture-chill-75v | verybadimagenegative_v1\.[0-9] | aid291
      | ng_deepnegative_v1_(?:64|75)t | (?:bad|fast|unrealistic)dream
      | fastnegative(?:v2|embedding)?
      | (?:realisvision|cyberrealistic|juggernaut)_?negative(?:[\w-]*) | epicphotogasm[\w-]*neg
      | by\ bad\ artist | charturner(?:v2)? )(?![\w-])""",
    re.IGNORECASE | re.VERBOSE,
)
_BRACKETS = re.compile(r"\[([^\[\]]*+)\]")
_EDITING = re.compile(r"\||:\s*+[\d.]++\s*+\Z")
_LARGEST_WEIGHT = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt as the text encoder takes it.

    Attributes:
        token_ids: (C·L,) int32, C chunks of L tokens. Ids from `vocabulary` on stand for the rows
            of the embeddings that were added to the model.
        weights: (C·L,) float32 of the encoder's output; None where all are 1, in the
            prompts that are used together, too.
        added: whether it has ids of added embeddings.
    """

    token_ids: np.ndarray
    weights: np.ndarray | None
    added: bool

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What prompts share that one program can take."""
        return len(self.token_ids), self.weights is not None, self.added


class PromptEncoder:
    """Prompts to `EncodedPrompt`s, for one text encoder."""

    def __init__(self, tokenizer: ClipTokenizer, length: int = 77, vocabulary: int = 49408):
        """
        Args:
            tokenizer: of the text encoder.
            length: tokens of a chunk, with start and end.
            vocabulary: number of ids of the text encoder.
        """
        self._tokenizer, self.length, self._vocabulary = tokenizer, length, vocabulary
        self._comma = tokenizer.ids(",")
        self._added: list[tuple[list[int], range]] = []
        self._names: frozenset[str] = frozenset()

    def with_words(self, words: Mapping[str, int]) -> PromptEncoder:
        """This encoder with words that stand for embeddings.

        Args:
            words: how many vectors each word stands for; their ids follow the vocabulary's, in this
                order.
        """
        other = PromptEncoder(self._tokenizer, self.length, self._vocabulary)
        first = self._vocabulary
        for word, count in words.items():
            other._added.append((self._tokenizer.ids(word), range(first, first + count)))
            first += count
        other._names = frozenset(words)
        other._added.sort(key=lambda entry: -len(entry[0]))  # the longest word wins
        return other

    def __call__(self, texts: Sequence[str], syntax: bool = True) -> list[EncodedPrompt]:
        """Encode prompts that are used together, such as a prompt and its negative prompt: all get
        as many chunks as the longest, filled up with those of an empty prompt, and all have weights
        if one has.

        Args:
            texts: the prompts.
            syntax: whether brackets and BREAK have their meaning; else they are literal.

        Raises:
            SettingError: a prompt that asks for what prompts cannot do here, or is far too long.
        """
        chunked = [self._chunks(text, syntax) for text in texts]
        most = max(len(chunks) for chunks in chunked)
        arrays = []
        for chunks in chunked:
            chunks += [_Chunk() for _ in range(most - len(chunks))]
            rows = [chunk.filled(self.length) for chunk in chunks]
            arrays.append(tuple(np.concatenate(parts) for parts in zip(*rows)))
        weighted = any((weights != 1).any() for _, weights in arrays)
        return [
            EncodedPrompt(ids, weights if weighted else None, bool((ids >= self._vocabulary).any()))
            for ids, weights in arrays
        ]

    def unread_embeddings(self, text: str) -> list[str]:
        """The words of a prompt that name textual-inversion embeddings that are not among the added
        words: well-known ones, and any written `<name>` or `embedding:name`.
        """
        added = {word.lower() for word in self._names}
        found = [match for match in _EMBEDDINGS.finditer(text)]
        named = {match[0]: match["tag"] or match["comfy"] or match[0] for match in found}
        return [word for word, name in named.items() if not added & {word.lower(), name.lower()}]

    def unknown_words(self, text: str, syntax: bool = True) -> list[str]:
        """The words of a prompt that the model was not trained with, in their order; [] where the
        words that it was trained with are not known.
        """
        trained = self._tokenizer.trained_words
        parts = parse(text) if syntax else [(text, 1.0)]
        words = _WORD.findall(" ".join(words or "" for words, _ in parts).lower())
        ignored = _SMALL_WORDS | {word.lower() for word in self._names}
        found = [word for word in words if word not in trained and word not in ignored]
        return list(dict.fromkeys(found)) if trained else []

    def _chunks(self, text: str, syntax: bool) -> list[_Chunk]:
        parts = parse(text) if syntax else [(text, 1.0)]
        room, chunks, last_comma = self.length - 2, [_Chunk()], None
        for words, weight in parts:
            if words is None:  # BREAK
                chunks, last_comma = [*chunks, _Chunk()], None
                continue
            for ids in self._units(words):
                chunk = chunks[-1]
                if ids == self._comma:
                    last_comma = len(chunk.ids)
                elif len(chunk.ids) == room:
                    chunks.append(_Chunk())
                    if last_comma is not None and room - last_comma <= _COMMA_BACKTRACK:
                        chunks[-1] = chunk.cut(last_comma + 1)
                    last_comma = None
                if len(chunks[-1].ids) + len(ids) > room:  # full, or vectors that stay together
                    chunks, last_comma = [*chunks, _Chunk()], None
                    if len(ids) > room:
                        raise SettingError(
                            f"an embedding of {len(ids)} vectors is too long for a text encoder "
                            f"that takes {room} tokens"
                        )
                chunks[-1].add(ids, weight)
            if len(chunks) > _LONGEST:
                raise SettingError(
                    f"the prompt is longer than {_LONGEST * room} tokens; shorten it"
                )
        return chunks[:-1] if len(chunks) > 1 and not chunks[-1].ids else chunks

    def _units(self, text: str) -> list[list[int]]:
        """Token ids of a text, one by one; those of an added word's vectors together."""
        ids, units, at = self._tokenizer.ids(text), [], 0
        while at < len(ids):
            for word, vectors in self._added:
                if word and ids[at : at + len(word)] == word:
                    units.append(list(vectors))
                    at += len(word)
                    break
            else:
                units.append([ids[at]])
                at += 1
        return units


@dataclasses.dataclass(eq=False)
class _Chunk:
    ids: list[int] = dataclasses.field(default_factory=list)
    weights: list[float] = dataclasses.field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def cut(self, at: int) -> _Chunk:
        """Keeps the first `at` tokens; the rest, as a chunk."""
        rest = _Chunk(self.ids[at:], self.weights[at:])
        del self.ids[at:], self.weights[at:]
        return rest

    def filled(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        ids, weights = np.full(length, END_ID, np.int32), np.ones(length, np.float32)
        ids[0] = START_ID
        ids[1 : 1 + len(self.ids)] = self.ids
        weights[1 : 1 + len(self.ids)] = self.weights
        return ids, weights


def parse(text: str) -> list[tuple[str | None, float]]:
    """A prompt as (words, weight) pairs; (None, 1) is BREAK.

    Brackets that are never closed apply to the end, closing ones that were never opened are
    literal.

    Raises:
        SettingError: a tag such as `<lora:name:0.8>`, or prompt editing (`[a:b:0.5]`, `[a|b]`).
    """
    if not _SIGNS.search(text):
        return [(text, 1.0)]
    _refuse_tags(text)
    parts: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for part in parts[opened[kind].pop() :]:
            part[1] *= factor

    for found in _PIECES.finditer(text):
        piece, weight = found[0], found["weight"]
        if piece in opened:
            opened[piece].append(len(parts))
        elif weight is not None and opened["("]:
            close("(", float(weight))
        elif piece == ")" and opened["("]:
            close("(", _STEP)
        elif piece == "]" and opened["["]:
            close("[", 1 / _STEP)
        elif piece[0] == "\\":
            parts.append([piece[1:], 1.0])
        else:
            for number, words in enumerate(_BREAK.split(piece)):
                if number:
                    parts.append([None, 1.0])
                parts.append([words, 1.0])
    for kind, factor in (("(", _STEP), ("[", 1 / _STEP)):
        while opened[kind]:
            close(kind, factor)
    return _joined(parts)


def _joined(parts: list[list]) -> list[tuple[str | None, float]]:
    """Neighbors of equal weight together, so that words are not torn apart."""
    joined: list[list] = []
    for words, weight in parts:
        if words is None:
            joined.append([None, 1.0])
        elif joined and joined[-1][0] is not None and joined[-1][1] == weight:
            joined[-1][0] += words
        elif words:
            joined.append([words, weight])
    if any(abs(weight) > _LARGEST_WEIGHT for _, weight in joined):
        raise SettingError(
            f"a weight in the prompt is larger than {_LARGEST_WEIGHT:,.0f}; weights are about 1"
        )
    return [tuple(part) for part in joined] or [("", 1.0)]


def _refuse_tags(text: str) -> None:
    tag = _TAG.search(text)
    if tag and tag[1].lower() == "hypernet":
        raise SettingError(
            f"{tag[0]} asks for a hypernetwork, which is not supported; remove it from the prompt"
        )
    if tag:
        strength = f":{tag[3]}" if tag[3] else ""
        raise SettingError(
            f"{tag[0]} in a prompt is another program's way to name a file; remove it from the "
            f"prompt and add --lora {tag[2]}.safetensors{strength}"
        )
    bare = re.sub(r"\\.", "", text)
    edited = next((one for one in _BRACKETS.finditer(bare) if _EDITING.search(one[1])), None)
    if edited:
        raise SettingError(
            f"{edited[0]} asks for a prompt that changes while sampling, which is not supported; "
            "remove it, or write --no-prompt-syntax if the brackets are literal"
        )
