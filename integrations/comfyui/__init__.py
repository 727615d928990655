"""CapHuman on JAX as nodes for ComfyUI: copy or link this folder into ComfyUI's `custom_nodes`."""

from .nodes import CapHumanExtension


async def comfy_entrypoint() -> CapHumanExtension:
    """What ComfyUI calls when it starts."""
    return CapHumanExtension()
