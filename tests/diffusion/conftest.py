"""Diffusers' scheduler with Stable Diffusion 1.5's numbers, the reference of this room."""

import pytest
from diffusers import DDIMScheduler


@pytest.fixture
def diffusers_schedule():
    def make(spacing="leading", **options):
        return DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing=spacing,
            **{"beta_schedule": "scaled_linear", **options},
        )

    return make
