"""Suites as files: those that are shipped, and what is said of wrong ones."""

import pytest

from caphuman_jax.errors import CapHumanError
from caphuman_jax.evaluation import prompt_suite
from caphuman_jax.evaluation.suites import kinds, suite_file
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.pipeline.head_target import HeadTarget


@pytest.mark.parametrize("name", suite_file.names())
def test_shipped_suites_ask_for_what_a_head_can_do(name):
    suite, model = suite_file.load(name), load_head()
    assert suite.title and suite.about and suite.kind in ("requests", *kinds.KINDS)
    for head in set(suite.heads) - {"random"}:  # which begins with the person's own
        request = prompt_suite.Request(0, 0, head, "", 0)
        HeadTarget.of(prompt_suite.head_numbers(model, None, request)).check(model)


def test_what_the_shipped_suites_ask_for():
    heads = suite_file.load("heads").heads
    assert len(heads) == len(set(heads)) == 7 * 5 + 4 + 12 + 6
    assert "yaw=-45,pitch=25" in heads and "light=bottom" in heads
    large = suite_file.load("humaniphc")
    assert len(set(large.prompts)) == 35 and len(set(large.heads)) == 10
    requests = large.requests(large.people, 0)
    assert len(requests) == 105_000 and len({r.seed for r in requests}) > 104_000
    assert len({(r.person, r.head, r.prompt) for r in requests}) == 35_000


@pytest.mark.parametrize(
    "text, message",
    [
        ("kind = 'movies'", "kind is one of requests"),
        ("heds = ['own']", "did you mean heads"),
        ("heads = 'own'", "heads is a list"),
        ("prompts = []", "prompts is a list"),
        ("seeds = 0", "seeds is a whole number from 1"),
        ("plan = 'some'", "plan is one of dealt, every"),
        ("kind = 'edit'", "changes is missing"),
        ("grids = [{yaw = 3}]", "grids is a list of tables"),
        ("sampling = {stepps = 3}", "sampling.stepps"),
        ("about = 3", "about has the wrong type"),
        ("title =", "cannot be read"),
    ],
)
def test_wrong_suites_are_explained(tmp_path, text, message):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(CapHumanError, match=message) as problem:
        suite_file.load(str(tmp_path / "own.toml"))
    assert "own.toml" in str(problem.value)


def test_an_own_suite(tmp_path):
    (tmp_path / "own.toml").write_text(
        "plan = 'every'\nseeds = 2\nprompts = ['a', 'b']\n[[grids]]\nyaw = [-5, 5]\n"
        "[sampling]\nsteps = 3\n"
    )
    suite = suite_file.load(str(tmp_path / "own.toml"))
    assert suite.name == suite.title == "own" and suite.sampling == {"steps": 3}
    requests = suite.requests(2, 0)
    assert [r.number for r in requests] == list(range(16))
    assert [(r.person, r.head, r.prompt) for r in requests[:5]] == [
        (0, "yaw=-5", "a"),
        (0, "yaw=-5", "a"),
        (0, "yaw=-5", "b"),
        (0, "yaw=-5", "b"),
        (0, "yaw=5", "a"),
    ]


@pytest.mark.parametrize(
    "entries, people",
    [
        ("per_person = 1_000_000_000", 1),
        ("plan = 'every'\nseeds = 1_000_000_000", 1),
        ("kind = 'people'\ncounts = [2, 3]\nper_person = 100_000", 51),
    ],
)
def test_pictures_are_counted_before_any_is_asked_for(tmp_path, entries, people):
    (tmp_path / "own.toml").write_text(entries)
    suite = suite_file.load(str(tmp_path / "own.toml"))
    with pytest.raises(CapHumanError, match="at most 10,000,000"):
        suite.check_size(people)
    for name in suite_file.names():
        suite_file.load(name).check_size(1500)
    with pytest.raises(CapHumanError, match="at most 10,000,000"):
        suite_file.load("humaniphc").check_size(1500, 200)
