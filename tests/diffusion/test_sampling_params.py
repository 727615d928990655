"""The sampling numbers: declared once, checked, and the same from JSON and the command line."""

import argparse
import json

import numpy as np
import pytest

from caphuman_jax.cli.sampling_arguments import add_sampling_arguments, sampling_given
from caphuman_jax.config import MINI, SD15
from caphuman_jax.diffusion import samplers
from caphuman_jax.diffusion.sampling_field import image_size
from caphuman_jax.diffusion.sampling_params import FIELDS, SamplingParams
from caphuman_jax.errors import SettingError


def test_the_models_own_values_fill_what_is_not_given():
    own = SamplingParams.create(MINI)
    assert (own.steps, own.guidance_scale, own.guidance_rescale, own.eta) == (12, 5.0, 0.5, 1.0)
    assert (own.identity_guidance, own.head_guidance) == (1, 3)
    assert own.size == (256, 256) and own.spacing == "trailing" and own.num_images == 1
    # Another sampler than the model's own takes its standard noise.
    assert SamplingParams.create(MINI, sampler="unipc", steps=5).eta == 0
    assert SamplingParams.create(SD15, size="512x768").shape == (768, 512)
    assert own.resolve(MINI) == own


def test_whoever_turns_guidance_off_means_all_of_it():
    off = SamplingParams.create(MINI, guidance_scale=1)
    assert (off.identity_guidance, off.head_guidance) == (1, 1)
    assert off.program_inputs(MINI)[2]["branches"] == ("text",)
    asked = SamplingParams.create(MINI, guidance_scale=1, head_guidance=2)
    assert asked.head_guidance == 2
    # The original's guidance: CapFace in both halves.
    assert SamplingParams.create(SD15).program_inputs(SD15)[2]["branches"] == ("identity", "text")


def test_json_there_and_back():
    params = SamplingParams.create(
        MINI, seed=7, guidance_interval=[800, 200], size=64, negative_prompt="blurry", gate="soft"
    )
    again = SamplingParams.from_json(json.loads(json.dumps(params.to_json())))
    assert again == params and hash(again) == hash(params)
    assert params.guidance_interval == (200, 800)
    with pytest.raises(SettingError, match="no setting 'stepz'; did you mean steps"):
        SamplingParams.from_json({"stepz": 3})


def test_the_command_line_gives_the_same():
    parser = argparse.ArgumentParser()
    add_sampling_arguments(parser.add_argument_group("sampling"))
    given = sampling_given(
        parser.parse_args(
            "--seed 3 --steps 5 --guidance-scale 2.5 --guidance-interval 0 500 --size 64x96 "
            "--gate soft --num-images 2 --negative-prompt no --cache-interval 2".split()
        )
    )
    assert SamplingParams.create(MINI, **given) == SamplingParams.create(
        MINI,
        seed=3,
        steps=5,
        guidance_scale=2.5,
        guidance_interval=(0, 500),
        size=(64, 96),
        gate="soft",
        num_images=2,
        negative_prompt="no",
        cache_interval=2,
    )
    text = parser.format_help()
    for name, spec in FIELDS.items():
        assert (f"--{name.replace('_', '-')}" in text) == spec.flag
    assert all(name in FIELDS["sampler"].help for name in samplers.SAMPLERS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": True},
        {"steps": [3]},
        {"eta": 2},
        {"seed": 1.5},
        {"gate": "half"},
        {"spacing": "wide"},
        {"guidance_interval": 5},
        {"size": (64, 64, 64)},
        {"size": "64x"},
        {"steps": 0},
        {"identity_max_timestep": "late"},
    ],
)
def test_wrong_values_are_named(wrong):
    (name,) = wrong
    with pytest.raises(SettingError, match=name):
        SamplingParams(**wrong)


def test_limits_of_the_model():
    for wrong, message in (
        ({"steps": 1001}, "steps must lie between 1 and 1000"),
        ({"size": 60}, "multiples of 32 from 32"),
        ({"sampler": "euler_a", "eta": 0.5}, "eta belongs to the sampler ddim"),
    ):
        with pytest.raises(SettingError, match=message):
            SamplingParams.create(MINI, **wrong)
    assert image_size("320x256") == (320, 256)


def test_images_of_a_batch_share_all_but_seed_prompt_and_number():
    one = SamplingParams.create(MINI, seed=1, num_images=3, negative_prompt="x")
    two = SamplingParams.create(MINI, seed=2, first_image=4)
    assert one.shared == two.shared
    assert one.shared != SamplingParams.create(MINI, steps=4).shared


def test_what_the_program_takes():
    plain = SamplingParams.create(MINI, steps=4)
    numbers, coefficients, static = plain.program_inputs(MINI, {"pose": 0.5})
    assert coefficients.steps == 4 and static["size"] == (256, 256) and static["shallow"] == 0
    assert set(numbers) == {"strength", "identity_until", "weights", "controls", "rescale"}
    assert numbers["controls"]["pose"].dtype == np.float32
    saving = SamplingParams.create(MINI, steps=4, guidance_interval=(0, 500), cache_interval=2)
    numbers, _, static = saving.program_inputs(MINI)
    assert numbers["guided"].tolist() == [False, False, True, True] and static["shallow"] == 1
    assert numbers["recompute_mask"].shape == (4,)
