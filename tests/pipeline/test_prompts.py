"""Weights, chunks, embeddings and skipped layers in pictures."""

import copy

import numpy as np
import pytest
from safetensors.numpy import save_file

from caphuman_jax.errors import SettingError
from caphuman_jax.models.tokenizer import ClipTokenizer

PROMPT = "a photo of a dog"


@pytest.fixture(scope="module")
def picture(pipe, person):
    return lambda prompt, **more: pipe(reference=person, prompt=prompt, **more).images


@pytest.fixture(scope="module")
def base(picture):
    return picture(PROMPT)


def test_weights_of_one_and_literal_brackets(picture, base):
    np.testing.assert_array_equal(picture("a photo of a (dog:1.0)"), base)
    np.testing.assert_array_equal(picture(PROMPT, prompt_syntax=False), base)
    literal = picture("a (photo) of a dog", prompt_syntax=False)
    assert np.abs(literal.astype(int) - picture(r"a \(photo\) of a dog").astype(int)).max() == 0
    assert (literal != base).any()


def test_weights_matter_in_both_prompts(picture, base):
    weighted = picture("a photo of a (dog:1.5)")
    assert (weighted != base).any() and (weighted != picture("a photo of a (dog:0.5)")).any()
    negative = picture(PROMPT, negative_prompt="blurry")
    assert (negative != picture(PROMPT, negative_prompt="(blurry:1.6)")).any()


def test_the_end_of_a_long_prompt_matters(picture):
    long = PROMPT + " word" * 100
    assert (picture(long + " red") != picture(long + " blue")).any()


def test_clip_skip(pipe, picture, base):
    with pytest.raises(SettingError, match="clip_skip is 2, but the text encoder of tiny has 1"):
        picture(PROMPT, clip_skip=2)
    np.testing.assert_array_equal(picture(PROMPT, clip_skip=1), base)


@pytest.fixture
def with_embedding(pipe, tmp_path):
    """A file whose one vector is that of "dog"."""
    table = np.asarray(pipe.params["text"]["tokens"]["embedding"], np.float32)
    save_file({"emb_params": table[ClipTokenizer().ids("dog")]}, tmp_path / "xyzzy.safetensors")
    return tmp_path / "xyzzy.safetensors"


def test_a_word_with_an_embedding(pipe, picture, person, base, with_embedding):
    pipe = copy.copy(pipe)
    pipe.add_embeddings([(with_embedding, None)])
    made = pipe(reference=person, prompt="a photo of a xyzzy")
    assert np.abs(made.images.astype(int) - base.astype(int)).max() <= 1
    assert made.settings["embeddings"][0]["words"] == ["xyzzy"]
    # A prompt without the word is made by the same program as before.
    np.testing.assert_array_equal(pipe(reference=person, prompt=PROMPT).images, base)
    with pytest.raises(SettingError, match="there is an embedding 'xyzzy' already"):
        pipe.add_embeddings([(with_embedding, None)])


def test_a_tag_is_answered_with_the_flag(pipe, person):
    with pytest.raises(SettingError, match="add --lora style.safetensors:0.7"):
        pipe.request(reference=person, prompt="a dog <lora:style:0.7>")
    pipe.request(reference=person, prompt="a dog <lora:style:0.7>", prompt_syntax=False)
