"""Records -> arrays that rest on the accelerator, from which each step samples its batch.

Hints are rendered from the records' heads and identity tokens computed here, in large batches by
the same functions that serve one photo in use. Small enough to keep whole: about 2.7 MB a photo at
256²."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float16, Int, UInt8

from caphuman_jax.errors import DataError
from caphuman_jax.face import align, clothes, colors, recognition, segmentation
from caphuman_jax.head import hints, pose
from caphuman_jax.head.base import HeadModel
from caphuman_jax.head.head import Head
from caphuman_jax.head.models.registry import SHIPPED, load_head
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.nn.typing import Array
from data_pipeline.loading.augment import LUMA
from data_pipeline.prepare import captions

CAPTIONS = 12  # different captions kept for each photo
FACES = 4  # recognition crops for each photo: as it is, mirrored, and two a little off
SHADES = 32  # of each color that backgrounds and clothes get
_LEFT_OUT = {
    "no background": ("background",),
    "no clothes": ("clothes",),
    "no background or clothes": ("background", "clothes"),
}
"""What captions do not say, in the order of `resident_batches`."""


def build(
    records,
    index: Int[np.ndarray, " n"],
    *,
    head: str = SHIPPED,
    seed: int = 0,
    chunk: int = 64,
    log=print,
) -> dict:
    """Arrays over the photos `index` of `records`, as uint8 where they are large; see
    `resident_batches.sample_batch`.

    Args:
        records: of `load_records`.
        index: numbers of photos.
        head: name of the head model that the records' heads are of.
        seed: of captions, shades and recognition crops.
        chunk: heads that are rendered at a time.
        log: takes the lines for people.

    Raises:
        DataError: the records' heads do not fit the head model.
    """
    photo = np.array([not records.attributes[i].get("drawing") for i in index], bool)
    part = records.take(index[photo])
    left_out = int((~photo).sum())
    log(f"{len(part)} photos" + (f"; {left_out} drawings were left out" if left_out else ""))
    tokens, vectors = identity_tokens(part.pictures, part.landmarks, seed=seed)
    log("identity tokens computed")
    grey = np.array([found["kind"] != "colour" for found in part.attributes])
    found = [
        attributes | {"kind": "black-and-white" if colorless else "colour"}
        for attributes, colorless in zip(part.attributes, grey)
    ]
    pictures = part.pictures.copy()
    for i in np.flatnonzero(grey):
        pictures[i] = _grey(pictures[i])
    if grey.any():
        log(f"{int(grey.sum())} photos are black-and-white")
    partner = np.concatenate([np.arange(len(part))[:, None], part.partners], axis=1)
    partner = np.where(partner < 0, partner[:, :1], partner).astype(np.int32)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        regions, features = map(
            np.stack,
            zip(*pool.map(lambda marks: face_regions(marks, pictures.shape[1]), part.landmarks)),
        )
        person = np.stack(
            list(pool.map(lambda mask: solid_person(mask, pictures.shape[1]), part.person))
        )
    heads = without_color(part.heads, grey)
    all_hints = render(load_head(head), heads, partner, grey, pictures.shape[1], chunk=chunk)
    log("hints rendered")
    rng = np.random.default_rng(seed)
    kinds = (None, "black-and-white", *_LEFT_OUT)
    encode = ClipTokenizer()
    ids = np.stack(
        [encode([compose(f, rng, kind) for f in found for _ in range(CAPTIONS)]) for kind in kinds],
        axis=1,
    )
    ids = ids.reshape(len(part), CAPTIONS, len(kinds), 77)
    background_ids, background_rgb = plain_backgrounds(encode, rng)
    dressed, brightness = clothes_of(part)
    return {
        "pictures": pictures,
        "covered": (part.covered * pictures.shape[1]).astype(np.float32),
        "region": regions,
        "hints": all_hints,
        "tokens": tokens,
        "vectors": vectors,
        "partner": partner,
        "captions": ids.astype(np.int32),
        "grey": grey,
        "empty": encode([""])[0].astype(np.int32),
        "features": features,
        "person": person,
        "trained": part.trained,
        "clothes": dressed,
        "clothes_brightness": brightness,
        "clothes_ids": encode([f", in {word} clothes" for word in colors.SURFACE], 12)[:, 1:],
        "background_ids": background_ids,
        "background_rgb": background_rgb,
        "heads": heads,
        "rarity": head_rarity(heads.rotation, part.expression),
        "name": part.name,
    }


def head_rarity(
    rotation: Float[np.ndarray, "n 3 3"], expression: Float[np.ndarray, "n e"]
) -> Float[np.ndarray, " n"]:
    """How far each head is from an ordinary one: the largest of three squared distances (yaw from
    straight on, pitch and expression from their mean), each with mean 1 over the photos.

    Args:
        rotation: of the heads.
        expression: ARKit weights.
    """
    yaw, pitch = np.asarray(pose.angles(rotation))[:, :2].T
    spread = (expression - expression.mean(0)) / (expression.std(0) + 0.02)
    distances = np.stack([yaw**2, (pitch - pitch.mean()) ** 2, np.mean(spread**2, axis=1)])
    return np.max(distances / (distances.mean(1, keepdims=True) + 1e-6), axis=0).astype(np.float32)


def compose(found: dict, rng: np.random.Generator, kind: str | None) -> str:
    """A caption, with colors left out if the picture is to be shown without them, or the
    background or clothes if they are to be others.
    """
    if kind == "black-and-white":
        color = {"hair", "clothes", "background"}
        if found.get("background") in captions.OBJECTS:  # which are seen without color, too
            color.remove("background")
        found = {k: v for k, v in found.items() if k not in color} | {"kind": kind}
    left_out = _LEFT_OUT.get(kind or "", ())
    found = {name: value for name, value in found.items() if name not in left_out}
    return captions.compose(found, rng, keep=rng.choice(captions.MENTIONED))


def plain_backgrounds(encode, rng: np.random.Generator):
    """Words for backgrounds and what they look like: token ids (W, 3, K) int32 to append to a
    caption, and RGB (W, SHADES, 3) in [0, 1].
    """
    words = list(colors.SURFACE)
    texts = [
        f", {form} background" for word in words for form in (f"a {word}", word, f"a plain {word}")
    ]
    ids = encode(texts, 12)[:, 1:].reshape(len(words), 3, -1)
    return ids.astype(np.int32), np.stack([_shades(word, rng) for word in words])


def _shades(word: str, rng: np.random.Generator) -> np.ndarray:
    """(SHADES, 3) RGB float32 of colors that are called `word`."""
    shades = []
    while len(shades) < SHADES:
        lab = (np.array(colors.SURFACE[word]) + rng.normal(size=3) * (5, 4, 4)).astype(np.float32)
        rgb = np.clip(cv2.cvtColor(lab[None, None], cv2.COLOR_LAB2RGB), 0, 1)
        if colors.color_word(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0]) == word:
            shades.append(rgb[0, 0])
    return np.stack(shades)


def face_regions(
    landmarks: Float[np.ndarray, "478 d"], size: int
) -> tuple[UInt8[np.ndarray, "{size} {size}"], UInt8[np.ndarray, "{size} {size}"]]:
    """Two masks (size, size) uint8, 255 in the face region (what CapFace's mask is taught), and
    round eyes, brows and mouth.
    """
    labels = segmentation.parse_face(landmarks * size, (size, size))
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(size / 30) | 1,) * 2)
    features = cv2.dilate((labels >= segmentation.BROWS).astype(np.uint8), reach)
    return segmentation.face_mask(labels).astype(np.uint8) * 255, features * 255


def solid_person(mask: np.ndarray, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
    """(size, size) uint8, 255 where a person surely is by a record's mask, so that little of the
    old background shines through at the edge.
    """
    mask = cv2.resize(mask.astype(np.float32) / 255, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.round(255 * np.clip(mask * 2 - 0.9, 0, 1)).astype(np.uint8)


def clothes_of(part) -> tuple[UInt8[np.ndarray, "n s s"], Float[np.ndarray, " n"]]:
    """Of records: masks (N, S, S) of the clothes, 255 inside, and the brightness (N,) in [0, 1] of
    their median pixel.
    """
    size = part.pictures.shape[1]
    small = (size // 2, size // 2)  # as good by eye, and four times as fast

    def find(i):
        picture = cv2.resize(part.pictures[i], small, interpolation=cv2.INTER_AREA)
        person = cv2.resize(part.person[i], small).astype(np.float32) / 255
        long_hair = bool(part.attributes[i].get("long hair"))
        mask = clothes.clothes_mask(picture, person, part.landmarks[i], long_hair)
        inside = picture[mask > 0.5].astype(np.float32) @ LUMA / 255
        mask = np.round(255 * cv2.resize(mask, (size, size))).astype(np.uint8)
        return mask, np.median(inside) if inside.size else 0.5

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        masks, brightness = zip(*pool.map(find, range(len(part))))
    return np.stack(masks), np.array(brightness, np.float32)


def without_color(heads, grey: Bool[np.ndarray, " n"]):
    """The heads, with grey light and albedo where `grey` (N,) says that the picture is shown
    without colors, whatever tint it had.
    """
    light = np.where(grey[:, None, None], heads.light.mean(axis=-1, keepdims=True), heads.light)
    albedo = np.where(
        grey[:, None, None], np.sum(heads.albedo * LUMA, axis=-1, keepdims=True), heads.albedo
    )
    return dataclasses.replace(heads, light=light, albedo=albedo)


def render(
    model: HeadModel,
    heads: Head,
    partner: Int[np.ndarray, "n sources"],
    grey: Bool[np.ndarray, " n"],
    size: int,
    *,
    chunk: int,
) -> UInt8[Array, "n 2 {size} {size} 9"]:
    """Hints (N, 2, size, size, 9) uint8, on the device, of heads in pixels of that size: as they
    are, and with the identity of a partner.

    The second is rendered with the shape and albedo of another photo of the same person where there
    is one, and with the photo's own albedo mirrored otherwise: in use, too, the albedo never fits
    the wanted picture exactly. Its mouth is somebody else's (`change_mouths`)."""
    found = [heads.identity.shape[1], heads.expression.shape[1], *heads.albedo.shape[1:]]
    wanted = [len(model.identity_basis), len(model.expression_names), *model.mean.shape]
    if found != wanted:
        raise DataError(
            f"the records' heads are not of the head model {model.name} with colors at vertices, "
            f"which config.model.head asks for; prepare the photos without --model for the head "
            f"model {SHIPPED}, or with a --model whose heads are {model.name}'s, fitted to "
            f"landmarks"
        )
    encode = jax.jit(hints.pack_hints)
    batches = [
        np.minimum(np.arange(s, s + chunk), len(grey) - 1) for s in range(0, len(grey), chunk)
    ]
    other = partner[:, 1]
    alone = other == np.arange(len(partner))
    mirrored = heads.albedo[:, np.asarray(model.mirror)]
    albedo = np.where(alone[:, None, None], mirrored, heads.albedo[other])
    swapped = dataclasses.replace(
        heads, identity=heads.identity[other], albedo=change_mouths(model, albedo, grey)
    )
    # Kept on the device: they are most of the data, and training samples from them there.
    rendered = [
        jnp.stack(
            [
                encode(
                    hints.render_hints_batch(
                        model, jax.tree.map(lambda x: x[b], source), size, size
                    )
                )
                for source in (heads, swapped)
            ],
            axis=1,
        )
        for b in batches
    ]
    return jnp.concatenate(rendered)[: len(grey)]


def change_mouths(
    model, albedo: Float[np.ndarray, "n v 3"], grey: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, "n v 3"]:
    """Albedo (N, V, 3) with the mouth of the next photo, in the own color: teeth that a smile left
    there must not decide about smiles.
    """
    lips = np.unique(segmentation.UPPER_LIP_OUTLINE + segmentation.LOWER_LIP_OUTLINE)
    corners = np.asarray(model.mean)[np.asarray(model.landmark_vertices)[lips]]
    points = np.sum(corners * np.asarray(model.landmark_weights)[lips][..., None], axis=1)
    distance = np.linalg.norm(np.asarray(model.mean) - points.mean(0), axis=1) / (
        np.ptp(points[:, 0]) / 2
    )
    inside = np.clip((1.8 - distance) / 0.6, 0, 1)[None, :, None].astype(np.float32)
    rim = inside * (1 - inside) / (inside * (1 - inside)).sum()
    donor = np.roll(albedo, 1, axis=0)
    donor = np.where(grey[:, None, None], donor.mean(axis=-1, keepdims=True), donor)
    own, other = ((x * rim).sum(axis=1, keepdims=True) for x in (albedo, donor))
    return (
        albedo * (1 - inside)
        + np.clip(donor * np.clip(own / np.maximum(other, 0.02), 0.5, 2), 0, 1) * inside
    )


def identity_tokens(
    pictures: UInt8[np.ndarray, "n s s 3"], landmarks: Float[np.ndarray, "n 478 d"], *, seed: int
) -> tuple[Float16[np.ndarray, "n faces 49 512"], Float[np.ndarray, "n faces 192"]]:
    """Tokens (N, FACES, 49, 512) float16 and unit vectors (N, FACES, 192) of recognition crops,
    some mirrored or a little off.
    """
    recognize = _recognizer()
    rng = np.random.default_rng(seed)
    size = pictures.shape[1]
    tokens = np.empty(
        (len(pictures), FACES, recognition.FEATURE_TOKENS, recognition.FEATURE_WIDTH), np.float16
    )
    vectors = np.empty((len(pictures), FACES, 192), np.float32)
    side = recognition.MOBILEFACENET_SIZE
    chunk = min(128, len(pictures))
    for start in range(0, len(pictures), chunk):
        rows = np.minimum(np.arange(start, start + chunk), len(pictures) - 1)
        crops = np.empty((len(rows), FACES, side, side, 3), np.uint8)
        for k, i in enumerate(rows):
            matrix = align.similarity_transform(
                align.five_points(landmarks[i] * size), recognition.MOBILEFACENET_TEMPLATE
            )
            for v in range(FACES):
                change = matrix.copy()
                if v >= 2:
                    change = change * rng.uniform(0.95, 1.06) + np.array([[0, 0, 1]]) * rng.uniform(
                        -4, 4, (2, 1)
                    )
                crop = align.warp(pictures[i], change, side)
                crops[k, v] = crop[:, ::-1] if v % 2 else crop
        vector, features = recognize(crops.reshape(-1, side, side, 3))
        vectors[rows] = vector.reshape(len(rows), FACES, -1)
        tokens[rows] = features.reshape(
            len(rows), FACES, recognition.FEATURE_TOKENS, recognition.FEATURE_WIDTH
        )
    return tokens, vectors


def _recognizer() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`recognition.mobilefacenet`, computed on the accelerator if there is one."""
    if jax.default_backend() == "cpu":  # where onnxruntime is many times faster, on a few at a time
        pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

        def recognize_few(crops):
            parts = pool.map(recognition.mobilefacenet, np.split(crops, range(8, len(crops), 8)))
            vectors, features = zip(*parts)
            return np.concatenate(vectors), np.concatenate(features)

        return recognize_few
    import importlib.resources

    from caphuman_jax.training.onnx_to_jax import load_onnx

    params, apply = load_onnx(
        importlib.resources.files("caphuman_jax") / "assets" / "face" / "mobilefacenet_192.onnx"
    )
    network = jax.jit(lambda p, x: apply(p, (x - 127.5) / 128))

    def recognize(crops):
        out = network(params, crops.astype(np.float32))
        vectors = np.asarray(out["embeddings"])
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors, np.asarray(out["features"])

    return recognize


def _grey(picture: np.ndarray) -> np.ndarray:
    luma = picture.astype(np.float32) @ LUMA  # numpy's uint8 @ float32 takes 14 ms, this 1
    return np.repeat(np.round(luma).astype(np.uint8)[..., None], 3, axis=-1)
