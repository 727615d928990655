"""Captions from what can be measured in a photo: kind of picture, expression, glasses, hair,
clothes, background.

Sex, age and origin are not estimated: a caption says "person". Frowns are not mentioned: lowered
brows are measured in smiles and in neutral faces alike. The vocabulary is small on purpose,
so that a small text encoder learns each word from a few thousand photos. Prompts that use these
words are followed best.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.face.colors import (
    BACKGROUND,
    CLOTHES,
    SURFACE,
    color_word,
    hair_word,
    is_monochrome,
)


def attributes(
    expression: dict[str, float],
    colors: np.ndarray,
    probes: dict[str, bool] | None = None,
    behind: str | None = None,
) -> dict[str, str | bool]:
    """What a caption may mention, as words.

    Args:
        expression: ARKit weights by name.
        colors: (5, 4) from `measure_colors`.
        probes: {name: whether it applies}, see `face.attributes`.
        behind: "flag" or "busy" where the background is so, see `background_kind`.
    """
    smile = (expression["mouthSmileLeft"] + expression["mouthSmileRight"]) / 2
    found: dict[str, str | bool | None] = {
        "smile": "smiling" if smile > 0.45 else "serious" if smile < 0.12 else "slight"
    }
    found["mouth open"] = expression["jawOpen"] > 0.18
    found["eyes closed"] = (expression["eyeBlinkLeft"] + expression["eyeBlinkRight"]) / 2 > 0.6
    if is_monochrome(colors):
        tint = np.linalg.norm(np.nanmean(colors[:, 1:3], axis=0))
        found["kind"] = "sepia" if tint > 6 else "black-and-white"
    else:
        found["kind"] = "colour"
        found["background"] = (
            color_word(colors[BACKGROUND, :3]) if colors[BACKGROUND, 3] > 0.04 else None
        )
        found["clothes"] = color_word(colors[CLOTHES, :3]) if colors[CLOTHES, 3] > 0.02 else None
        hair = hair_word(colors)
        found["hair"] = hair if hair in HAIR else None
    if found["kind"] != "colour":
        for part, row in (("background", BACKGROUND), ("clothes", CLOTHES)):
            lightness = colors[row, 0] if colors[row, 3] > 0.03 else np.nan
            found[part] = (
                None
                if not np.isfinite(lightness)
                else "dark"
                if lightness < 35
                else "light"
                if lightness > 70
                else "grey"
            )
    if behind in OBJECTS:
        found["background"] = behind
    found.update(probes or {})
    return {k: v for k, v in found.items() if v}


def compose(found: dict[str, str | bool], rng: np.random.Generator, keep: float = 0.8) -> str:
    """A random caption that mentions each attribute with probability `keep`."""
    say = lambda key: key in found and rng.random() < keep
    kind = {
        "colour": ["a photo", "a portrait photo", "a colour photo"],
        "black-and-white": ["a black-and-white photo", "a black and white portrait"],
        "sepia": ["a sepia photo", "an old sepia photo"],
    }[str(found["kind"])]
    head = rng.choice(kind) if found["kind"] != "colour" or rng.random() < 0.9 else "a picture"
    if found.get("drawing"):
        head = (
            rng.choice(["a drawing", "a painting"])
            if found["kind"] == "colour"
            else rng.choice(["an engraving", "a drawing"])
        )
    adjective = ""
    if say("smile"):
        smiles = {"smiling": "smiling ", "serious": "serious ", "slight": ""}
        adjective = smiles[str(found["smile"])]
    person = f"{head} of a {adjective}person"
    details = []
    if say("glasses"):
        details.append("wearing glasses")
    hair = [str(found["hair"])] if say("hair") and not found.get("bald") else []
    hair += ["long"] if say("long hair") else []
    if found.get("bald") and rng.random() < keep:
        details.append("bald")
    elif hair:
        details.append("with " + " ".join(reversed(hair)) + " hair")
    facial = [w for w in ("beard", "moustache") if say(w)]
    if facial:
        details.append("with a " + " and a ".join(facial))
    if say("mouth open"):
        details.append("with an open mouth")
    if say("eyes closed"):
        details.append("with closed eyes")
    if say("clothes"):
        details.append(f"in {found['clothes']} clothes")
    if found.get("background") in OBJECTS:
        # Always said, so that prompts without a background are not followed by these.
        details.append(OBJECTS[str(found["background"])])
    elif say("background"):
        article = "a " if rng.random() < 0.7 else ""
        details.append(f"{article}{found['background']} background")
    if rng.random() < 0.3:
        rng.shuffle(details)
    return ", ".join([person, *details])


HAIR = ("dark", "grey")
"""Words of `hair_word` that captions use. "brown" was wrong too often on unseen photos
(docs/notes/data.md)."""

OBJECTS = {"flag": "in front of a flag", "busy": "a busy background"}
"""Backgrounds that are not one plain color, and how captions name them."""

WORDS = frozenset(
    (
        "a an and background bald beard black black-and-white brown busy closed clothes colour "
        "dark drawing engraving eyes flag front glasses grey hair in light long moustache mouth "
        "of old open painting person photo picture plain portrait sepia serious smiling wearing "
        "white with"
    ).split()
).union(*(color.split() for color in SURFACE))
"""The words of all captions that are composed here, with those of replaced backgrounds."""

MENTIONED = (0.3, 0.8)
"""Probabilities `keep` of captions: people type few words, but many words teach more."""


def compose_several(found: dict[str, str | bool], key: str, seed: int, count: int) -> list[str]:
    """`count` captions of one photo, a function of its key and the seed."""
    rng = np.random.default_rng(
        [seed, int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")]
    )
    return [compose(found, rng, keep=rng.choice(MENTIONED)) for _ in range(count)]


def transformers_captioner(
    model_dir: str | os.PathLike, batch: int = 8, words: int = 40
) -> Callable[[Sequence[np.ndarray]], list[str]]:
    """An image-to-text model (BLIP, GIT, ViT-GPT2 …) as a function.

    Nothing is downloaded. Decoding is greedy, so the same image always gets the same caption.

    Args:
        model_dir: folder of the model, as transformers saves it.
        batch: images at a time.
        words: most tokens of a caption.

    Returns:
        images (H, W, 3) uint8 -> a caption each.

    Raises:
        ModelFolderError: transformers or PyTorch is missing, or the folder holds no such model.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelFolderError(
            f"a captioning model needs the packages transformers and torch ({error}); install them"
        ) from error
    if not os.path.isfile(os.path.join(model_dir, "config.json")):
        raise ModelFolderError(f"{model_dir} holds no model of transformers: it has no config.json")
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            model_dir, local_files_only=True
        ).eval()
        processor = transformers.AutoProcessor.from_pretrained(model_dir, local_files_only=True)
        tokenizer: Any = getattr(processor, "tokenizer", None)
        images = getattr(processor, "image_processor", processor)
        if tokenizer is None:  # an encoder-decoder, with separate image processor and tokenizer
            tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFolderError(
            f"{model_dir} holds no image-to-text model that transformers can read ({first})"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    def caption(pictures: Sequence[np.ndarray]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(pictures), batch):
            pixels = images(images=list(pictures[start : start + batch]), return_tensors="pt")[
                "pixel_values"
            ].to(device)
            with torch.no_grad():
                tokens = model.generate(
                    pixel_values=pixels, max_new_tokens=words, do_sample=False, num_beams=1
                )
            texts += [
                " ".join(text.split())
                for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)
            ]
        return texts

    return caption
