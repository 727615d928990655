"""The nodes: a model, people and heads in; hints and pictures out.

IMAGE is (B, H, W, 3) float in [0, 1], MASK (B, H, W), both of PyTorch, as everywhere in ComfyUI.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io

from caphuman_jax.diffusion.sampling_field import LARGEST_SIDE
from caphuman_jax.diffusion.sampling_params import FIELDS
from caphuman_jax.head import editing
from caphuman_jax.head.hints import pack_hints
from caphuman_jax.person.person import COMBINE, combine_references
from caphuman_jax.pipeline.loading import load
from caphuman_jax.weights.placement import MEMORY

CATEGORY = "CapHuman"
KEEP = "as in the photo"
Model = io.Custom("CAPHUMAN_MODEL")
Person = io.Custom("CAPHUMAN_PERSON")
Head = io.Custom("CAPHUMAN_HEAD")

_load = functools.lru_cache(2)(lambda model, memory: load(model, memory=memory))


class LoadModel(io.ComfyNode):
    """A shipped model or a model folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="CapHumanLoadModel",
            display_name="Load CapHuman model",
            category=CATEGORY,
            inputs=[
                io.String.Input("model", default="mini", tooltip="a shipped model, or a folder"),
                io.Combo.Input("memory", options=list(MEMORY), default="normal"),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, memory: str) -> io.NodeOutput:
        """Load the model, once."""
        return io.NodeOutput(_load(model, memory))


class PersonFromPhotos(io.ComfyNode):
    """The person in one photo, or in a batch of photos of one person."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="CapHumanPersonFromPhotos",
            display_name="CapHuman person from photos",
            category=CATEGORY,
            inputs=[
                Model.Input("model"),
                io.Image.Input("photos", tooltip="one or several photos of the same person"),
                _face_input(),
                io.Combo.Input("combine", options=list(COMBINE), default="mean"),
            ],
            outputs=[Person.Output(display_name="person")],
        )

    @classmethod
    def execute(cls, model: Any, photos: torch.Tensor, face: int, combine: str) -> io.NodeOutput:
        """Measure the photos."""
        people = [model.person(photo, face) for photo in _photos(photos)]
        return io.NodeOutput(combine_references(people, combine))


class HeadFromNumbers(io.ComfyNode):
    """A head by sliders; what a head that comes in asks for is kept where nothing else is set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        presets = [KEEP, *editing.PRESETS]
        strength = {"min": 0.0, "max": 1.0, "step": 0.01, "display_mode": io.NumberDisplay.slider}
        return io.Schema(
            node_id="CapHumanHead",
            display_name="CapHuman head",
            category=CATEGORY,
            inputs=[
                *(_angle_input(name, limit) for name, limit in editing.LIMITS.items()),
                io.Combo.Input("expression", options=presets, default=KEEP),
                io.Float.Input("expression_weight", default=0.8, **strength),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="single expressions besides, such as jawOpen=0.3,eyeBlinkLeft=1",
                ),
                io.Combo.Input("light", options=[KEEP, *editing.LIGHTS], default=KEEP),
                io.Boolean.Input("move", default=False, tooltip="whether x, y and size are used"),
                io.Float.Input("x", default=0.5, min=-1.0, max=2.0, step=0.01),
                io.Float.Input("y", default=0.5, min=-1.0, max=2.0, step=0.01),
                io.Float.Input("size", default=0.5, min=0.02, max=3.0, step=0.01),
                Head.Input("head", optional=True, tooltip="a head that is changed"),
            ],
            outputs=[Head.Output(display_name="head")],
        )

    @classmethod
    def execute(
        cls,
        yaw: float,
        pitch: float,
        roll: float,
        expression: str,
        expression_weight: float,
        weights: str,
        light: str,
        move: bool,
        x: float,
        y: float,
        size: float,
        head: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        """The head as `caphuman_jax` takes it."""
        asked = {**(head or {}), "yaw": yaw, "pitch": pitch, "roll": roll}
        if expression != KEEP:
            asked["expression"] = {expression: expression_weight}
        if weights.strip():
            asked["weights"] = {**asked.get("weights", {}), **editing.parse_expression(weights)}
        if light != KEEP:
            asked["light"] = light
        if move:
            asked["position"] = (x, y, size)
        return io.NodeOutput(asked)


class HeadFromPhoto(io.ComfyNode):
    """Parts of the head in another photo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        taken = [
            io.Boolean.Input(part, default=part in editing.DEFAULT_TAKE) for part in editing.PARTS
        ]
        return io.Schema(
            node_id="CapHumanHeadFromPhoto",
            display_name="CapHuman head from photo",
            category=CATEGORY,
            inputs=[Model.Input("model"), io.Image.Input("photo"), _face_input(), *taken],
            outputs=[Head.Output(display_name="head")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        photo: torch.Tensor,
        face: int,
        position: bool,
        pose: bool,
        expression: bool,
        lighting: bool,
    ) -> io.NodeOutput:
        """The head as `caphuman_jax` takes it."""
        chosen = zip(editing.PARTS, (position, pose, expression, lighting))
        take = [part for part, wanted in chosen if wanted]
        return io.NodeOutput({"photo": model.person(_photos(photo)[0], face), "take": take})


class Hints(io.ComfyNode):
    """What CapFace sees of a head, as images: usable with other ControlNets too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="CapHumanHints",
            display_name="CapHuman hints",
            category=CATEGORY,
            inputs=[
                Model.Input("model"),
                Person.Input("person"),
                *_side_inputs(),
                Head.Input("head", optional=True),
            ],
            outputs=[
                io.Image.Output(display_name="normals"),
                io.Image.Output(display_name="albedo"),
                io.Image.Output(display_name="render"),
                io.Mask.Output(display_name="mask"),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, person: Any, width: int, height: int, head: dict | None = None
    ) -> io.NodeOutput:
        """Render the head."""
        request = model.request(reference=person, head=head, prompt="", size=_size(width, height))
        hints = np.asarray(model.condition(request, warn=False).subjects[0].hints)
        packed = pack_hints(hints).astype(np.float32) / 255
        there = (hints[..., :3] != 0).any(axis=-1)
        packed = packed * there[..., None]
        images = [_image(packed[None, ..., i : i + 3]) for i in (0, 3, 6)]
        return io.NodeOutput(*images, _image(there[None].astype(np.float32)))


class Generate(io.ComfyNode):
    """Pictures of a person."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="CapHumanGenerate",
            display_name="CapHuman generate",
            category=CATEGORY,
            inputs=[
                Model.Input("model"),
                Person.Input("person"),
                io.String.Input("prompt", multiline=True, default="a photo of a person"),
                io.String.Input("negative_prompt", default=""),
                *_sampling_inputs(),
                *_side_inputs(),
                Head.Input("head", optional=True),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        person: Any,
        prompt: str,
        negative_prompt: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        control_scale: float,
        num_images: int,
        width: int,
        height: int,
        head: dict | None = None,
    ) -> io.NodeOutput:
        """Make the pictures."""
        result = model(
            reference=person,
            head=head,
            prompt=prompt,
            negative_prompt=negative_prompt,
            size=_size(width, height),
            **_sampling(seed, steps, guidance_scale, control_scale, num_images),
        )
        return io.NodeOutput(_image(result.images.astype(np.float32) / 255))


class Edit(io.ComfyNode):
    """A photo with its head changed, or another person's face in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What ComfyUI shows."""
        return io.Schema(
            node_id="CapHumanEdit",
            display_name="CapHuman edit",
            category=CATEGORY,
            inputs=[
                Model.Input("model"),
                io.Image.Input("photo"),
                _face_input(),
                io.String.Input("prompt", default="a photo of a person"),
                io.Float.Input("denoise", default=0.5, min=0.01, max=1.0, step=0.01),
                *_sampling_inputs(),
                Head.Input("head", optional=True),
                Person.Input("person", optional=True, tooltip="who is put into the photo"),
                io.Mask.Input("mask", optional=True, tooltip="what is made again"),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        photo: torch.Tensor,
        face: int,
        prompt: str,
        denoise: float,
        seed: int,
        steps: int,
        guidance_scale: float,
        control_scale: float,
        num_images: int,
        head: dict | None = None,
        person: Any = None,
        mask: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Make the edits."""
        painted = "auto" if mask is None else np.asarray(mask[0].cpu(), np.float32)
        result = model.edit(
            _photos(photo)[0],
            mask=painted,
            face=face,
            reference=person,
            head=head,
            prompt=prompt,
            denoise=denoise,
            **_sampling(seed, steps, guidance_scale, control_scale, num_images),
        )
        return io.NodeOutput(_image(result.images.astype(np.float32) / 255))


class CapHumanExtension(ComfyExtension):
    """All nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """What ComfyUI registers."""
        return [LoadModel, PersonFromPhotos, HeadFromNumbers, HeadFromPhoto, Hints, Generate, Edit]


def _face_input() -> Any:
    return io.Int.Input("face", default=0, min=0, max=1000, tooltip="0 is the largest face")


def _angle_input(name: str, limit: float) -> Any:
    slider = io.NumberDisplay.slider
    return io.Float.Input(
        name, default=0.0, min=-limit, max=limit, step=1.0, display_mode=slider, tooltip="degrees"
    )


def _side_inputs() -> list[Any]:
    sides = {"default": 0, "min": 0, "max": LARGEST_SIDE, "step": 8}
    return [io.Int.Input(name, tooltip="0: the model's", **sides) for name in ("width", "height")]


def _sampling_inputs() -> list[Any]:
    guidance, control = FIELDS["guidance_scale"], FIELDS["control_scale"]
    return [
        io.Int.Input(
            "seed", default=0, min=0, max=FIELDS["seed"].high, control_after_generate=True
        ),
        io.Int.Input("steps", default=0, min=0, max=1000, tooltip="0: the model's own number"),
        io.Float.Input(
            "guidance_scale", default=-1.0, min=-1.0, max=guidance.high, tooltip="-1: the model's"
        ),
        io.Float.Input("control_scale", default=1.0, min=control.low, max=control.high, step=0.05),
        io.Int.Input("num_images", default=1, min=1, max=64),
    ]


def _sampling(
    seed: int, steps: int, guidance_scale: float, control_scale: float, num_images: int
) -> dict[str, Any]:
    """The fields of `SamplingParams`; None is the model's own value."""
    return {
        "seed": seed,
        "steps": steps or None,
        "guidance_scale": None if guidance_scale < 0 else guidance_scale,
        "control_scale": control_scale,
        "num_images": num_images,
    }


def _size(width: int, height: int) -> tuple[int, int] | None:
    return (width or height, height or width) if width or height else None


def _photos(images: torch.Tensor) -> list[np.ndarray]:
    """IMAGE as photos (H, W, 3) uint8."""
    array = np.asarray(images.cpu(), np.float32)
    return list(np.rint(np.clip(array[..., :3], 0, 1) * 255).astype(np.uint8))


def _image(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
