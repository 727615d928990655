"""The noise schedule and the prediction, to and from a diffusers folder's scheduler_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion.schedule import BETA_SCHEDULES
from caphuman_jax.errors import ModelFolderError

_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
_NAMES = {
    "num_timesteps": "num_train_timesteps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "beta_schedule": "beta_schedule",
    "zero_terminal_snr": "rescale_betas_zero_snr",
}
"""Field of `DiffusionConfig` → its name in diffusers."""


def to_diffusers(config: DiffusionConfig) -> dict[str, Any]:
    """Entries of scheduler_config.json."""
    numbers = {theirs: getattr(config, ours) for ours, theirs in _NAMES.items()}
    return numbers | {"prediction_type": _PREDICTIONS[config.prediction_type]}


def from_diffusers(settings: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Fields of `DiffusionConfig` that a scheduler_config.json gives.

    Args:
        settings: its content.
        where: the folder, for messages.

    Raises:
        ModelFolderError: a schedule or prediction that cannot be used.
    """
    found = {ours: settings[theirs] for ours, theirs in _NAMES.items() if theirs in settings}
    kinds = {theirs: ours for ours, theirs in _PREDICTIONS.items()}
    kind, schedule = settings.get("prediction_type", "epsilon"), found.get("beta_schedule")
    if kind not in kinds:
        raise ModelFolderError(f"{where} predicts {kind}; known: {', '.join(kinds)}")
    if schedule not in (None, *BETA_SCHEDULES) or settings.get("trained_betas") is not None:
        raise ModelFolderError(
            f"{where} has a noise schedule of {schedule or 'its own numbers'}; known: "
            f"{', '.join(BETA_SCHEDULES)}"
        )
    return found | {"prediction_type": kinds[kind]}
