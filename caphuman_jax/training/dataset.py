"""Records -> what a training step draws from, resident on the accelerator.

Heads are fitted, light and albedo estimated, hints rendered and identity tokens computed here, in large batches by
the same functions that serve one photo in use. Small enough to keep whole: about 2.7 MB a photo at 256².
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.face import align, attributes, parse, recognise
from caphuman_jax.face.landmarks import expression_names
from caphuman_jax.head import fit, hints
from caphuman_jax.head.morphable import expression_in_order, load_head
from caphuman_jax.models.tokenizer import ClipTokenizer
from data_pipeline import captions

CAPTIONS = 12  # different captions kept for each photo
FACES = 4  # recognition crops for each photo: as it is, mirrored, and two a little off
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
    regions = np.stack([face_region(part.landmarks[i], pictures.shape[1]) for i in range(len(part))])
    heads, all_hints = render(pictures, regions, part.landmarks, part.expression, partner, chunk=chunk)
    log("hints rendered")
    rng = np.random.default_rng(seed)
    coloured, plain = ([compose(f, rng, kind) for f in found for _ in range(CAPTIONS)] for kind in (None, "black-and-white"))
    encode = ClipTokenizer()
    ids = np.stack([encode(coloured), encode(plain)], axis=1).reshape(len(part), CAPTIONS, 2, 77)
    return {
        "pictures": pictures, "covered": (part.covered * pictures.shape[1]).astype(np.float32), "region": regions, "hints": all_hints,
        "tokens": tokens, "vectors": vectors, "partner": partner, "captions": ids.astype(np.int32), "grey": grey,
        "empty": encode([""])[0].astype(np.int32), "heads": heads, "name": part.name,
    }


def caption_attributes(part, i: int, probes) -> dict:
    """`captions.attributes` of record i."""
    return captions.attributes(dict(zip(expression_names(), part.expression[i].tolist())), part.colours[i], probes)


def compose(found: dict, rng: np.random.Generator, kind: str | None) -> str:
    """A caption, with colours left out if the picture is to be shown without them."""
    if kind == "black-and-white":
        found = {k: v for k, v in found.items() if k not in ("hair", "clothes", "background")} | {"kind": kind}
    return captions.compose(found, rng)


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


def face_region(landmarks: np.ndarray, size: int) -> np.ndarray:
    """(size, size) uint8, 255 in the face region: what CapFace's mask is taught."""
    return parse.face_mask(parse.parse_face(landmarks * size, (size, size))).astype(np.uint8) * 255


def render(pictures, regions, landmarks, expression, partner, *, chunk: int):
    """Fitted heads and hints (N, 2, S, S, 9) uint8, on the device: of the photo's own head, and with the identity of a partner.

    The second is rendered with the shape and albedo of another photo of the same person where there is one, and with
    the photo's own albedo mirrored otherwise: in use, too, the albedo never fits the wanted picture exactly.
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
    lent = dataclasses.replace(
        joined, identity=joined.identity[other], albedo=np.where(alone[:, None, None], mirrored, joined.albedo[other]))
    # Kept on the device: they are most of the data, and training draws from them there.
    drawn = [
        jnp.stack([encode(hints.render_hints_batch(model, jax.tree.map(lambda x: x[b], source), size, size)) for source in (joined, lent)], axis=1)
        for b in batches
    ]
    return joined, jnp.concatenate(drawn)[: len(pictures)]


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
