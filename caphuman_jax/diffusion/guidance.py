"""Classifier-free guidance (arXiv 2207.12598), with scales of their own for text, identity and
head.

From a prediction that knows nothing, each condition is added in turn and its difference scaled
(arXiv 2211.09800, eq. 3):

    none + head scale · (head − none) + identity scale · (identity − head) + text scale · (text −
    identity)

"head" is CapFace with the identity tokens at zero, "identity" CapFace as trained, "text" that and
the prompt. CapFace never sees the prompt, so one pass of it serves "identity" and "text". With head
and identity scale 1, the original's setting, two predictions are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from caphuman_jax.diffusion.sampling_loop import Denoise

BRANCHES = ("none", "head", "identity", "text")


def branch_weights(text: float, identity: float = 1.0, head: float = 1.0) -> dict[str, float]:
    """What each prediction counts in the sum above, by name; those that count nothing are left out,
    so that they are not made.
    """
    weights = dict(zip(BRANCHES, (1 - head, head - identity, identity - text, text)))
    return {name: weight for name, weight in weights.items() if weight != 0}


def guided(
    unet: Callable[[jax.Array, jax.Array, Any, Any, Any], jax.Array],
    controls: Callable[[jax.Array, jax.Array, Any], Mapping[str, Any]] | None,
    branches: Sequence[tuple[str, float | jax.Array, Any]],
    rescale: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Denoise:
    """A `denoise` function for `samplers.sample`: the weighted sum, in float32, of one prediction a
    branch.

    unet(latents (B, h, w, C), timestep, text, residuals, step_constants) → prediction (kB, h, w,
    C): the text is that of all k branches in their order, joined once; so are the residuals, unless
    all branches share theirs: then they are of B pictures. controls(latents, timestep,
    step_constants) → residuals by branch, pytrees alike with the batch as the leaves' first axis;
    None runs the UNet with residuals None. branches: (name, weight, text), text a pytree with the
    batch first; the weight may be traced. rescale(sum, the last branch's prediction) is applied at
    the end. timestep is a scalar, step_constants have no batch axis."""
    names, weights, texts = zip(*branches)
    text = joined(texts)

    def denoise(latents, timestep, step_constants=None):
        residuals = None if controls is None else controls(latents, timestep, step_constants)
        residuals = (
            None if residuals is None else joined_or_shared([residuals[name] for name in names])
        )
        return weighted_sum(
            unet(latents, timestep, text, residuals, step_constants), weights, rescale
        )

    return denoise


def weighted_sum(
    output: jax.Array, weights: Sequence[float | jax.Array], rescale: Callable | None = None
) -> jax.Array:
    """Predictions (kB, h, w, C) of k branches → their sum (B, h, w, C) in float32, each times its
    weight; see `guided` for `rescale`.
    """
    parts = jnp.split(output.astype(jnp.float32), len(weights))
    total = sum(weight * part for weight, part in zip(weights, parts))
    return total if rescale is None else rescale(total, parts[-1])


def joined(parts: Sequence[Any]) -> Any:
    """Pytrees alike → one, their leaves one after the other on the first axis."""
    return (
        parts[0]
        if len(parts) == 1
        else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    )


def joined_or_shared(parts: Sequence[Any]) -> Any:
    """`joined`, but one and the same pytree for all is left as it is."""
    return parts[0] if all(part is parts[0] for part in parts) else joined(parts)


def text_guidance(
    unet, control, text: Any, empty_text: Any | None, scale: float | jax.Array = 7.0
) -> Denoise:
    """`guided` on the text alone: empty + scale · (with text − empty), with one control pass for
    both halves.

    control(latents, timestep, step_constants) → residuals, or None. empty_text None: the prediction
    with text alone."""
    if empty_text is None:
        branches = [("text", 1.0, text)]
    else:
        branches = [("identity", 1 - scale, empty_text), ("text", scale, text)]

    def controls(latents, timestep, constants):
        return dict.fromkeys(("identity", "text"), control(latents, timestep, constants))

    return guided(unet, None if control is None else controls, branches)
