"""Keys of LoRA files → layers of our networks, and the settings that give a layer's alpha."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.io import json_reader
from caphuman_jax.weights.names import PREFIXES, modules

KEYS = [
    re.compile(
        r"(?P<module>.+?)(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<role>down|up|mid|A|B)(?:\.[^.]+)?\.weight"
    ),
    re.compile(r"(?P<module>.+)\.(?P<role>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))"),
    re.compile(r"(?P<module>.+?)(?:[._]lora)?\.(?P<role>alpha|dora_scale)"),
    re.compile(
        r"(?P<module>.+?)\.(?P<role>lora_magnitude_vector)(?:\.(?!weight)[^.]+)?(?:\.weight)?"
    ),
]
"""A key is a module's name and what the array is of it."""
STARTS = [
    ("lora_unet_", "unet"),
    ("lora_te_", "text"),
    ("lora_te1_", "text"),
    ("unet.", "unet"),
    ("text_encoder.", "text"),
    (PREFIXES["unet"], "unet"),
    ("diffusion_model.", "unet"),
    ("text_model.", "text"),
    ("encoder.layers.", "text"),
    ("", "unet"),
]
_REFUSED = {
    r".*\.on_input": "an (IA)³",
    r".*\.(oft_.*|boft_.*)": "an OFT",
    r".*\.(diff|diff_b)": "a full difference of weights",
    r".*\.[wb]_norm": "a file that changes norms",
    r".*\.[ab][12]\.weight": "a GLoRA",
    r"(lora_te2_|text_encoder_2\.).*": "a LoRA for SDXL",
}


PEFT = "base_model.model."
"""What PEFT puts before every name."""


def refuse(key: str, name: str) -> None:
    """Raise ModelFolderError for a key of a kind of file that cannot be used."""
    for pattern, kind in _REFUSED.items():
        if re.fullmatch(pattern, key):
            raise ModelFolderError(
                f"{name} is {kind} ({key}), which cannot be used here; LoRA, LoCon, LoHa, LoKr "
                f"and DoRA for Stable Diffusion 1 can"
            )


def lookup(network: str, cfg: ModelConfig) -> dict[str, str]:
    """{any form of a layer's name, joined by "_": our path of its kernel}."""
    names = {}
    for *theirs, ours in modules(network, cfg):
        if not ours.split(".")[-1].startswith(("norm", "tokens", "positions")):
            names |= {name.replace(".", "_"): f"{ours}.kernel" for name in theirs}
    if network == "unet":  # diffusers' attention processors say to_out
        return names | {
            name.removesuffix("_0"): path
            for name, path in names.items()
            if name.endswith("_to_out_0")
        }
    # Early diffusers named the text encoder's projections as the UNet's; late transformers leave
    # out the first part of every name.
    names |= {re.sub(r"_(q|k|v|out)_proj$", r"_to_\1", name): path for name, path in names.items()}
    return names | {name.removeprefix("text_model_"): path for name, path in names.items()}


def place(module: str, lookups: dict[str, dict[str, str]]) -> tuple[str, str] | None:
    """A module's name → (network, our path)."""
    module = module.removeprefix(PEFT)
    start, network = next((start, network) for start, network in STARTS if module.startswith(start))
    rest = module if start == "encoder.layers." else module.removeprefix(start)
    path = lookups[network].get(rest.replace(".processor.", ".").replace(".", "_"))
    return (network, path) if path else None


class Settings:
    """The settings of PEFT: those that diffusers writes into a file's metadata, or a PEFT folder's
    adapter_config.json. They hold alpha, where there are no `.alpha` keys.
    """

    def __init__(
        self, name: str, metadata: Mapping[str, str], adapter: Mapping[str, Any] | None = None
    ):
        self.adapter = adapter is not None
        if adapter is not None:
            kind = adapter.get("peft_type", "LORA")
            if kind not in ("LORA", "LOHA", "LOKR"):
                raise ModelFolderError(
                    f"{name} is a PEFT adapter of type {kind}, which cannot be used here; LORA, "
                    f"LOHA and LOKR can"
                )
            self.entries, self.name = dict(adapter), name
            return
        try:
            self.entries = json_reader.parse(metadata.get("lora_adapter_metadata") or "{}")
            if not isinstance(self.entries, dict):
                raise TypeError("it is not an object")
        except (TypeError, ValueError) as error:
            raise ModelFolderError(
                f"{name}: lora_adapter_metadata in its header cannot be read: {error}"
            ) from error
        self.name = name

    def scale(self, network: str, module: str, rank: int | None) -> float:
        """alpha / rank of a module; 1 where nothing is said."""
        module = module.removeprefix(PEFT)
        prefix = {"unet": "unet.", "text": "text_encoder."}[network]
        entries = {
            key.removeprefix(prefix): value
            for key, value in self.entries.items()
            if key.startswith(prefix) or "." not in key
        }
        patterns = entries.get("alpha_pattern") or {}
        matching = [
            alpha
            for key, alpha in dict(patterns).items()
            if f".{module}".endswith("." + key.removeprefix("^"))
        ]
        alpha = matching[0] if matching else entries.get("lora_alpha", entries.get("alpha"))
        if self.adapter and rank is None:
            rank = entries.get("r")
        if alpha is None or rank is None:
            return 1.0
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise ModelFolderError(
                f"{self.name}: alpha in its header is {alpha!r}, which is not a number"
            )
        return alpha / (math.sqrt(rank) if entries.get("use_rslora") else rank)
