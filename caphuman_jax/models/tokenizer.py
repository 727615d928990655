"""CLIP's tokenizer from the shipped merges: the same token ids as `transformers.CLIPTokenizer`,
without downloading it.

The `tokenizers` library does the work; `transformers`, which only wraps it, would add more than a
second to every start."""

from __future__ import annotations

import functools
import logging
import lzma
from collections.abc import Collection, Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.io import json_reader

log = logging.getLogger(__name__)

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407

# What counts as one word before merging, from CLIP: contractions, runs of letters, single digits,
# runs of the rest.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class ClipTokenizer:
    """Prompts to token ids. Lower-cased, 49,408 ids: 256 bytes, 256 bytes that end a word, the
    merges, start and end.
    """

    def __init__(self, files: tuple[Path, Path] | None = None, trained_words: Collection[str] = ()):
        """
        Args:
            files: a model's own vocab.json and merges.txt; None: CLIP's.
            trained_words: all words of the captions that a model was trained on; empty: not known.

        Raises:
            ModelFolderError: the files cannot be read.
        """
        self._files = files and tuple(map(str, files))
        self.trained_words = frozenset(trained_words)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding."""
        return _backend(self._files).encode(_unicode(text), add_special_tokens=False).ids

    def __call__(self, texts: Sequence[str], length: int = 77) -> np.ndarray:
        """Token ids (len(texts), length) int32: start, words, end, then padding, which is the end
        token again (49407).

        A prompt of more than length − 2 tokens loses its rest, keeps the end token, and is named in
        a logged warning."""
        if isinstance(texts, str):
            raise TypeError("texts is one string; a list of strings is wanted")
        if length < 2:
            raise ValueError(f"length is {length}; start and end alone take 2")
        ids = np.full((len(texts), length), END_ID, np.int32)
        for row, text in zip(ids, texts, strict=True):
            text = _unicode(text)
            words = _backend(self._files).encode(text, add_special_tokens=False)
            if len(words.ids) > length - 2:
                rest = text[words.offsets[length - 2][0] :]
                log.warning(
                    "the prompt is too long by %d tokens; not used: %r",
                    len(words.ids) - length + 2,
                    rest,
                )
            kept = words.ids[: length - 2]
            row[0] = START_ID
            row[1 : 1 + len(kept)] = kept
        return ids


def _unicode(text: str) -> str:
    """A terminal may pass on bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary (token → id, 49,408) and the merges that it is made of, best first."""
    packed = (
        resources.files("caphuman_jax") / "assets" / "text" / "clip_merges.txt.xz"
    ).read_bytes()
    merges = _pairs(lzma.decompress(packed).decode("utf-8").splitlines())
    letters = _byte_letters()
    tokens = (
        letters
        + [letter + "</w>" for letter in letters]
        + [a + b for a, b in merges]
        + [START, END]
    )
    return {token: i for i, token in enumerate(tokens)}, merges


def _pairs(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(first, second) for first, second in (line.split(" ") for line in lines)]


def _byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in CLIP's order: printable Latin-1 as itself,
    then the others.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _read(files: tuple[str, str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    try:
        vocabulary = json_reader.read(files[0])
        lines = Path(files[1]).read_text("utf-8").splitlines()
        merges = _pairs(line for line in lines if line and not line.startswith("#version"))
        if vocabulary[START] != START_ID or vocabulary[END] != END_ID:
            raise ValueError(f"{START} and {END} are not {START_ID} and {END_ID}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(
            f"the tokenizer in {Path(files[0]).parent} cannot be used: {error}"
        ) from error
    return vocabulary, merges


@functools.cache
def _backend(files: tuple[str, str] | None = None):
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary, merges = _read(files) if files else vocabulary_and_merges()
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=END)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(False),
        ]
    )
    # Written out in a prompt, the special tokens are themselves, as in transformers.
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (START, END)]
    )
    return backend
