"""CLIP's tokenizer as the files that transformers reads."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

from caphuman_jax.models.tokenizer import END, START, vocabulary_and_merges

_NAMES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)


def write(folder: Path, source: Path | None = None) -> list[Path]:
    """Write `folder`/vocab.json, merges.txt and what transformers wants besides: a copy of those in
    `source`, or CLIP's own. Returns their paths.
    """
    folder.mkdir()
    written: dict[str, Path] = {}
    if source is not None:
        for name in _NAMES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
                written[name] = folder / name
        if {"vocab.json", "merges.txt"} <= set(written):
            return list(written.values())
    for name, content in _clip().items():
        (folder / name).write_text(content, encoding="utf-8")
        written[name] = folder / name
    return list(written.values())


@functools.cache
def _clip() -> dict[str, str]:
    """CLIP's own files, by name."""
    vocabulary, merges = vocabulary_and_merges()
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = special | {
        "model_max_length": 77,
        "do_lower_case": True,
        "tokenizer_class": "CLIPTokenizer",
    }
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "tokenizer_config.json": json.dumps(settings, indent=1),
        "special_tokens_map.json": json.dumps(special, indent=1),
    }
