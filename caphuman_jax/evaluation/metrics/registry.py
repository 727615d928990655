"""Every metric of `caphuman evaluate`, in the order of the report."""

from __future__ import annotations

from caphuman_jax.evaluation.metrics import (
    by_head,
    expression,
    face_found,
    identity,
    light,
    pose,
    position,
    prompt_following,
)

METRICS = (
    face_found.METRIC,
    identity.METRIC,
    pose.METRIC,
    expression.METRIC,
    light.METRIC,
    position.METRIC,
    prompt_following.METRIC,
    by_head.METRIC,
)
