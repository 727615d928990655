"""From conditions to images in one compiled program.

Everything that is constant over the steps is computed once, before them: text and identity tokens,
their keys and values in every cross-attention, hint features, masks at every size, and what each
timestep adds in every residual block.

Guidance predicts several branches at each step (`guidance.BRANCHES`). CapFace never sees the
prompt, so one CapFace pass serves every branch with the same identity; what the UNet computes
before its first cross-attention is the same for all branches, and is computed once, too."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import acceleration, sampling_loop, tiling
from caphuman_jax.diffusion.guidance import (
    BRANCHES,
    concatenated,
    concatenated_or_shared,
    guided,
)
from caphuman_jax.diffusion.regions import RegionWeights, texts_of_regions
from caphuman_jax.models.capface import gate_by, gates, scale_control, sum_controls
from caphuman_jax.models.identity_projector import keeps_identity
from caphuman_jax.models.unet import control_shapes
from caphuman_jax.nn import fp8, quantization
from caphuman_jax.nn.layers import fold_upsampling
from caphuman_jax.nn.typing import Array

NETWORKS = ("text", "identity", "capface", "unet", "vae")
"""The networks that `generate` runs, besides ControlNets."""


def networks_of(params: Mapping[str, dict]) -> dict[str, dict]:
    """Of a model's {network: parameters}, those that `generate` takes."""
    return {
        name: tree
        for name, tree in params.items()
        if name in NETWORKS or name.startswith("controlnet_")
    }


@functools.partial(
    jax.jit,
    static_argnames=(
        "cfg",
        "graphs",
        "branches",
        "hard_gate",
        "size",
        "shallow",
        "tile",
        "clip_skip",
        "fp8_products",
    ),
)
def generate(
    params,
    conditions,
    keys,
    settings,
    sampler,
    *,
    cfg: ModelConfig,
    graphs,
    size: tuple[int, int],
    branches: tuple[str, ...] = ("identity", "text"),
    hard_gate: bool = True,
    shallow: int = 0,
    tile: int = 0,
    clip_skip: int = 1,
    fp8_products: bool = False,
):
    """Generate images.

    Args:
        params: {name: parameters} of text, identity, capface, unet, vae and the ControlNets that
            are used; kernels may be `quantization.Int8`.
        conditions: token_ids and empty_token_ids (B, C·L) int32, of the prompt and of what stands
            for no prompt, in C chunks of the text encoder's length L; optional weights and
            empty_weights (B, C·L) of its output, see `encode_text`; of P people: hints
            (B, P, H, W, 9), image_tokens (B, P, K, N, W) and recognition (B, P, K, R) of K photos
            each; controls: {ControlNet: picture (B, H, W, 3) in [0, 1]}. Optional, to begin with a
            photo: known, its latents (B, h, w, C) of `encode_photos` and mask (B, h, w, 1), see
            `sampling_loop.Known`. Of an inpainting model, whose UNet sees 2C + 1 channels: visible,
            the mask (B, h, w, 1), 1 where the photo is hidden, and the latents (B, h, w, C) of the
            photo that is gray there. Optional, for people with words of their own: regions, the
            token_ids and weights (B, P, C·L) of their prompts, and masks (B, P, h, w) in [0, 1]
            that do not overlap, see `regions.RegionWeights`.
        keys: (B,) random keys, one an image (`sampling_loop.picture_keys`).
        settings: float32 scalars: strength (of CapFace), identity_until (identity tokens are kept
            where the timestep is at most this; 0: always), weights {branch: weight} of
            `guidance.branch_weights`, controls {ControlNet: strength}. With known: start, the
            number `step` of the first step and the noise level `alpha`, `sigma` of the latents
            there; the sampler is then of `samplers.start_at`. Optional: rescale (phi of
            `guidance.rescale_guidance`); guided (S,) bool, the steps with guidance (the others take
            the prediction of "text" alone); embeddings (E, n) that are added to the text encoder's;
            recompute_mask (S,) bool, the steps that run the whole
            UNet (`acceleration.recompute_mask`). With regions: bound (S,) bool, the steps at which
            they are bound hard.
        sampler: Of `samplers.make_sampler`.
        cfg: The model's configuration.
        graphs: ((name, graphdef), …), the static halves of the networks.
        size: (H, W) in pixels, multiples of the autoencoder's downsampling times the UNet's.
        branches: The branches that guidance needs; with `guided`, "text" among them.
        hard_gate: Threshold CapFace's mask at 0.5, see `capface.gates`.
        shallow: With `recompute_mask`: how many of the decoder's last blocks the other steps run.
        clip_skip: Which of the text encoder's layers is the output, from its end; 1 is the last.
        tile: Side in pixels of the tiles that the autoencoder decodes one by one; 0: the whole
            image at once.
        fp8_products: Multiply 8-bit floating-point numbers in the UNet and CapFace, see
            `fp8.with_fp8_products`.

    Returns:
        Images (B, H, W, 3) float32 in [0, 1], and the people's face masks (B, P, H/f, W/f).
    """
    network = lambda name, barrier_with=None: nnx.merge(
        dict(graphs)[name], quantization.dequantize(params[name], barrier_with)
    )
    factor, batch = cfg.vae.downsampling, conditions["hints"].shape[0]
    height, width = size[0] // factor, size[1] // factor
    branch_sets = (branches, ("text",)) if "guided" in settings else (branches,)

    unet, text_encoder = network("unet"), network("text")
    params = {**params, "unet": fold_upsampling(params["unet"], unet.encoder.conv_in.dtype)}
    if fp8_products:  # rounded once, before the steps
        params |= {name: fp8.with_fp8_products(params[name]) for name in ("unet", "capface")}
    encode = functools.partial(
        encode_text,
        text_encoder,
        length=cfg.text.length,
        embeddings=settings.get("embeddings"),
        skip=clip_skip - 1,
    )
    texts = {
        "prompt": encode(conditions["token_ids"], conditions.get("weights")),
        "empty": encode(conditions["empty_token_ids"], conditions.get("empty_weights")),
    }
    regional, seen_texts = None, texts
    if "regions" in conditions:
        regional = RegionWeights(conditions["regions"]["masks"], cfg.unet)
        seen_texts = texts_of_regions(encode, conditions["regions"], texts)
    encoded = {name: unet.encode_context(text) for name, text in seen_texts.items()}
    contexts = {
        chosen: concatenated([encoded[BRANCHES[branch].text] for branch in chosen])
        for chosen in branch_sets
    }
    shapes = control_shapes(cfg.unet, height, width)
    capface = _CapFace(network, conditions, settings["strength"], branch_sets, shapes, hard_gate)
    controlnets = _ControlNets(
        network, conditions["controls"], settings["controls"], texts, branch_sets
    )

    time_biases = {
        "unet": unet.embed_times(sampler.timesteps),
        "capface": capface.embed_times(sampler.timesteps),
        "controlnets": controlnets.embed_times(sampler.timesteps),
    }
    steps = {
        "time_biases": jax.tree.map(lambda x: x[:, None], time_biases),
        "keeps_identity": keeps_identity(sampler.timesteps, settings["identity_until"]),
    }
    by_step = ("guided", "recompute_mask", "bound")
    steps |= {name: settings[name] for name in by_step if name in settings}

    def inputs(branches, latents, step):
        """The UNet, and what it takes besides the latents for these branches."""
        unet = network("unet", latents)
        control = _residuals(
            branches, capface(branches, latents, step), controlnets(branches, latents, step)
        )
        if "visible" in conditions:  # of the UNet alone: control branches see 4 channels
            visible = conditions["visible"]
            latents = jnp.concatenate([latents, visible["mask"], visible["latents"]], axis=-1)
        context = contexts[branches]
        if regional is not None:
            context = regional.bind(context, step["bound"])
        return unet, latents, step["time_biases"]["unet"], context, control

    def predict(branches, latents, _, step, cached_features):
        unet, latents, biases, context, control = inputs(branches, latents, step)
        output, features = unet.with_features(latents, biases, context, control, blocks=shallow)
        if cached_features is None:
            return output, None
        # The last branch is "text": its features are last. Without guidance they are the only ones
        # that are new.
        kept = cached_features[: cached_features.shape[0] - features.shape[0]]
        return output, jnp.concatenate([kept, features])

    def predict_from_cache(branches, latents, _, step, cached_features):
        unet, latents, biases, context, control = inputs(branches, latents, step)
        control = None if control is None else control[:shallow]
        own = cached_features[-len(branches) * batch :]
        output = unet.from_cached_features(own, latents, biases, context, control, blocks=shallow)
        return output, cached_features

    guide = functools.partial(
        guided,
        weights={branch: settings["weights"][branch] for branch in branches},
        rescale=settings.get("rescale"),
        limited="guided" in settings,
    )
    noise = sampling_loop.initial_noise(keys, (height, width, cfg.vae.latent_channels))
    begin, first, known = noise, None, None
    if "known" in conditions:
        start, photo = settings["start"], conditions["known"]
        first, known = start["step"], sampling_loop.Known(photo["latents"], photo["mask"], noise)
        begin = sampling_loop.noised(known.latents, noise, start["alpha"], start["sigma"])
    denoise, cached_features = guide(predict), None
    if "recompute_mask" in settings:
        denoise = acceleration.with_cache(guide(predict), guide(predict_from_cache))
        biases = jax.tree.map(lambda x: x[0], steps["time_biases"]["unet"])
        seen = jax.ShapeDtypeStruct((*noise.shape[:3], cfg.unet.in_channels), noise.dtype)
        shape = jax.eval_shape(
            lambda x: unet.with_features(x, biases, contexts[branches], blocks=shallow)[1], seen
        )
        cached_features = jnp.zeros(shape.shape, shape.dtype)
    latents = sampling_loop.sample(
        denoise,
        begin,
        sampler,
        prediction_type=cfg.diffusion.prediction_type,
        keys=keys,
        step_constants=steps,
        carry=cached_features,
        first=first,
        known=known,
    )
    decoded = tiling.decode_in_tiles(
        network("vae").decode,
        cast(Array, latents) / cfg.vae.scaling_factor,  # without a trajectory
        tile // factor or max(height, width),
        factor,
    )
    return jnp.clip(decoded / 2 + 0.5, 0.0, 1.0), capface.mask.reshape(batch, -1, height, width)


def encode_text(
    text_encoder,
    token_ids: Int[Array, "b n"],
    weights: Float[Array, "b n"] | None = None,
    *,
    length: int = 77,
    embeddings: Float[Array, "e w"] | None = None,
    skip: int = 0,
) -> Float[Array, "b n width"]:
    """Encode prompts of any length, chunk by chunk, with weighted tokens.

    Args:
        text_encoder: the network.
        token_ids: (B, C·L) int32 of `prompt.PromptEncoder`, or one chunk of up to L.
        weights: (B, C·L) of the output, whose mean over each chunk is restored; None: all 1.
        length: L, the tokens of a chunk.
        embeddings, skip: see `clip_text.TextEncoder`.
    """
    length = min(length, token_ids.shape[1])
    hidden = text_encoder(token_ids.reshape(-1, length), embeddings, skip)[0]
    if weights is not None:
        exact = hidden.astype(jnp.float32)
        weighted = exact * weights.reshape(-1, length, 1)
        mean = lambda x: x.mean(axis=(1, 2), keepdims=True)
        hidden = (weighted * (mean(exact) / mean(weighted))).astype(hidden.dtype)
    return hidden.reshape(*token_ids.shape, hidden.shape[-1])


def _residuals(branches: Sequence[str], of_capface: dict, of_controlnets: dict) -> Any:
    """The sum of CapFace's and the ControlNets' residuals for each of the branches; of B images
    where all branches share them, else of kB; None where there are none.

    Args:
        of_capface: {CapFace pass: residuals}.
        of_controlnets: {text: [residuals of each ControlNet]}.
    """
    made = {}

    def of_branch(branch):
        text, capface_pass = BRANCHES[branch]
        key = capface_pass, text if of_controlnets else None
        if key not in made and capface_pass is not None:
            made[key] = sum_controls([of_capface[capface_pass], *of_controlnets.get(text, [])])
        elif key not in made:
            zeros = jax.tree.map(jnp.zeros_like, next(iter(of_capface.values()), None))
            made[key] = zeros
        return made[key]

    return concatenated_or_shared([of_branch(branch) for branch in branches])


def _uses(branch_sets, what) -> dict[tuple[str, ...], tuple]:
    """For each set of branches, what they see of one kind, each once and in their order."""
    return {
        branches: tuple(
            dict.fromkeys(what(BRANCHES[b]) for b in branches if BRANCHES[b].capface_pass)
        )
        for branches in branch_sets
    }


class _CapFace:
    """CapFace of all people in all images, with what of it is constant over the steps."""

    def __init__(self, network, conditions, strength, branch_sets, shapes, hard_gate):
        self.network, self.strength = network, strength
        self.batch, self.people, photos = conditions["recognition"].shape[:3]
        flat = lambda x, axes: x.reshape(-1, *x.shape[axes:])
        tokens = network("identity")(
            flat(conditions["image_tokens"], 3), flat(conditions["recognition"], 3)
        )
        tokens = tokens.reshape(self.batch * self.people, photos * tokens.shape[1], tokens.shape[2])
        capface = network("capface")
        self.embed_times = capface.embed_times
        self.features = capface.encode_hints(flat(conditions["hints"], 2))
        self.mask = capface.mask(self.features)
        self.gates = gates(self.mask, [shape[:2] for shape in shapes], hard_gate)
        self.passes = _uses(branch_sets, lambda sees: sees.capface_pass)
        contexts = {
            "identity": capface.encode_context(tokens),
            "head": capface.encode_context(jnp.zeros_like(tokens)),
        }
        self.contexts = {
            branches: concatenated([contexts[name] for name in passes]) if passes else None
            for branches, passes in self.passes.items()
        }

    def __call__(self, branches, latents, step) -> dict[str, tuple]:
        """Gated residuals of all people together, by the CapFace passes that the branches need."""
        if not self.passes[branches]:
            return {}
        # Keys and values are linear in the tokens, and without values attention gives nothing: the
        # same as tokens of zero.
        kept = lambda pair: (pair[0], pair[1] * step["keeps_identity"].astype(pair[1].dtype))
        context = jax.tree.map(
            kept, self.contexts[branches], is_leaf=lambda node: isinstance(node, tuple)
        )
        residuals = self.network("capface", latents)(
            jnp.repeat(latents, self.people, axis=0),
            step["time_biases"]["capface"],
            context,
            self.features,
        )
        return {
            name: self._of_pass(residuals, number)
            for number, name in enumerate(self.passes[branches])
        }

    def _of_pass(self, residuals, number):
        count = self.batch * self.people
        own = (
            x if x.shape[0] == count else x[number * count : (number + 1) * count]
            for x in residuals
        )
        together = lambda x: x.reshape(self.batch, self.people, *x.shape[1:]).sum(axis=1)
        return scale_control(tuple(map(together, gate_by(own, self.gates))), self.strength)


class _ControlNets:
    """The ControlNets that are used, each with its picture's features and its strength."""

    def __init__(self, network, pictures, strengths, texts, branch_sets):
        self.network, self.strengths = network, strengths
        networks = {name: network(f"controlnet_{name}") for name in pictures}
        self.networks = networks
        self.features = {
            name: network.encode_hints(pictures[name]) for name, network in networks.items()
        }
        self.texts = _uses(branch_sets, lambda sees: sees.text)
        self.contexts = {
            branches: {
                name: network.encode_context(concatenated([texts[text] for text in seen]))
                for name, network in networks.items()
            }
            for branches, seen in self.texts.items()
            if seen
        }

    def embed_times(self, timesteps):
        return {name: network.embed_times(timesteps) for name, network in self.networks.items()}

    def __call__(self, branches, latents, step) -> dict[str, list]:
        """Residuals of each ControlNet, by the text that it saw; empty without ControlNets."""
        by_text = {text: [] for text in self.texts[branches]} if self.networks else {}
        for name in self.networks if by_text else ():
            residuals = self.network(f"controlnet_{name}", latents)(
                latents,
                step["time_biases"]["controlnets"][name],
                self.contexts[branches][name],
                self.features[name],
            )
            residuals = scale_control(residuals, self.strengths[name])
            for number, text in enumerate(by_text):
                own = slice(number * latents.shape[0], (number + 1) * latents.shape[0])
                by_text[text].append(
                    tuple(x if x.shape[0] == latents.shape[0] else x[own] for x in residuals)
                )
        return by_text
