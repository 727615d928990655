"""Captions say what was measured and nothing else."""

import itertools
import json
import re
from importlib.resources import files

import cv2
import numpy as np
import pytest

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.face import colors
from caphuman_jax.face.colors import measure_colors
from caphuman_jax.face.landmarks import expression_names
from data_pipeline.prepare import captions

NEUTRAL = dict.fromkeys(expression_names(), 0.0)
COLORS = np.array(
    [[45, 4, -34, 0.3], [12, 0, 0, 0.2], [30, 9, 16, 0.8], [65, 15, 18, 0.2], [50, 5, 0, 1]],
    np.float32,
)


@pytest.mark.parametrize(
    "lab, word",
    [
        ((95, 0, 0), "white"),
        ((8, 1, 0), "black"),
        ((45, 5, -30), "blue"),
        ((40, 50, 28), "red"),
        ((50, 0, 1), "grey"),
        ((31, 28, -56), "blue"),
        ((36, 30, -28), "purple"),
        # muted, as on generated clothes; then hardly a color at all, and slate and blue walls
        ((40.6, -10.7, 3.2), "green"),
        ((40, -9.5, 11.6), "green"),
        ((43, 11.4, -11.4), "purple"),
        ((33.9, 8.8, -12.4), "purple"),
        ((40, -6, 4), "dark grey"),
        ((38, 5, -13), "dark blue"),
        ((42, 3, -19), "dark blue"),
    ],
)
def test_color_words(lab, word):
    assert captions.color_word(np.array(lab, np.float32)) == word


def test_unknown_color_has_no_word():
    assert captions.color_word(np.full(3, np.nan)) is None


def test_what_is_said_of_a_photo():
    found = captions.attributes(
        NEUTRAL | {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.7},
        COLORS,
        {"glasses": True, "beard": False},
    )
    assert (
        found["smile"] == "smiling"
        and found["background"] == "blue"
        and found["clothes"] == "black"
        and "hair" not in found  # brown, which is not named
    )
    text = captions.compose(found, np.random.default_rng(0), keep=1.0)
    assert all(
        word in text for word in ("smiling person", "glasses", "black clothes", "blue background")
    )
    assert not re.search("beard|mouth|hair", text)
    silent = captions.compose(found, np.random.default_rng(0), keep=0.0)
    assert "glasses" not in silent and "background" not in silent and "person" in silent


@pytest.mark.parametrize(
    "hair, face, word",
    [
        ((12, 3, 4, 0.8), 65, "dark"),
        ((24, 6, 9, 0.7), 70, "dark"),
        ((12, 3, 4, 0.8), 30, None),  # a dark photo: lightness is relative to the face's
        ((42, 3, 4, 0.8), 60, "grey"),
        ((60, 12, 22, 0.2), 70, None),  # lit skin, or hair like it
        ((12, 3, 4, 0.3), 65, None),  # hardly any hair above the forehead
        ((np.nan, np.nan, np.nan, 0.0), 65, None),
    ],
)
def test_hair_has_a_word_only_where_it_is_clear(hair, face, word):
    colors = COLORS.copy()
    colors[2], colors[3, 0] = hair, face
    assert captions.attributes(NEUTRAL, colors).get("hair") == word


@pytest.mark.parametrize("smile", [0.0, 0.9])
def test_lowered_brows_are_not_called_a_frown(smile):
    squinting = NEUTRAL | {
        name: 0.8 if name.startswith("brow") else smile
        for name in ("browDownLeft", "browDownRight", "mouthSmileLeft", "mouthSmileRight")
    }
    said = captions.compose_several(captions.attributes(squinting, COLORS), "a", 0, 20)
    assert not any("frown" in text for text in said)


def test_skin_above_the_forehead_is_not_hair():
    """A square of one skin color with a dark cap, and one without it."""
    landmarks = np.full((478, 3), 0.5, np.float32)
    landmarks[0], landmarks[1] = (0.3, 0.35, 0), (0.7, 0.75, 0)
    landmarks[10] = (0.5, 0.35, 0)
    bald = np.full((256, 256, 3), (205, 150, 120), np.uint8)
    capped = bald.copy()
    capped[:86] = (30, 25, 22)
    measure = lambda image: captions.hair_word(
        measure_colors(
            image, np.ones((256, 256), np.float32), landmarks, np.array([0, 0, 1, 1], np.float32)
        )
    )
    assert measure(bald) is None and measure(capped) == "dark"


def test_one_tint_is_no_color():
    sepia = COLORS.copy()
    sepia[:, 1:3] = np.array([4.0, 12.0]) * np.linspace(0.7, 1.3, 5)[:, None]
    assert captions.is_monochrome(sepia) and not captions.is_monochrome(COLORS)
    assert captions.attributes(NEUTRAL, sepia)["kind"] == "sepia"
    assert "hair" not in captions.attributes(NEUTRAL, sepia)
    assert (
        captions.attributes(NEUTRAL, COLORS * np.array([1, 0, 0, 1], np.float32))["kind"]
        == "black-and-white"
    )


def test_captions_vary_and_repeat_with_the_seed():
    found = captions.attributes(NEUTRAL, COLORS)
    texts = [captions.compose(found, np.random.default_rng(i)) for i in range(30)]
    assert len(set(texts)) > 8
    assert texts == [captions.compose(found, np.random.default_rng(i)) for i in range(30)]


def test_several_captions_of_a_photo_depend_on_key_and_seed_alone():
    found = captions.attributes(NEUTRAL, COLORS)
    texts = captions.compose_several(found, "a.jpg", 0, 6)
    assert (
        len(texts) == 6
        and texts == captions.compose_several(found, "a.jpg", 0, 6)
        and texts[:4] == captions.compose_several(found, "a.jpg", 0, 4)
    )
    assert texts != captions.compose_several(
        found, "b.jpg", 0, 6
    ) and texts != captions.compose_several(found, "a.jpg", 1, 6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers and torch
def test_a_captioning_model_of_transformers(tmp_path):
    """Tiny and random: what it says is what the model itself generates, and nothing is fetched."""
    import torch
    import transformers

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"])}
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    config = transformers.BlipConfig(
        text_config=dict(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            encoder_hidden_size=16,
            bos_token_id=2,
            sep_token_id=3,
            eos_token_id=3,
            pad_token_id=0,
            max_position_embeddings=64,
        ),
        vision_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        ),
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1)
    model.save_pretrained(tmp_path / "blip")
    transformers.BlipProcessor(images, tokenizer).save_pretrained(tmp_path / "blip")

    pictures = [
        np.full((40, 40, 3), 255, np.uint8),
        np.zeros((40, 40, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8),
    ]
    say = captions.transformers_captioner(tmp_path / "blip", batch=2, words=12)
    texts = say(pictures)
    assert len(texts) == 3 and all(texts) and texts == say(pictures) and len(set(texts)) > 1
    with torch.no_grad():
        pixels = images(images=pictures[2], return_tensors="pt")["pixel_values"]
        tokens = model.generate(
            pixel_values=pixels, max_new_tokens=12, do_sample=False, num_beams=1
        )
    assert texts[2] == tokenizer.decode(tokens[0], skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_captioning_model(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ModelFolderError, match="no config.json"):
        captions.transformers_captioner(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelFolderError, match="holds no image-to-text model"):
        captions.transformers_captioner(tmp_path)


def test_the_words_of_all_captions():
    rng, said = np.random.default_rng(0), set()
    options = {
        "smile": ("smiling", "serious", "slight"),
        "kind": ("colour", "black-and-white", "sepia"),
        "hair": captions.HAIR,
        "clothes": tuple(colors.SURFACE),
        "background": ("light", "dark", *captions.OBJECTS, *colors.SURFACE),
    }
    flags = "mouth open,eyes closed,glasses,bald,beard,moustache,long hair,drawing".split(",")
    for _ in range(3000):
        found = {name: rng.choice(words) for name, words in options.items()}
        found |= {name: True for name in flags if rng.random() < 0.3}
        said |= set(re.findall(r"[a-z-]+", captions.compose(found, rng)))
    assert said <= captions.WORDS and captions.WORDS - said == {"plain"}
    mini = json.loads((files("caphuman_jax") / "assets" / "mini" / "config.json").read_text())
    assert set(mini["metadata"]["prompt_words"].split()) == captions.WORDS


def _background(kind):
    """A person's mask in the lower middle, before a background that is drawn here."""
    rng = np.random.default_rng(0)
    image = np.full((256, 256, 3), (70, 90, 130), np.uint8)
    image = np.clip(image + np.linspace(-30, 30, 256)[:, None, None], 0, 255).astype(np.uint8)
    if kind == "stripes":
        for x in range(0, 60, 20):
            image[:, x : x + 10], image[:, x + 10 : x + 20] = (170, 30, 45), (225, 220, 215)
    if kind == "stars":
        image[:, :70] = (25, 30, 75)
        for x, y in itertools.product(range(8, 70, 20), range(8, 250, 20)):
            image[y : y + 6, x : x + 6] = (230, 230, 235)
    if kind == "red curtain":
        image[:] = (150, 25, 40)
    if kind == "leaves":
        image = cv2.resize(
            rng.integers(20, 200, (32, 32, 3)).astype(np.uint8) // np.uint8([2, 1, 3]), (256, 256)
        )
    person = np.zeros((256, 256), np.float32)
    person[90:, 60:200] = 1
    return image, person, np.array([0, 0, 1, 1], np.float32)


@pytest.mark.parametrize(
    "seen, kind",
    [
        ("stripes", "flag"),
        ("stars", "flag"),
        ("red curtain", "plain"),
        ("shaded", "plain"),
        ("leaves", "busy"),
    ],
)
def test_what_stands_behind_a_person(seen, kind):
    assert colors.background_kind(*_background(seen)) == kind


def test_a_background_that_is_hardly_seen_is_not_judged():
    image, _, covered = _background("stripes")
    assert colors.background_kind(image, np.ones((256, 256), np.float32), covered) is None


def test_flags_are_always_mentioned():
    found = captions.attributes(NEUTRAL, COLORS, behind="flag")
    for seed in range(8):
        said = captions.compose(found, np.random.default_rng(seed), keep=0.0)
        assert "in front of a flag" in said and "background" not in said
    assert captions.attributes(NEUTRAL, COLORS, behind="plain")["background"] == "blue"
