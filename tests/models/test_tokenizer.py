"""The tokenizer against transformers on odd prompts, and against token ids known from CLIP's own
examples.
"""

import json
import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models.tokenizer import ClipTokenizer, vocabulary_and_merges

ODD = [
    "",
    " ",
    "\n\t ",
    "a photo of a woman",
    "A PHOTO of a Woman",
    "don't they're we've I'm he'll she'd it's",
    "😀",
    "👩‍🚀 on the 🌙",
    "🏳️‍🌈🇩🇪",
    "一个穿红色外套的女人的肖像",
    "東京の夜、ネオン",
    "портрет женщины",
    "صورة امرأة",
    "ภาพถ่าย",
    "café",
    "cafe\u0301",
    "İstanbul",
    "ﬁne ligature ½ ² Ⅷ",
    "&amp; &lt;b&gt; &#39;quoted&#39;",
    "<b>bold</b>",
    "\x00\x01\x1f",
    "a\x00b",
    "\u200b zero\u200bwidth \ufeff",
    "\ud7ff\ue000",
    "a\u00a0b\u3000c",
    "12345 3.14 1,000",
    "<|startoftext|> inside <|endoftext|> text",
    "<|endoftext|>",
    "<|ENDOFTEXT|>",
    "<|startoftext|",
    "a_b-c/d\\e",
    "!!!???...",
    "(((masterpiece:1.3)))",
    "word " * 200,
    "x" * 500,
    "é" * 90,
    "😀" * 60,
    "l'été d'août",
    "'S 'T",
    "multi\nline\r\nprompt",
    "  leading and trailing  ",
    "tab\tseparated",
    "naïve façade — “quotes” ‘single’ …",
]


def random_prompts(count):
    generator = np.random.default_rng(0)
    blocks = [(32, 127), (160, 591), (0x370, 0x530), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 32)]
    for _ in range(count):
        first, last = blocks[generator.integers(len(blocks))]
        mixed = generator.integers(first, last, generator.integers(1, 40))
        mixed = np.where(generator.random(mixed.size) < 0.2, 32, mixed)
        yield "".join(map(chr, mixed))


@pytest.fixture(scope="module")
def reference():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CLIPTokenizer

        vocabulary, merges = vocabulary_and_merges()
        return CLIPTokenizer(vocab=vocabulary, merges=merges)


def test_equals_transformers(reference):
    prompts = ODD + list(random_prompts(200))
    for length in (77, 12):
        expected = reference(prompts, padding="max_length", truncation=True, max_length=length)[
            "input_ids"
        ]
        ours = ClipTokenizer()(prompts, length)
        for prompt, a, b in zip(prompts, ours, expected, strict=True):
            assert a.tolist() == b, repr(prompt)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("a diagram", [320, 22697]),
        ("Hello World!", [3306, 1002, 256]),
    ],
)
def test_known_ids_of_clip(text, ids):
    got = ClipTokenizer()([text])
    assert got.shape == (1, 77) and got.dtype == np.int32
    assert got[0].tolist() == [49406, *ids] + [49407] * (76 - len(ids))


def test_vocabulary_is_clips():
    vocabulary, merges = vocabulary_and_merges()
    assert (
        len(vocabulary) == 49408
        and len(merges) == 48894
        and sorted(vocabulary.values()) == list(range(49408))
    )
    assert vocabulary["<|startoftext|>"] == 49406 and vocabulary["<|endoftext|>"] == 49407


def test_truncation_keeps_the_end_token_and_says_what_was_lost(caplog):
    text = "red " * 74 + "blue green"
    with caplog.at_level(logging.WARNING):
        ids = ClipTokenizer()([text, "short"])
    assert ids[0, -1] == 49407 and ids[0, -2] == ClipTokenizer()(["blue"])[0, 1]
    assert [r.getMessage() for r in caplog.records] == [
        "the prompt is too long by 1 tokens; not used: 'green'"
    ]


def test_broken_bytes_of_a_terminal_become_question_marks():
    np.testing.assert_array_equal(ClipTokenizer()(["a \udcff cat"]), ClipTokenizer()(["a ? cat"]))


def test_no_prompts_and_wrong_arguments():
    assert ClipTokenizer()([]).shape == (0, 77)
    with pytest.raises(TypeError, match="list of strings"):
        ClipTokenizer()("a photo")
    with pytest.raises(ValueError, match="length is 1"):
        ClipTokenizer()(["a photo"], length=1)


def test_import_is_light():
    code = "import sys, caphuman_jax.models.tokenizer; print({'tokenizers', 'transformers', 'torch'} & set(sys.modules))"  # noqa: E501
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_a_model_s_own_files(tmp_path):
    vocabulary, merges = vocabulary_and_merges()
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    files[0].write_text(json.dumps(vocabulary))
    files[1].write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)))
    np.testing.assert_array_equal(
        ClipTokenizer(files)(["a café of 3 #dogs"]), ClipTokenizer()(["a café of 3 #dogs"])
    )
    for i, damage in enumerate(("{", "{}", "[]")):
        other = tmp_path / f"other{i}" / "vocab.json"
        other.parent.mkdir()
        other.write_text(damage)
        with pytest.raises(ModelFolderError, match=f"other{i} cannot be used"):
            ClipTokenizer((other, files[1]))(["a"])
