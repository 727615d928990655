"""Classifier-free guidance (arXiv 2207.12598), with separate scales for text, identity and head.

A *branch* is one of guidance's predictions, named after what it sees (its condition set, BRANCHES).
From a prediction that sees nothing, each condition is added in turn and its difference scaled
(arXiv 2211.09800, eq. 3):

    none + head scale · (head − none) + identity scale · (identity − head)
         + text scale · (text − identity)

"head" is CapFace with identity tokens of zero, "identity" CapFace as trained, "text" that and the
prompt. CapFace never sees the prompt, so one CapFace pass serves "identity" and "text". With head
and identity scale 1, the original's setting, two branches are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from caphuman_jax.diffusion.samplers import SamplerCoefficients
from caphuman_jax.diffusion.sampling_loop import Denoise, denoise_by_step
from caphuman_jax.nn.typing import Array


class ConditionSet(NamedTuple):
    """What a branch sees.

    Attributes:
        text: "prompt", or "empty" for the text that stands for no prompt.
        capface_pass: "identity", "head" (identity tokens of zero), or None: no control residuals
            at all, those of ControlNets included.
    """

    text: str
    capface_pass: str | None


BRANCHES = {
    "none": ConditionSet("empty", None),
    "head": ConditionSet("empty", "head"),
    "identity": ConditionSet("empty", "identity"),
    "text": ConditionSet("prompt", "identity"),
}

Predict = Callable[..., tuple[jax.Array, Any]]
"""predict(branches, latents (B, h, w, C), timestep (), step_constants, carry) → the predictions of
these branches as one batch (kB, h, w, C), in their order, and the carry for the next step.
"""


def branch_weights(text: float, identity: float = 1.0, head: float = 1.0) -> dict[str, float]:
    """Weight of each branch in the sum above. Branches of weight 0 are omitted, so that they are
    never computed.
    """
    weights = dict(zip(BRANCHES, (1 - head, head - identity, identity - text, text)))
    return {branch: weight for branch, weight in weights.items() if weight != 0}


def guided(
    predict: Predict,
    weights: Mapping[str, float | Array],
    *,
    rescale: float | Array | None = None,
    limited: bool = False,
) -> Denoise:
    """Make a denoiser that predicts the weighted sum of the branches.

    Args:
        predict: Predicts any of the branches.
        weights: Weight of each branch, see `branch_weights`; may be traced.
        rescale: phi of `rescale_guidance`, which the last branch's prediction is the measure of;
            None leaves the sum as it is.
        limited: Guide only in the steps where the step constant "guided" is true; the others
            compute and take the prediction of "text" alone (arXiv 2404.07724).

    Returns:
        A function as `sampling_loop.sample` takes it.
    """

    def everywhere(latents, timestep, step, carry):
        predictions, carry = predict(tuple(weights), latents, timestep, step, carry)
        return _weighted_sum(predictions, list(weights.values()), rescale), carry

    def text_alone(latents, timestep, step, carry):
        return predict(("text",), latents, timestep, step, carry)

    return denoise_by_step("guided", everywhere, text_alone) if limited else everywhere


def guided_steps(sampler: SamplerCoefficients, interval: tuple[float, float]) -> np.ndarray:
    """Mark the steps (S,) whose timestep lies in the interval, both ends included."""
    return (sampler.timesteps >= min(interval)) & (sampler.timesteps <= max(interval))


def rescale_guidance(
    guided: Float[Array, "b h w c"], with_text: Float[Array, "b h w c"], phi: float | Array
) -> Float[Array, "b h w c"]:
    """Bring a guided prediction towards the contrast of the prediction with the text (arXiv
    2305.08891, eq. 14-16).

    Args:
        guided: (B, h, w, C) float32.
        with_text: (B, h, w, C) float32; each image's standard deviation is the measure.
        phi: Share of the correction in [0, 1]: 0 leaves `guided` as it is. The paper takes 0.7 for
            models of zero terminal SNR, whose images guidance otherwise over-exposes.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = jnp.std(with_text, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return guided * (phi * ratio + (1 - phi))


def concatenated(parts: Sequence[Any]) -> Any:
    """Join pytrees of one structure into one, their leaves concatenated on the first axis."""
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def concatenated_or_shared(parts: Sequence[Any]) -> Any:
    """`concatenated`, but where all parts are one and the same object, that object."""
    return parts[0] if all(part is parts[0] for part in parts) else concatenated(parts)


def _weighted_sum(
    predictions: Float[Array, "kb h w c"],
    weights: Sequence[float | Array],
    rescale: float | Array | None,
) -> Float[Array, "b h w c"]:
    """Predictions (kB, h, w, C) of k branches → (B, h, w, C) float32."""
    parts = jnp.split(predictions.astype(jnp.float32), len(weights))
    total = cast(Array, sum(weight * part for weight, part in zip(weights, parts)))
    return total if rescale is None else rescale_guidance(total, parts[-1], rescale)
