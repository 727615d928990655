"""The words that prompts can use: the tokenizer's, and those of textual-inversion embeddings."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.models.prompt import PromptEncoder
from caphuman_jax.weights import embeddings


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words that stand for token ids.

    Attributes:
        plain: encodes prompts of the tokenizer's words.
        added: {word: vectors (N, width) float32}.
        records: JSON types that say which files the added words come from.
    """

    plain: PromptEncoder
    added: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    records: tuple[dict[str, Any], ...] = ()

    @functools.cached_property
    def encode(self) -> PromptEncoder:
        """Prompts of all words → token ids."""
        if not self.added:
            return self.plain
        return self.plain.with_words({word: len(rows) for word, rows in self.added.items()})

    @functools.cached_property
    def vectors(self) -> np.ndarray | None:
        """(E, width) float32, those of the added words in order; None where there are none."""
        return np.concatenate(list(self.added.values())) if self.added else None

    def with_files(
        self, files: Sequence[tuple[str | os.PathLike, str | None]], config: ModelConfig
    ) -> Vocabulary:
        """With the words of embedding files too; see `embeddings.read_files`."""
        if not files:
            return self
        read, records = embeddings.read_files(files, config, taken=self.added)
        return Vocabulary(self.plain, {**self.added, **read}, (*self.records, *records))
