"""Comparisons of runs with made-up scores."""

import argparse
import json

import numpy as np
import pytest
from scores_standin import write_run

from caphuman_jax.cli import compare as command
from caphuman_jax.errors import CapHumanError
from caphuman_jax.evaluation import comparison
from caphuman_jax.evaluation.numbers_in_words import listed, show, show_range
from caphuman_jax.evaluation.scored_run import read_run


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def compared(*folders, **options):
    return comparison.compare([read_run(folder) for folder in folders], **options)


def test_a_known_difference_is_found_and_said(tmp_path):
    a, b = (write_run(tmp_path / name, yaw=y) for name, y in (("A", 0.5), ("B", 0.0)))
    found = compared(a, b)
    by_name = {one.measure.name: one for one in found.differences}
    # The yaw's two measures have the same scores and are one test; the distance has none.
    assert list(by_name) == ["face-found", "identity", "yaw-median", "brightness"]
    yaw = by_name["yaw-median"]
    assert yaw.measure.title == "yaw error" and yaw.outcome == "better"
    np.testing.assert_allclose([yaw.difference, *yaw.interval], -0.5, atol=1e-9)
    assert (yaw.people, yaw.unpaired) == (12, (0, 0)) and yaw.pictures == 44
    assert yaw.p == 2 / 2**12 and yaw.adjusted == pytest.approx(4 * yaw.p)
    assert by_name["identity"].outcome == "no difference shown" and by_name["identity"].p == 1
    (said,) = comparison.verdict(found)
    assert said == (
        "B, compared with A: better at yaw error by 0.50° (95 % 0.50–0.50°, 12 people); no "
        "difference is shown in face found, identity and brightness."
    )
    assert comparison.headline(found, 1) == (
        "B, compared with A: better at 1 of 4 measures; no difference is shown in the other 3."
    )
    said = comparison.verdict(compared(b, a))[0]
    assert said.startswith("A, compared with B: worse at yaw error by 0.50°")


def test_many_measures_need_more_people(tmp_path):
    a, b = (write_run(tmp_path / n, people=6, yaw=y) for n, y in (("A", 0.5), ("B", 0.0)))
    found = compared(a, b)
    assert comparison.verdict(found) == [
        "No difference between B and A is shown in face found, identity, yaw error and brightness."
    ]
    assert "4 of the 4 tests have too few people (6 to 6)" in comparison.cautions(found)[0]
    assert comparison.headline(found, 1).endswith("no difference is shown in any of 4 measures.")
    alone = compared(a, b, measures=["yaw-mean"])
    assert alone.differences[0].outcome == "better" and not comparison.cautions(alone)[1:]


def test_pictures_are_paired_whatever_their_order(tmp_path):
    a, b = write_run(tmp_path / "A"), write_run(tmp_path / "B", yaw=0.3)
    lines = (b / "scores.jsonl").read_text().splitlines(True)
    before = compared(a, b).differences
    (b / "scores.jsonl").write_text("".join(lines[::-1]))
    after = compared(a, b).differences
    assert [one.pictures for one in before] == [one.pictures for one in after]
    np.testing.assert_allclose(
        [one.difference for one in before], [one.difference for one in after], atol=1e-12
    )


def changed(folder, **changes):
    """The run with entries of its lines replaced, by a function of the old value."""
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {name: change(line[name]) for name, change in changes.items()}
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"person": lambda p: p.replace("000", "zoe")},
            r"people differ: '000.jpg' only in A; 'zoe",
        ),
        ({"prompt": lambda p: p.replace("blue", "red")}, r"prompts differ: .*blue.* only in A"),
        ({"head": lambda h: h.replace("own", "random")}, r"heads differ: 'own' only in A"),
        ({"asked": lambda a: a | {"yaw": a["yaw"] + 2}}, r"heads differ: yaw -30.0 and -28.0"),
    ],
)
def test_runs_of_something_else_are_refused(tmp_path, change, said):
    write_run(tmp_path / "A"), changed(write_run(tmp_path / "B"), **change)
    with pytest.raises(CapHumanError, match=said) as refused:
        compared(tmp_path / "A", tmp_path / "B")
    assert "\n" not in str(refused.value)


def test_what_else_is_refused_or_left_out(tmp_path):
    a, b = write_run(tmp_path / "A"), write_run(tmp_path / "B", steps=10)
    lines = (b / "scores.jsonl").read_text().splitlines(True)
    (b / "scores.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(CapHumanError, match="1 and 0 of 011.jpg with .* to the end"):
        compared(a, b)
    (b / "scores.jsonl").write_text("".join(lines[:-1]) + "{")
    with pytest.raises(CapHumanError, match="line 48 is damaged"):
        compared(a, b)
    (b / "scores.jsonl").write_text("".join(lines))
    changed(b, seed=lambda seed: seed + 1, scores=lambda s: s | {"yaw-median": None})
    summary = json.loads((b / "summary.json").read_text())
    summary["measures"][1]["definition"] = "Something else."
    del summary["measures"][4]
    (b / "summary.json").write_text(json.dumps(summary))
    found = compared(a, b)
    assert found.left_out == {
        "identity": "it is defined differently in the runs",
        "yaw error, median": "it has no scores of single pictures",
        "brightness": "B does not have it",
        "Fréchet distance": "it has no scores of single pictures",
    }
    assert found.settings == {"steps": [20, 10]}
    assert found.differences[1].measure.name == "yaw-mean"
    assert "other seeds" in comparison.cautions(found)[0]
    with pytest.raises(CapHumanError, match="no measure 'hair'; its measures are face-found"):
        compared(a, b, measures=["hair"])
    (b / "summary.json").unlink()
    with pytest.raises(CapHumanError, match="lacks summary.json"):
        compared(a, b)


def test_the_command(tmp_path, capsys):
    a, b = write_run(tmp_path / "x" / "run", yaw=0.5), write_run(tmp_path / "y" / "run")
    out = tmp_path / "out"
    assert command.run(arguments(a, b, "--report", out)) == 0
    assert capsys.readouterr().out.startswith("y/run, compared with x/run: better at yaw error")
    document = json.loads((out / "comparison.json").read_text())
    assert document["tests"] == 4 and document["differences"][2]["outcome"] == "better"
    table = (out / "comparison.csv").read_text().splitlines()
    assert table[0].startswith("run,measure,title") and len(table) == 5
    page = (out / "comparison.html").read_text()
    assert (
        "y/run, compared with x/run: better at 1 of 4 measures;" in page
        and "../x/run/pictures/00000.png" in page
    )
    command.run(arguments(a, b, a, "--names", "one", "two", "three", "--measures", "identity"))
    assert len(capsys.readouterr().out.splitlines()) == 2
    for words, said in (
        ((a,), "at least two"),
        ((a, a), "given twice"),
        ((a, b, "--names", "x"), "1 names for 2"),
        ((a, b, "--report", out), "exists already"),
        ((a, tmp_path / "no"), "not a directory"),
    ):
        with pytest.raises(CapHumanError, match=said):
            command.run(arguments(*words))


def test_numbers_in_words():
    assert [
        show(v, u) for v, u in ((0.0421, "degrees"), (12.34, "degrees"), (0.98765, "share"))
    ] == [
        "0.04°",
        "12.3°",
        "98.8\u202f%",
    ]
    assert (show(float("nan"), empty="–"), show(-1e-9), show(1234.5)) == ("–", "0", "1234")
    assert show_range(-0.1, 0.25, "degrees") == "−0.10 to 0.25°"
    assert show_range(0.1, 0.25) == "0.100–0.250" and show_range(0.9996, 1) == "1.000–1.000"
    assert show_range(0.967, 0.996, "share") == "96.7–99.6\u202f%"
    assert listed(["a", "b", "c"]) == "a, b and c" and listed(["a, b", "c"]) == "a, b; and c"
