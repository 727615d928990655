"""The compiled way from conditions to pictures: everything that is constant over the steps is
computed once, before them.

That is: text and identity tokens, their keys and values in every cross-attention, hint features,
masks at every size, and what each timestep adds in every residual block. CapFace never sees the
prompt, so one pass of it serves the guided and the unguided half; what the UNet computes before its
first cross-attention is the same for both halves too, and done once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import guidance, sampling_loop, tiling
from caphuman_jax.diffusion.rescale import rescale_guidance
from caphuman_jax.models.capface import gates, scale_control, sum_controls
from caphuman_jax.models.identity_projector import keeps_identity
from caphuman_jax.models.unet import control_shapes
from caphuman_jax.nn import quantization
from caphuman_jax.nn.layers import fold_upsampling


@functools.partial(
    jax.jit, static_argnames=("cfg", "graphs", "branches", "hard_gate", "size", "shallow", "tile")
)
def generate(
    params,
    conditions,
    keys,
    settings,
    plan,
    *,
    cfg: ModelConfig,
    graphs,
    size: tuple[int, int],
    branches: tuple[str, ...] = ("identity", "text"),
    hard_gate: bool = True,
    shallow: int = 0,
    tile: int = 0,
):
    """Pictures (B, H, W, 3) float32 in [0, 1] and the people's face masks (B, P, H/f, W/f) from
    conditions.

    Args:
        params: {name: parameters} of text, identity, capface, unet, vae and the ControlNets that
        are used; kernels may be `compact.Int8`.
        conditions: tokens and empty_tokens (B, 77) int32, the prompt and what stands for no prompt;
            of P people: hints (B, P, H, W, 9), image_tokens (B, P, K, N, W) and recognition (B, P,
            K, R), K photos of each; controls: {ControlNet: picture (B, H, W, 3) in [0, 1]}.
        keys: (B,) random keys, one a picture (`samplers.picture_keys`).
        settings: float32 scalars: strength (of CapFace), identity_until (identity tokens are kept
            where the timestep is at most this; 0: always), weights {branch: weight} of
            `guidance.branch_weights`, controls {ControlNet: strength}, and rescale (see
            `rescale.rescale_guidance`; absent: none). Optional, of `savings`: guided (S,) bool, the
            steps with guidance (the others take the prediction with the text alone; absent: all),
            and fresh (S,) bool, the steps that do not reuse.
        plan: of `samplers.plan`: the sampler and its steps.
        graphs: tuple of (name, graphdef), the static halves of the networks. branches: names of the
            predictions that guidance needs; with `guided` "text" among them.
        size: (H, W) in pixels, multiples of the autoencoder's downsampling times the UNet's.
        shallow: with `fresh`: how many of the decoder's last blocks are run in the steps that reuse
        (`UNet.shallow`).
        tile: side in pixels of the tiles that the autoencoder decodes one by one; 0: the whole
        picture at once.
    """
    run = lambda name, beside=None: nnx.merge(
        dict(graphs)[name], quantization.dense(params[name], beside)
    )
    factor, batch = cfg.vae.downsampling, conditions["hints"].shape[0]
    height, width = size[0] // factor, size[1] // factor
    variants = (branches, ("text",)) if "guided" in settings else (branches,)

    unet, text_encoder = run("unet"), run("text")
    params = {**params, "unet": fold_upsampling(params["unet"], unet.encoder.conv_in.dtype)}
    texts = {
        "text": text_encoder(conditions["tokens"])[0],
        "empty": text_encoder(conditions["empty_tokens"])[0],
    }
    contexts = {side: unet.encode_context(text) for side, text in texts.items()}
    contexts = {
        chosen: guidance.joined([contexts[_side(branch)] for branch in chosen])
        for chosen in variants
    }
    faces = _Faces(
        run, conditions, settings, variants, control_shapes(cfg.unet, height, width), hard_gate
    )
    pictures = _PictureControls(run, conditions["controls"], settings["controls"], texts, variants)

    shifts = {
        "unet": unet.embed_times(plan.timesteps),
        "faces": faces.embed_times(plan.timesteps),
        "pictures": pictures.embed_times(plan.timesteps),
    }
    steps = {
        "times": jax.tree.map(lambda x: x[:, None], shifts),
        "identified": keeps_identity(plan.timesteps, settings["identity_until"]),
    }
    steps |= {name: settings[name] for name in ("guided", "fresh") if name in settings}

    def predict(chosen, reuse, latents, step, deep):
        """Predictions of the chosen branches, one batch, and the deep features for the next step."""
        unet, times, context = run("unet", latents), step["times"]["unet"], contexts[chosen]
        by_face, by_side = faces(chosen, latents, step), pictures(chosen, latents, step)
        control = _residuals(chosen, by_face, by_side)
        if reuse:
            control = None if control is None else control[:shallow]
            return unet.shallow(
                deep[-len(chosen) * batch :], latents, times, context, control, blocks=shallow
            ), deep
        output, made = unet.with_deep(latents, times, context, control, blocks=shallow)
        # Without guidance the other branches' features stay as they are, the text's are the last.
        return output, None if deep is None else jnp.concatenate(
            [deep[: deep.shape[0] - made.shape[0]], made]
        )

    rescale = None
    if "rescale" in settings:
        rescale = lambda total, with_text: rescale_guidance(total, with_text, settings["rescale"])
    weights = [settings["weights"][branch] for branch in branches]

    def denoise(latents, _, step, deep=None):
        def run_branches(chosen, reuse, latents, deep):
            output, deep = predict(chosen, reuse, latents, step, deep)
            return guidance.weighted_sum(
                output, weights, rescale
            ) if chosen == branches else output, deep

        def where(name, true, false):
            return (
                true
                if name not in step
                else lambda *arrays: jax.lax.cond(step[name], true, false, *arrays)
            )

        of = lambda reuse: where(
            "guided",
            functools.partial(run_branches, branches, reuse),
            functools.partial(run_branches, ("text",), reuse),
        )
        prediction, deep = where("fresh", of(False), of(True))(latents, deep)
        return prediction if "fresh" not in step else (prediction, deep)

    noise = sampling_loop.initial_noise(keys, (height, width, cfg.unet.in_channels))
    deep = None
    if "fresh" in settings:
        first = jax.tree.map(lambda x: x[0], steps["times"]["unet"])
        shape = jax.eval_shape(
            lambda: unet.with_deep(noise, first, contexts[branches], blocks=shallow)[1]
        )
        deep = jnp.zeros(shape.shape, shape.dtype)
    latents = sampling_loop.sample(
        denoise,
        noise,
        plan,
        prediction=cfg.diffusion.prediction,
        keys=keys,
        step_constants=steps,
        memory=deep,
    )
    decoded = tiling.decode_in_tiles(
        run("vae").decode, latents / cfg.vae.scale, tile // factor or max(height, width), factor
    )
    return jnp.clip(decoded / 2 + 0.5, 0.0, 1.0), faces.mask.reshape(batch, -1, height, width)


def _side(branch: str) -> str:
    """Which text a branch sees."""
    return "text" if branch == "text" else "empty"


def _pass(branch: str) -> str | None:
    """Which pass of CapFace a branch takes its residuals from: it never sees the prompt."""
    return {"none": None, "head": "head", "identity": "identity", "text": "identity"}[branch]


def _residuals(chosen, by_face, by_side):
    """The sum of the residuals of CapFace and the ControlNets for each of the branches: of B
    pictures where all have the same ones.
    """
    made, keys = {}, [(_pass(branch), _side(branch) if by_side else None) for branch in chosen]
    for key in keys:
        name, side = key
        if name is not None:
            made.setdefault(key, sum_controls([by_face[name], *by_side.get(side, [])]))
        else:  # "none" has no residuals, of ControlNets neither
            made.setdefault(
                key, jax.tree.map(jnp.zeros_like, next(iter(by_face.values()))) if by_face else None
            )
    return guidance.joined_or_shared([made[key] for key in keys])


class _Faces:
    """CapFace of all people in all pictures, with what of it is constant over the steps."""

    def __init__(self, run, conditions, settings, variants, shapes, hard_gate):
        self.run, self.strength = run, settings["strength"]
        self.batch, self.people, photos = conditions["recognition"].shape[:3]
        flat = lambda x, axes: x.reshape(-1, *x.shape[axes:])
        tokens = run("identity")(
            flat(conditions["image_tokens"], 3), flat(conditions["recognition"], 3)
        )
        tokens = tokens.reshape(self.batch * self.people, photos * tokens.shape[1], tokens.shape[2])
        capface = run("capface")
        self.embed_times = capface.embed_times
        self.features = capface.encode_hints(flat(conditions["hints"], 2))
        self.mask = capface.mask(self.features)
        self.gates = gates(self.mask, [shape[:2] for shape in shapes], hard_gate)
        self.passes = {
            chosen: tuple(dict.fromkeys(_pass(b) for b in chosen if _pass(b)))
            for chosen in variants
        }
        contexts = {
            "identity": capface.encode_context(tokens),
            "head": capface.encode_context(jnp.zeros_like(tokens)),
        }
        self.contexts = {
            chosen: guidance.joined([contexts[name] for name in names]) if names else None
            for chosen, names in self.passes.items()
        }

    def __call__(self, chosen, latents, step) -> dict[str, tuple]:
        """Gated residuals of all people together, by the passes that the chosen branches need."""
        if not self.passes[chosen]:
            return {}
        # Keys and values are linear in the tokens, and without values attention gives nothing: the
        # same as tokens of zero.
        kept = lambda pair: (pair[0], pair[1] * step["identified"].astype(pair[1].dtype))
        context = jax.tree.map(
            kept, self.contexts[chosen], is_leaf=lambda node: isinstance(node, tuple)
        )
        capface = self.run("capface", latents)
        residuals = capface(
            jnp.repeat(latents, self.people, axis=0), step["times"]["faces"], context, self.features
        )
        return {
            name: self._of_pass(residuals, number)
            for number, name in enumerate(self.passes[chosen])
        }

    def _of_pass(self, residuals, number):
        count = self.batch * self.people
        own = (
            x if x.shape[0] == count else x[number * count : (number + 1) * count]
            for x in residuals
        )
        gated = (x * gate.astype(x.dtype) for x, gate in zip(own, self.gates))
        return scale_control(
            tuple(x.reshape(self.batch, self.people, *x.shape[1:]).sum(axis=1) for x in gated),
            self.strength,
        )


class _PictureControls:
    """The ControlNets that are used, each with its picture's features and its strength."""

    def __init__(self, run, pictures, strengths, texts, variants):
        self.run, self.strengths = run, strengths
        self.networks = {name: run(f"controlnet_{name}") for name in pictures}
        self.features = {
            name: network.encode_hints(pictures[name]) for name, network in self.networks.items()
        }
        self.sides = {
            chosen: tuple(dict.fromkeys(_side(b) for b in chosen if b != "none"))
            for chosen in variants
        }
        self.contexts = {
            chosen: {
                name: network.encode_context(guidance.joined([texts[side] for side in sides]))
                for name, network in self.networks.items()
            }
            for chosen, sides in self.sides.items()
            if sides
        }

    def embed_times(self, timesteps):
        return {name: network.embed_times(timesteps) for name, network in self.networks.items()}

    def __call__(self, chosen, latents, step) -> dict[str, list]:
        """Residuals of each ControlNet, by the side whose text it saw; nothing where there are
        none.
        """
        by_side = {side: [] for side in self.sides[chosen]} if self.networks else {}
        for name in self.networks if by_side else ():
            network = self.run(f"controlnet_{name}", latents)
            residuals = network(
                latents,
                step["times"]["pictures"][name],
                self.contexts[chosen][name],
                self.features[name],
            )
            residuals = scale_control(residuals, self.strengths[name])
            for number, side in enumerate(by_side):
                own = slice(number * latents.shape[0], (number + 1) * latents.shape[0])
                by_side[side].append(
                    tuple(x if x.shape[0] == latents.shape[0] else x[own] for x in residuals)
                )
        return by_side
