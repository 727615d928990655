"""Records -> what a training step draws from, resident on the accelerator.

Heads are fitted, light and albedo estimated, hints rendered and identity tokens computed here, in large batches by
the same functions that serve one photo in use. Small enough to keep whole: about 2.7 MB a photo at 256².
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.face import align, attributes, colours, parse, recognise
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head import fit, hints
from caphuman_jax.head.morphable import expression_in_order, load_head
from caphuman_jax.models.tokenizer import ClipTokenizer
from data_pipeline import captions

CAPTIONS = 12  # different captions kept for each photo
FACES = 4  # recognition crops for each photo: as it is, mirrored, and two a little off
SHADES = 32  # of each background colour that is put behind people
MENTIONED = (0.3, 0.8)  # how much of what could be said captions say: few words are what people type, many teach more
PARTNERS = 4  # photos of the same person that may lend their identity, the photo itself included


def build(records, index: np.ndarray, *, seed: int = 0, chunk: int = 64, log=print) -> dict:
    """Arrays over the photos `index` of `records`, as uint8 where they are large; see `training.diffusion.draw`."""
    part = records.take(index)
    tokens, vectors = identity_tokens(part.pictures, part.landmarks, seed=seed)
    worn = attributes.scores(tokens[:, 0]) > 0
    photo = ~worn[:, attributes.names().index("drawing")]
    part, tokens, vectors, worn = part.take(photo), tokens[photo], vectors[photo], worn[photo]
    log(f"identity tokens computed; {int((~photo).sum())} drawings and paintings left out")
    found = [caption_attributes(part, i, dict(zip(attributes.names(), worn[i].tolist()))) for i in range(len(part))]
    grey = np.array([f["kind"] != "colour" for f in found])
    pictures = part.pictures.copy()
    for i in np.flatnonzero(grey):
        pictures[i] = _grey(pictures[i])
    for f in found:
        f["kind"] = "colour" if f["kind"] == "colour" else "black-and-white"
    log(f"{len(part)} photos, {int(grey.sum())} without colour")
    partner = partners(part.mobilefacenet)
    regions, features = (np.stack(masks) for masks in zip(*(face_regions(marks, pictures.shape[1]) for marks in part.landmarks)))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        person = np.stack(list(pool.map(solid_person, part.pictures)))
    log("people cut out")
    heads, all_hints = render(pictures, regions, part.landmarks, part.expression, partner, grey, chunk=chunk)
    log("hints rendered")
    rng = np.random.default_rng(seed)
    kinds = (None, "black-and-white", "no background")
    encode = ClipTokenizer()
    ids = np.stack([encode([compose(f, rng, kind) for f in found for _ in range(CAPTIONS)]) for kind in kinds], axis=1)
    ids = ids.reshape(len(part), CAPTIONS, len(kinds), 77)
    background_ids, background_rgb = plain_backgrounds(encode, rng)
    return {
        "pictures": pictures, "covered": (part.covered * pictures.shape[1]).astype(np.float32), "region": regions, "hints": all_hints,
        "tokens": tokens, "vectors": vectors, "partner": partner, "captions": ids.astype(np.int32), "grey": grey,
        "empty": encode([""])[0].astype(np.int32), "features": features, "person": person,
        "background_ids": background_ids, "background_rgb": background_rgb, "heads": heads, "name": part.name,
    }


def caption_attributes(part, i: int, probes) -> dict:
    """`captions.attributes` of record i."""
    return captions.attributes(dict(zip(expression_names(), part.expression[i].tolist())), part.colours[i], probes)


def compose(found: dict, rng: np.random.Generator, kind: str | None) -> str:
    """A caption, with colours left out if the picture is to be shown without them, or the background if it is to be another."""
    if kind == "black-and-white":
        found = {k: v for k, v in found.items() if k not in ("hair", "clothes", "background")} | {"kind": kind}
    if kind == "no background":
        found = {k: v for k, v in found.items() if k != "background"}
    return captions.compose(found, rng, keep=rng.choice(MENTIONED))


def plain_backgrounds(encode, rng: np.random.Generator):
    """Words for backgrounds and what they look like: token ids (W, 3, K) int32 to append to a caption, and RGB (W, SHADES, 3) in [0, 1]."""
    words = list(colours.SURFACE)
    texts = [f", {form} background" for word in words for form in (f"a {word}", word, f"a plain {word}")]
    ids = encode(texts, 12)[:, 1:].reshape(len(words), 3, -1)
    return ids.astype(np.int32), np.stack([_shades(word, rng) for word in words])


def _shades(word: str, rng: np.random.Generator) -> np.ndarray:
    """(SHADES, 3) RGB float32 of colours that are called `word`."""
    shades = []
    while len(shades) < SHADES:
        lab = (np.array(colours.SURFACE[word]) + rng.normal(size=3) * (5, 4, 4)).astype(np.float32)
        rgb = np.clip(cv2.cvtColor(lab[None, None], cv2.COLOR_LAB2RGB), 0, 1)
        if colours.colour_word(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0]) == word:
            shades.append(rgb[0, 0])
    return np.stack(shades)


def partners(vectors: np.ndarray, threshold: float = 0.75) -> np.ndarray:
    """(N, PARTNERS) indices of photos that show the same person, the photo itself first and in place of missing ones."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    result = np.repeat(np.arange(len(unit))[:, None], PARTNERS, axis=1)
    cosine = unit @ unit.T
    for i, row in enumerate(cosine):
        row[i] = -1
        best = np.argsort(-row)[: PARTNERS - 1]
        best = best[row[best] > threshold]
        result[i, 1: 1 + len(best)] = best
    return result.astype(np.int32)


def face_regions(landmarks: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (size, size) uint8, 255 in the face region (what CapFace's mask is taught), and round eyes, brows and mouth."""
    labels = parse.parse_face(landmarks * size, (size, size))
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(size / 30) | 1,) * 2)
    features = cv2.dilate((labels >= parse.BROWS).astype(np.uint8), reach)
    return parse.face_mask(labels).astype(np.uint8) * 255, features * 255


def solid_person(picture: np.ndarray) -> np.ndarray:
    """(S, S) uint8, 255 where a person surely is, so that little of the old background shines through at the edge."""
    return np.round(255 * np.clip(parse.person_mask(picture) * 2 - 0.9, 0, 1)).astype(np.uint8)


def render(pictures, regions, landmarks, expression, partner, grey, *, chunk: int):
    """Fitted heads and hints (N, 2, S, S, 9) uint8, on the device: of the photo's own head, and with the identity of a partner.

    The second is rendered with the shape and albedo of another photo of the same person where there is one, and with
    the photo's own albedo mirrored otherwise: in use, too, the albedo never fits the wanted picture exactly. Its mouth is
    somebody else's (`change_mouths`).
    """
    model = load_head()
    size = pictures.shape[1]
    photos = jax.jit(lambda p: p.astype(jnp.float32) / 255)
    encode = jax.jit(lambda h: jnp.round(jnp.concatenate([h[..., :3] / 2 + 0.5, h[..., 3:]], -1) * 255).astype(jnp.uint8))
    batches = [np.minimum(np.arange(s, s + chunk), len(pictures) - 1) for s in range(0, len(pictures), chunk)]
    expression = expression_in_order(model, expression_names(), expression)
    heads = [
        fit.heads_from_photos(model, photos(pictures[b]), landmarks[b] * size, expression[b], (regions[b] > 0).astype(np.float32))
        for b in batches
    ]
    joined = jax.tree.map(lambda *x: np.concatenate(jax.device_get(x))[: len(pictures)], *heads)
    other = partner[:, 1]
    alone = other == np.arange(len(partner))
    mirrored = joined.albedo[:, np.asarray(model.mirror)]
    albedo = np.where(alone[:, None, None], mirrored, joined.albedo[other])
    lent = dataclasses.replace(joined, identity=joined.identity[other], albedo=change_mouths(model, albedo, grey))
    # Kept on the device: they are most of the data, and training draws from them there.
    drawn = [
        jnp.stack([encode(hints.render_hints_batch(model, jax.tree.map(lambda x: x[b], source), size, size)) for source in (joined, lent)], axis=1)
        for b in batches
    ]
    return joined, jnp.concatenate(drawn)[: len(pictures)]


def change_mouths(model, albedo: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Albedo (N, V, 3) with the mouth of the next photo, in the own colour: teeth that a smile left there must not decide about smiles."""
    lips = np.unique(parse.UPPER_LIP_OUTLINE + parse.LOWER_LIP_OUTLINE)
    corners = np.asarray(model.mean)[np.asarray(model.landmark_vertices)[lips]]
    points = np.sum(corners * np.asarray(model.landmark_weights)[lips][..., None], axis=1)
    distance = np.linalg.norm(np.asarray(model.mean) - points.mean(0), axis=1) / (np.ptp(points[:, 0]) / 2)
    inside = np.clip((1.8 - distance) / 0.6, 0, 1)[None, :, None].astype(np.float32)
    rim = inside * (1 - inside) / (inside * (1 - inside)).sum()
    donor = np.roll(albedo, 1, axis=0)
    donor = np.where(grey[:, None, None], donor.mean(axis=-1, keepdims=True), donor)
    own, other = ((x * rim).sum(axis=1, keepdims=True) for x in (albedo, donor))
    return albedo * (1 - inside) + np.clip(donor * np.clip(own / np.maximum(other, 0.02), 0.5, 2), 0, 1) * inside


def identity_tokens(pictures, landmarks, *, seed: int):
    """Tokens (N, FACES, 49, 512) float16 and unit vectors (N, FACES, 192) of recognition crops, some mirrored or a little off."""
    import importlib.resources

    from caphuman_jax.training.onnx_to_jax import load_onnx

    params, apply = load_onnx(importlib.resources.files("caphuman_jax") / "assets" / "face" / "mobilefacenet_192.onnx")
    network = jax.jit(lambda p, x: apply(p, (x - 127.5) / 128))
    rng = np.random.default_rng(seed)
    size = pictures.shape[1]
    tokens = np.empty((len(pictures), FACES, recognise.FEATURE_TOKENS, recognise.FEATURE_WIDTH), np.float16)
    vectors = np.empty((len(pictures), FACES, 192), np.float32)
    side = recognise.MOBILEFACENET_SIZE
    for start in range(0, len(pictures), 128):
        rows = np.minimum(np.arange(start, start + 128), len(pictures) - 1)
        crops = np.empty((len(rows), FACES, side, side, 3), np.uint8)
        for k, i in enumerate(rows):
            matrix = align.similarity_transform(align.five_points(landmarks[i] * size), recognise.MOBILEFACENET_TEMPLATE)
            for v in range(FACES):
                change = matrix.copy()
                if v >= 2:
                    change = change * rng.uniform(0.95, 1.06) + np.array([[0, 0, 1]]) * rng.uniform(-4, 4, (2, 1))
                crop = align.warp(pictures[i], change, side)
                crops[k, v] = crop[:, ::-1] if v % 2 else crop
        out = network(params, crops.reshape(-1, side, side, 3).astype(np.float32))
        vector = np.asarray(out["embeddings"])
        vectors[rows] = (vector / np.linalg.norm(vector, axis=1, keepdims=True)).reshape(len(rows), FACES, -1)
        tokens[rows] = np.asarray(out["features"]).reshape(len(rows), FACES, recognise.FEATURE_TOKENS, recognise.FEATURE_WIDTH)
    return tokens, vectors


def _grey(picture: np.ndarray) -> np.ndarray:
    luma = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(np.round(luma).astype(np.uint8)[..., None], 3, axis=-1)
