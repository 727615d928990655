"""Several people, several photos of one, identity files, ControlNets, guidance of their own, and
samplers, on the tiny model.
"""

import dataclasses

import jax
import numpy as np
import pytest

from caphuman_jax.config import ImageEncoderConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.face.landmark_indices import IBUG_68
from caphuman_jax.head.landmarks68 import draw_dots, landmarks_68
from caphuman_jax.models import registry
from caphuman_jax.person.person import combine_references, stack_people
from caphuman_jax.pipeline import loading
from caphuman_jax.pipeline.pipeline import Pipeline

PROMPT = "a photo of a person"


@pytest.fixture(scope="module")
def other(pipe, astronaut):
    """The astronaut mirrored, who is somebody else to the networks."""
    return pipe.person(np.ascontiguousarray(astronaut[:, ::-1]))


@pytest.fixture(scope="module")
def with_controlnets(pipe):
    """The tiny model and two ControlNets of random weights."""
    config = dataclasses.replace(
        pipe.config,
        controlnets=("dots", "depth"),
        controlnet=dataclasses.replace(pipe.config.capface, hint_channels=3),
    )
    rng = np.random.default_rng(0)
    shapes = registry.abstract(config, only=("controlnet_dots", "controlnet_depth"))
    params = {
        name: jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), tree)
        for name, (_, tree) in shapes.items()
    }
    graphs = pipe.graphs + tuple((name, graph) for name, (graph, _) in shapes.items())
    return Pipeline(config, pipe.params | params, graphs)


def close(a, b):
    """Pictures that differ by rounding alone."""
    return np.abs(a.images.astype(int) - b.images).max() <= 2


def test_two_people(pipe, person, other):
    two = pipe(people=[{"reference": person}, {"reference": other}], prompt=PROMPT)
    assert two.masks.shape == (1, 2, 16, 16) and len(two.subjects) == 2
    # Nobody's position was asked for: they stand side by side.
    middles = [
        np.argwhere(np.abs(look.hints[..., 3:6]).sum(-1))[:, 1].mean() for look in two.subjects
    ]
    assert 8 < middles[0] < 26 and 38 < middles[1] < 56
    places = [{"head": {"position": (0.25, 0.5, 0.31)}}, {"head": {"position": (0.75, 0.5, 0.31)}}]
    swapped = pipe(
        people=[{"reference": other, **places[1]}, {"reference": person, **places[0]}],
        prompt=PROMPT,
    )
    assert close(two, swapped)
    alone = pipe(reference=person, head=places[0]["head"], prompt=PROMPT)
    assert not close(two, alone)
    for wrong in (
        {"people": [{"reference": person}], "reference": person},
        {"people": [{"photo": person}]},
        {"people": [{}]},
        {},
    ):
        with pytest.raises(SettingError):
            pipe(prompt=PROMPT, **wrong)


def test_two_people_as_one_are_noticed(person, other, caplog):
    combine_references([person, person, person])
    assert not caplog.messages
    vector = np.roll(person.recognized[0], 7)  # a stranger, and the same face in another light
    stranger = dataclasses.replace(
        person, name="you.png", recognized=(vector, person.recognized[1])
    )
    assert person.recognized[0] @ vector < 0.2
    combine_references([person, stranger], "stack")
    (message,) = caplog.messages
    assert "astronaut_nasa.png and you.png do not look like the same person" in message
    combine_references([person, dataclasses.replace(stranger, recognized=None)])  # not known
    assert len(caplog.messages) == 1


def test_several_photos_of_one_person(pipe, person, other):
    base = pipe(reference=person, prompt=PROMPT)
    for how in ("mean", "stack"):  # the same photo twice says nothing new
        assert close(base, pipe(reference=[person, person], combine=how, prompt=PROMPT)), how
    average, stacked = (
        combine_references([person, other]),
        combine_references([person, other], "stack"),
    )
    assert (
        average.vectors.shape == (1, 192)
        and stacked.vectors.shape == (2, 192)
        and stacked.image_tokens.shape == (2, 49, 512)
    )
    assert np.linalg.norm(average.vectors) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        average.image_tokens[0], (person.image_tokens[0] + other.image_tokens[0]) / 2, rtol=1e-6
    )
    made = [
        pipe(reference=[person, other], combine=how, prompt=PROMPT) for how in ("mean", "stack")
    ]
    assert not close(made[0], base) and not close(made[0], made[1])
    assert (
        made[1].settings["people"][0]["reference"]["sha256"] == f"{person.sha256} + {other.sha256}"
    )
    shapes = {
        name: array.shape
        for name, array in stack_people(
            [person, stacked, combine_references([person, other, other], "stack")]
        ).items()
    }
    assert shapes == {"image_tokens": (3, 6, 49, 512), "recognition": (3, 6, 192)}


def test_controlnets(with_controlnets, pipe, person, astronaut):
    call = lambda *controls, **more: with_controlnets(
        reference=person, prompt=PROMPT, controls=controls, **more
    )
    dots = {"name": "dots", "picture": "landmarks"}
    base, dotted = pipe(reference=person, prompt=PROMPT), call(dots)
    assert not close(dotted, base) and close(call(dots | {"scale": 0}), base)
    assert not close(call(dots | {"scale": 0.5}), dotted)
    assert dotted.controls["dots"].shape == (64, 64, 3) and set(
        np.unique(dotted.controls["dots"])
    ) == {0, 255}
    both = call(dots, {"name": "depth", "picture": astronaut[100:, :300]}, size=(96, 64))
    assert both.controls["depth"].shape == (64, 96, 3) and both.images.shape == (1, 64, 96, 3)
    assert both.settings["controls"][0] == {"name": "dots", "scale": 1.0, "picture": "landmarks"}
    for wrong, told in (
        ({"name": "pose", "picture": "landmarks"}, "dots, depth"),
        ({"name": "dots"}, "a picture"),
        (dots | {"scale": -1}, "scale"),
    ):
        with pytest.raises(SettingError, match=told):
            call(wrong)
    with pytest.raises(SettingError, match="once"):
        call(dots, dots)


def test_loras(pipe, person, tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    width = pipe.config.unet.channels
    matrices = {"down": (2, width), "up": (width, 2)}
    layers = [
        f"lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_{part}"
        for part in ("q", "k", "v")
    ]
    save_file(
        {
            f"{layer}.lora_{role}.weight": rng.normal(0, 1, shape).astype(np.float32)
            for layer in layers
            for role, shape in matrices.items()
        },
        tmp_path / "style.safetensors",
    )
    call = lambda: pipe(reference=person, prompt=PROMPT)
    base = call()
    pipe.use_loras([(tmp_path / "style.safetensors", 0.8)])
    styled = call()
    assert np.abs(styled.images.astype(int) - base.images).max() > 0
    assert (
        styled.settings["loras"][0]["name"] == "style.safetensors"
        and styled.settings["loras"][0]["strength"] == 0.8
    )
    folder = tmp_path / "style"  # as diffusers and PEFT write them
    folder.mkdir()
    (tmp_path / "style.safetensors").rename(folder / "pytorch_lora_weights.safetensors")
    pipe.use_loras([(folder, 0.8)])
    in_folder = call()
    np.testing.assert_array_equal(in_folder.images, styled.images)
    assert in_folder.settings["loras"] == [styled.settings["loras"][0] | {"name": "style"}]
    pipe.use_loras([])
    again = call()
    np.testing.assert_array_equal(again.images, base.images)
    assert again.settings == base.settings
    with pytest.raises(ModelFolderError, match="gone"):
        pipe.use_loras([(tmp_path / "gone.safetensors", 1)])


def test_guidance_of_identity_and_head(pipe, person):
    call = lambda **more: pipe(reference=person, prompt=PROMPT, guidance_scale=3, **more)
    base = call()
    for more in (
        {"identity_guidance": 2},
        {"head_guidance": 2},
        {"identity_guidance": 0, "head_guidance": 0},
    ):
        assert not close(call(**more), base), more
    for more in ({"negative_prompt": "blurry"}, {"guidance_rescale": 1.0}):
        assert np.abs(call(**more).images.astype(int) - base.images).max() > 0, more
    # Nothing but the text, three times: the plain model, whatever CapFace says.
    plain = call(identity_guidance=0, head_guidance=0, control_scale=0)
    assert close(plain, call(control_scale=0)) and not close(
        plain, call(identity_guidance=0, head_guidance=0)
    )


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_karras", "euler_a", "unipc", "lcm"])
def test_samplers(pipe, person, sampler):
    made = pipe(reference=person, prompt=PROMPT, sampler=sampler, steps=3)
    assert (
        made.images.std() > 5 and made.settings["sampler"] == sampler and made.settings["eta"] == 0
    )
    assert not close(made, pipe(reference=person, prompt=PROMPT, steps=3))


def test_image_tokens_of_clip(tiny_params, pipe, astronaut):
    """A model that knows people by CLIP's image tokens and another recognizer's vector, in portrait
    and landscape.
    """
    identity = dataclasses.replace(pipe.config.identity, image_tokens="clip", image_width=32)
    config = dataclasses.replace(
        pipe.config, identity=identity, image_encoder=ImageEncoderConfig(56, 14, 32, 2, 2, 64)
    )
    networks = registry.init(config, jax.random.key(0), only=("identity", "image_encoder"))
    params = pipe.params | {name: tree for name, (_, tree) in networks.items()}
    clip = Pipeline(
        config,
        params,
        tuple((dict(pipe.graphs) | {name: graph for name, (graph, _) in networks.items()}).items()),
    )
    person = clip.person(astronaut)
    assert (
        person.image_tokens.shape == (1, 17, 32)
        and person.vectors.shape == (1, 192)
        and person.known_by == "mobilefacenet and clip"
    )
    assert clip(reference=person, prompt=PROMPT, size=(64, 96)).images.shape == (1, 96, 64, 3)

    # Hair and background are painted white before the encoder sees the face: they do not matter,
    # the face does.
    def tokens(change):
        picture = astronaut.copy()
        change(picture)
        return clip.person(picture).image_tokens

    def far(picture):
        picture[:30] = picture[:30, :, ::-1]

    def near(picture):
        picture[140:170, 200:240] = 90

    assert (
        np.abs(tokens(far) - person.image_tokens).max()
        < 0.2 * np.abs(tokens(near) - person.image_tokens).max()
    )
    facenet = dataclasses.replace(
        config, identity=dataclasses.replace(identity, recognizer="facenet")
    )
    with pytest.raises(ModelFolderError, match="--facenet"):
        Pipeline(facenet, params, clip.graphs).person(astronaut)


@pytest.mark.slow
def test_facenet_from_the_model_folder(pipe, tiny_params, tmp_path, astronaut):
    """The recognizer's weights lie in the folder of a model that knows people by FaceNet."""
    from caphuman_jax.weights import model_folder

    identity = dataclasses.replace(
        pipe.config.identity,
        image_tokens="clip",
        image_width=32,
        recognizer="facenet",
        recognition_width=512,
    )
    config = dataclasses.replace(
        pipe.config, identity=identity, image_encoder=ImageEncoderConfig(56, 14, 32, 2, 2, 64)
    )
    own = {
        name: tree
        for name, (_, tree) in registry.init(
            config, jax.random.key(0), only=("identity", "image_encoder")
        ).items()
    }
    rng = np.random.default_rng(0)

    def drawn(name):
        def draw(path, leaf):
            if len(leaf.shape) > 1:
                return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(
                    np.float32
                )
            return np.full(leaf.shape, path[-1].key in ("scale", "variance"), np.float32)

        return jax.tree_util.tree_map_with_path(
            draw, registry.abstract(config, only=(name,))[name][1]
        )

    facenet = drawn("facenet")
    model_folder.save_model(tmp_path / "model", config, {**tiny_params, **own, "facenet": facenet})
    loaded = loading.load(tmp_path / "model")
    person = loaded.person(astronaut)
    assert person.vectors.shape == (1, 512) and np.linalg.norm(person.vectors) == pytest.approx(
        1, abs=1e-4
    )
    assert loaded(reference=person, prompt=PROMPT).images.shape == (1, 64, 64, 3)

    # With face parsing and MTCNN in the folder these say what is face and how it is cut out; random
    # ones say something else.
    more = {name: drawn(name) for name in registry.OPTIONAL if name != "facenet"}
    model_folder.save_model(
        tmp_path / "more", config, {**tiny_params, **own, "facenet": facenet, **more}
    )
    other = loading.load(tmp_path / "more").person(astronaut)
    assert (other.image_tokens != person.image_tokens).any()


def test_landmark_dots(pipe, person, astronaut):
    assert (
        len(IBUG_68) == 68 == len(set(IBUG_68))
        and np.asarray(pipe.head_model.landmark_valid)[list(IBUG_68)].all()
    )
    points = landmarks_68(pipe.head_model, person.head, 64, 64)
    seen = person.landmarks[list(IBUG_68), :2]
    eyes = np.linalg.norm(seen[36] - seen[45])
    assert np.median(np.linalg.norm(points - seen, axis=1)) < 0.05 * eyes
    assert (np.diff(points[:17, 0]) > -1).all() and points[8, 1] == points[
        :17, 1
    ].max()  # the jaw runs from left to right over the chin
    dots = draw_dots(np.array([[256.0, 100.0], [1e9, 5.0], [np.nan, 3.0]]), 512, 512)
    assert (
        dots.shape == (512, 512, 3) and np.pi * 9 * 0.7 < (dots[..., 0] == 255).sum() < np.pi * 16
    )
    rows, columns = np.nonzero(dots[..., 0])
    assert abs(rows.mean() + 0.5 - 100) < 0.25 and abs(columns.mean() + 0.5 - 256) < 0.25
