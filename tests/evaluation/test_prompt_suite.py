"""What is asked: balance, repeatability, heads in words."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import CapHumanError, HeadError
from caphuman_jax.evaluation import prompt_suite
from caphuman_jax.evaluation.suites import suite_file
from caphuman_jax.head.editing import position_of
from caphuman_jax.head.head import Head
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.head.pose import rotation_matrix
from caphuman_jax.head.spherical_harmonics import WHITE


@pytest.fixture(scope="module")
def model():
    return load_head()


@pytest.fixture(scope="module")
def own(model):
    expression = (
        jnp.zeros(len(model.expression_names), jnp.float32)
        .at[model.expression_names.index("jawOpen")]
        .set(0.2)
    )
    return Head(
        jnp.zeros(len(model.identity_basis), jnp.float32),
        expression,
        rotation_matrix(5.0, -3.0, 2.0),
        jnp.float32(60),
        jnp.full(2, 128.0, jnp.float32),
        jnp.full(2, 256.0, jnp.float32),
        jnp.asarray(WHITE),
        jnp.full((len(model.mean), 3), 0.5, "float32"),
        jnp.float32(0),
    )


def request(head, number=0):
    return prompt_suite.Request(number, 0, head, "a photo of a person", 0)


def test_every_head_comes_equally_often_and_prompts_too():
    requests = suite_file.load("requests").requests(36, 0)
    heads = Counter(r.head for r in requests)
    assert heads.pop("own") == 36
    assert heads["random"] == 4 * 14 and all(
        count == 14 for head, count in heads.items() if head != "random"
    )  # 36 × 7 = 14 × 18
    for person in range(36):
        mine = [r for r in requests if r.person == person]
        assert len(mine) == 8 and mine[0].head == "own"
        assert set(Counter(r.prompt for r in mine).values()) == {2}
    assert [r.number for r in requests] == list(range(len(requests)))
    assert len({r.seed for r in requests}) == len(requests)


def test_plan_is_a_function_of_the_seed():
    for name in ("requests", "heads"):
        suite = suite_file.load(name)
        assert suite.requests(5, 3) == suite.requests(5, 3) != suite.requests(5, 4)


def test_few_heads_and_prompts():
    assert [r.head for r in prompt_suite.deal_requests(2, ("own",), ("p",), 3)] == ["own"] * 6
    assert [r.head for r in prompt_suite.deal_requests(1, ("yaw=10",), ("p",), 2)] == ["yaw=10"] * 2
    assert len(prompt_suite.deal_requests(1, ("own", "random"), ("p", "q"), 1)) == 1


def test_heads_in_words(model, own):
    assert prompt_suite.requested_head(model, own, request("own")) is own
    turned = prompt_suite.requested_head(model, own, request("yaw=-20, smile=0.8"))
    np.testing.assert_allclose(turned.angles, [-20, -3, 2], atol=1e-3)
    names = model.expression_names
    assert turned.expression[names.index("mouthSmileLeft")] == pytest.approx(0.72)
    assert turned.expression[names.index("jawOpen")] == pytest.approx(0.048)
    assert np.abs(prompt_suite.requested_head(model, own, request("neutral")).expression).max() == 0
    lit = prompt_suite.requested_head(model, own, request("light=left"))
    assert lit.light[1].mean() < -0.1
    np.testing.assert_allclose(lit.rotation, own.rotation)


def test_random_heads_stay_in_range_and_repeat(model, own):
    angles = np.stack(
        [prompt_suite.requested_head(model, own, request("random", n)).angles for n in range(40)]
    )
    assert np.all(np.abs(angles) <= np.array([20, 15, 20]) + 1e-3)
    assert np.all(np.ptp(angles, axis=0) > [20, 15, 20])
    heads = [prompt_suite.requested_head(model, own, request("random", n)) for n in range(10)]
    places = np.stack([position_of(model, h) for h in heads]) - position_of(model, own)
    assert np.all(np.abs(places[:, :2]) <= 0.0601) and np.all(np.ptp(places, axis=0) > 0.02)
    assert (
        np.ptp([h.expression[model.expression_names.index("mouthSmileLeft")] for h in heads]) > 0.3
    )
    again = prompt_suite.requested_head(model, own, request("random", 7))
    np.testing.assert_array_equal(again.angles, angles[7])


@pytest.mark.parametrize("bad", ["yaw=left", "yaw=400", "grin=1", "light=lamp", "smile=2"])
def test_heads_that_cannot_be_asked_for(model, own, bad):
    with pytest.raises(CapHumanError):
        prompt_suite.check_heads(model, own, ("own", bad))


def test_unknown_expression_is_named(model, own):
    with pytest.raises(HeadError, match="smlie"):
        prompt_suite.check_heads(model, own, ("smlie=1",))


def test_what_prompts_ask_for():
    assert prompt_suite.asked_background("a photo of a person, dark blue background") == "blue"
    assert prompt_suite.asked_background("a photo of a person") is None
    assert prompt_suite.asks_without_color("a black and white portrait of a person")
    assert not prompt_suite.asks_without_color("a photo of a person, black background")
    prompts = suite_file.load("requests").prompts
    assert sum(prompt_suite.asks_without_color(p) for p in prompts) == 1
