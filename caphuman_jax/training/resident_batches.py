"""Batches of photos that rest on the devices, sampled there in every step: which photos, their
small changes, backgrounds and captions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from caphuman_jax.head.hints import unpack_hints
from caphuman_jax.nn.typing import Array
from caphuman_jax.runtime import sharding
from caphuman_jax.training.objective import Batch
from data_pipeline.loading import augment

ON_DEVICE = (
    "pictures",
    "covered",
    "region",
    "hints",
    "tokens",
    "vectors",
    "partner",
    "captions",
    "grey",
    "features",
    "person",
    "trained",
    "background_ids",
    "background_rgb",
    "clothes",
    "clothes_brightness",
    "clothes_ids",
)
LEAST_CLOTHES = 0.02  # share of a picture, where a caption names their color
SHIRT_STAYS = 0.7  # share of new clothes under which a white shirt stays white

MOST_RARE = 6.0
FINENESS = 4  # places of an ordinary photo in the index: weights are rounded to quarters


def resident(data: dict, rare_head_weight: float = 0.0) -> dict:
    """What of `dataset.build` rests on every device, with the index of photos in color and
    without, in which photos of rare heads stand several times (`repeats`).
    """
    chosen = {name: data[name] for name in ON_DEVICE}
    times = repeats(data["rarity"], rare_head_weight) if rare_head_weight else 1
    times = np.broadcast_to(times, data["grey"].shape)
    for kind, mask in (("colour_index", ~data["grey"]), ("grey_index", data["grey"])):
        chosen[kind] = np.repeat(np.flatnonzero(mask), times[mask]).astype(np.int32)
    for kind in ("colour_index", "grey_index"):
        if not len(chosen[kind]):
            chosen[kind] = np.arange(len(data["grey"]), dtype=np.int32)
    return chosen


def repeats(rarity: Float[np.ndarray, " n"], weight: float) -> Int[np.ndarray, " n"]:
    """How often photos (N,) stand in the index that batches are sampled from.

    A photo of rarity r (`dataset.head_rarity`; 1 on average, more for few) is picked 1 + weight ×
    (r − 1) times as often as one of an ordinary head, r counting at most MOST_RARE.
    """
    excess = np.clip(rarity - 1, 0, MOST_RARE - 1)
    return np.rint(FINENESS * (1 + weight * excess)).astype(np.int64)


def sample_batch(data: dict, key, cfg, size: int, mesh=None) -> Batch:
    """A batch of photos of the resident data, with their changes made.

    Args:
        data: of `resident`, on every device.
        key: decides everything random.
        cfg: `MiniTraining`. Photos in color make up `color_share` of a batch. Hints carry another
            photo's identity, or a mirrored albedo, in `identity_swap_prob` of the cases, and so do
            the identity tokens where the person has several photos.
        size: height and width of the pictures.
        mesh: devices over which the batch is split.
    """
    k = jax.random.split(key, 14)
    n = cfg.batch_size
    color = jax.random.uniform(k[0], (n,)) < cfg.color_share
    pick = lambda key, order: order[jax.random.randint(key, (n,), 0, order.shape[0])]
    choice = lambda key, count: jax.random.randint(key, (n,), 0, count)
    index = jnp.where(color, pick(k[1], data["colour_index"]), pick(k[2], data["grey_index"]))
    grey = (jax.random.uniform(k[5], (n,)) < cfg.grayscale_prob) | data["grey"][index]
    chosen = {
        "index": index,
        "change": augment.sample_transforms(k[3], n, cfg.augment),
        "variant": (jax.random.uniform(k[4], (n,)) < cfg.identity_swap_prob).astype(jnp.int32),
        "grey": grey,
        "replaced": (jax.random.uniform(k[10], (n,)) < cfg.background_swap_prob) & ~grey,
        "word": choice(k[11], data["background_ids"].shape[0]),
        "wording": choice(k[12], data["background_ids"].shape[1]),
        "shade": choice(k[13], data["background_rgb"].shape[1]),
        "slope": jax.random.uniform(jax.random.fold_in(k[13], 1), (n, 3), minval=-1.0),
        "identity_source": data["partner"][index, choice(k[6], data["partner"].shape[1])],
        "face": choice(k[7], data["tokens"].shape[1]),
        "caption": choice(k[8], data["captions"].shape[1]),
        "dropped": jax.random.uniform(k[9], (n,)) < cfg.no_text_prob,
    }
    if cfg.light > 1:
        stops = jax.random.uniform(jax.random.fold_in(k[13], 2), (n,), minval=-1.0)
        chosen["gain"] = jnp.exp(stops * np.log(cfg.light)).astype(jnp.float32)
    if cfg.clothes_swap_prob:
        more = jax.random.split(jax.random.fold_in(k[13], 3), 4)
        chosen["dressed"] = (jax.random.uniform(more[0], (n,)) < cfg.clothes_swap_prob) & ~grey
        chosen["clothes_word"] = choice(more[1], data["clothes_ids"].shape[0])
        chosen["clothes_shade"] = choice(more[2], data["background_rgb"].shape[1])
        chosen["shirt_stays"] = jax.random.uniform(more[3], (n,)) < SHIRT_STAYS
    return sharding.over_batch(mesh, lambda data, chosen: _make_batch(data, chosen, size))(
        data, chosen
    )


def _make_batch(data: dict, chosen: dict, size: int) -> Batch:
    """The chosen photos with their changes made: every array that a step needs of them."""
    index, change, grey = chosen["index"], chosen["change"], chosen["grey"]
    coordinates = augment.source_coordinates(change, data["pictures"].shape[1], size)
    names = ("region", "features", "person", *(["clothes"] if "dressed" in chosen else []))
    masks = [data[name][index][..., None] for name in names]
    stacked = jnp.concatenate(
        [data["pictures"][index], data["hints"][index, chosen["variant"]], *masks], axis=-1
    )
    warped = augment.warp(stacked, coordinates) / 255.0
    pictures, hints, region, features, person, *clothes = jnp.split(
        warped, (3, 12, 13, 14, 15)[: 1 + len(names)], axis=-1
    )
    if "gain" in chosen:  # as if in other light: the albedo stays
        gain = chosen["gain"][:, None, None, None]
        pictures = jnp.minimum(pictures * gain, 1.0)
        hints = jnp.concatenate([hints[..., :6], jnp.minimum(hints[..., 6:] * gain, 1.0)], axis=-1)
    dressed = jnp.zeros(grey.shape, bool)
    if clothes:
        dressed = chosen["dressed"] & (clothes[0].mean((1, 2, 3)) > LEAST_CLOTHES)
        brightness = data["clothes_brightness"][index]
        if "gain" in chosen:
            brightness = brightness * chosen["gain"]
        color = data["background_rgb"][chosen["clothes_word"], chosen["clothes_shade"]]
        mask = clothes[0] * dressed[:, None, None, None].astype(jnp.float32)
        pictures = augment.recolor(pictures, mask, color, brightness, chosen["shirt_stays"])
    plain = augment.plain_background(
        data["background_rgb"][chosen["word"], chosen["shade"]], chosen["slope"], size
    )
    behind = (1 - person) * chosen["replaced"][:, None, None, None].astype(jnp.float32)
    pictures = (pictures * (1 - behind) + plain * behind) * 2 - 1
    luma = jnp.sum(pictures * jnp.asarray(augment.LUMA)[None, None, None], axis=-1, keepdims=True)
    pictures = jnp.where(grey[:, None, None, None], luma, pictures)
    hints = unpack_hints(hints, lambda normals: augment.turn_normals(normals, change))
    replaced = chosen["replaced"][:, None]
    changed = 2 * dressed.astype(jnp.int32) + chosen["replaced"].astype(jnp.int32)
    caption = data["captions"][
        index, chosen["caption"], jnp.where(changed > 0, 1 + changed, grey.astype(jnp.int32))
    ]
    if clothes:
        caption = jnp.where(
            dressed[:, None],
            join_captions(caption, data["clothes_ids"][chosen["clothes_word"]]),
            caption,
        )
    caption = jnp.where(
        replaced,
        join_captions(caption, data["background_ids"][chosen["word"], chosen["wording"]]),
        caption,
    )
    return Batch(
        photo=pictures,
        hints=hints,
        region=region,
        features=features,
        area=augment.valid_area(coordinates, data["covered"][index]),
        image_tokens=data["tokens"][chosen["identity_source"], chosen["face"]].astype(jnp.float32),
        recognition=data["vectors"][chosen["identity_source"], chosen["face"]],
        token_ids=caption,
        without_text=chosen["dropped"],
        **{name: column[index] for name, column in data["trained"].items()},
    )


def join_captions(first: Int[Array, "b l"], second: Int[Array, "b k"]) -> Int[Array, "b l"]:
    """Token ids (B, L) of captions with further words: `second` (B, K) holds the words' ids and
    then the end token, several times.

    The end token is the highest id and also fills the rest of `first`; what does not fit is cut
    off, the end token never."""
    length, more = first.shape[1], second.shape[1]
    place = jnp.arange(length)[None] - jnp.argmax(first, axis=1)[:, None]
    words = jnp.take_along_axis(second, jnp.clip(place, 0, more - 1), axis=1)
    return jnp.where(place < 0, first, words).at[:, -1].set(first.max(axis=1))
