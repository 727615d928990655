"""Jobs files: what is wrong with them is said with line and field; products; the order in which
pictures are made.
"""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from caphuman_jax.config import MINI
from caphuman_jax.errors import SettingError
from caphuman_jax.jobs import jobs
from caphuman_jax.jobs.order import Plan
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.pipeline.head_target import HeadTarget
from caphuman_jax.pipeline.request import SubjectRequest


@pytest.fixture(scope="module")
def checker():
    return Checker(MINI)


@pytest.fixture
def write(tmp_path):
    """Lines (dicts or text) to a jobs file beside two photos."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / name)

    def to_file(*lines, name="jobs.jsonl"):
        path = tmp_path / name
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines),
            encoding="utf-8",
        )
        return path

    return to_file


GOOD = {"reference": "a.png", "prompt": "a photo"}
WRONG = {
    "missing photo": ({"reference": "gone.png"}, "reference: {folder}/gone.png does not exist"),
    "no reference": ({"reference": None}, "reference: is missing"),
    "no prompt": ({"prompt": None}, "prompt: is missing"),
    "prompt": ({"prompt": 5}, "prompt: must be a text"),
    "field": ({"promt": "x"}, "promt: there is no such field; did you mean prompt?"),
    "yaw": ({"head": {"yaw": 200}}, "head.yaw: yaw must lie between -90 and 90"),
    "yaw text": ({"head": {"yaw": "left"}}, "head.yaw: "),
    "expression": (
        {"head": {"expression": "smirk=1"}},
        "head.expression: there is no expression called 'smirk'",
    ),
    "light": ({"head": {"light": "blue"}}, "head.light: there is no light called 'blue'"),
    "position": ({"head": {"position": [1, 2]}}, "head.position: position takes three numbers"),
    "head": ({"head": 3}, "head: must be a photo or an object"),
    "head field": ({"head": {"smirk": 1}}, "head.smirk: a head has no 'smirk'"),
    "head photo": ({"head": {"photo": "gone.png"}}, "head.photo: {folder}/gone.png does not exist"),
    "take": ({"head": {"take": "pose"}}, "head.take: says how a head photo is used"),
    "face": ({"face": -1}, "face: must be the number of a face"),
    "num_images": ({"num_images": 0}, "num_images: num_images must lie between 1"),
    "steps": ({"steps": "many"}, "steps: steps must be a number"),
    "sampler": ({"sampler": "magic"}, "sampler: there is no sampler 'magic'"),
    "size": ({"size": 65}, "size: size 65 cannot be made"),
    "gate": ({"gate": "no"}, "gate: there is no gate 'no'; choose one of hard, soft"),
    "boolean": (
        {"guidance_scale": True},
        "guidance_scale: guidance_scale must be a number, not True",
    ),
    "together": ({"sampler": "lcm", "eta": 0.5}, "eta belongs to the sampler ddim"),
    "combine": ({"combine": "average"}, "combine: must be mean or stack"),
    "control": (
        {"controls": [{"name": "x", "picture": "landmarks"}]},
        "controls: the model mini has no ControlNet named 'x'",
    ),
    "both": ({"people": [{"reference": "a.png"}]}, "reference: is for one person"),
    "id": ({"id": "a/b"}, "id: 'a/b' cannot be part of a file's name"),
    "product": ({"product": {"head": {}}}, "product: must be fields with a list"),
    "twice": ({"product": {"prompt": ["x"]}}, "product.prompt: the field stands"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_entries_are_named_with_line_and_field(case, write, checker, tmp_path):
    change, message = WRONG[case]
    bad = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    found = jobs.read_jobs(write("# a comment", "", GOOD, bad), checker, {})
    assert len(found.problems) == 1 and len(found.jobs) == 1
    assert found.problems[0].startswith(f"jobs.jsonl:4: {message.format(folder=tmp_path)}")


def test_lines_that_are_no_jobs_and_files_without_any(write, checker, tmp_path):
    found = jobs.read_jobs(write(GOOD, "{oops", [1], {**GOOD, "id": 1}), checker, {})
    assert [problem.split(": ")[0] for problem in found.problems] == [
        "jobs.jsonl:2",
        "jobs.jsonl:3",
        "jobs.jsonl:4",
    ]
    assert (
        "not JSON" in found.problems[0]
        and "must be an object" in found.problems[1]
        and "'1' is already used by jobs.jsonl:1" in found.problems[2]
    )
    with pytest.raises(SettingError, match="holds no jobs"):
        jobs.read_jobs(write("", "# nothing"), checker, {})
    with pytest.raises(SettingError, match="does not exist"):
        jobs.read_jobs(tmp_path / "gone.jsonl", checker, {})
    with pytest.raises(SettingError, match="NAME=VALUE"):
        jobs.parse_defaults(["steps"], checker)
    with pytest.raises(SettingError, match="no field 'stepz'; did you mean steps"):
        jobs.parse_defaults(["stepz=3"], checker)
    with pytest.raises(SettingError, match="--default steps=0: steps must lie between 1 and"):
        jobs.parse_defaults(["seed=3", "steps=0"], checker)


def test_a_job_as_the_pipeline_takes_it(write, checker, tmp_path):
    path = write(
        {
            **GOOD,
            "head": {"yaw": 20, "photo": "b.png"},
            "gate": "soft",
            "num_images": 2,
            "first_image": 3,
            "size": [64, 96],
        },
        {
            "id": "two",
            "prompt": "two people",
            "people": [
                {"reference": ["a.png", "b.png"]},
                {"reference": "b.png", "head": "a.png", "face": 1},
            ],
        },
    )
    one, two = jobs.read_jobs(path, checker, {"steps": 7, "num_images": 5}).jobs
    assert (
        one.id == "1"
        and one.request.params.steps == 7
        and one.request.params.gate == "soft"
        and one.request.params.size == (64, 96)
    )
    assert list(one.request.numbers) == [3, 4] and list(two.request.numbers) == [0, 1, 2, 3, 4]
    head = HeadTarget(photo=str(tmp_path / "b.png"), yaw=20)
    assert one.request.subjects == (SubjectRequest((str(tmp_path / "a.png"),), head),)
    first, second = two.request.subjects
    assert two.id == "two" and len(first.references) == 2 and second.face == 1


def test_products(write, checker, tmp_path):
    path = write(
        {
            "id": "p",
            "num_images": 3,
            "product": {
                "prompt": ["x", "y"],
                "head": [{}, {"yaw": 5}, "a.png"],
                "reference": ["a.png", ["a.png", "b.png"]],
            },
        }
    )
    found = jobs.read_jobs(path, checker, {})
    assert not found.problems and len(found.jobs) == 12
    assert [job.id for job in found.jobs[:3]] == ["p_0_0_0", "p_0_0_1", "p_0_1_0"]
    assert found.jobs[2].request.subjects[0].head == HeadTarget(yaw=5)
    assert len(found.jobs[1].request.subjects[0].references) == 2

    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "prompts.txt").write_text("a photo\n\na painting\n")
    (tmp_path / "lists" / "heads.jsonl").write_text(
        '{}\n{"id": "left", "yaw": -20}\n{"photo": "../b.png"}\n'
    )
    found = jobs.product_jobs(
        tmp_path,
        tmp_path / "lists" / "prompts.txt",
        tmp_path / "lists" / "heads.jsonl",
        checker,
        {"num_images": 2},
    )
    assert not found.problems and len(found.jobs) == 2 * 2 * 3 and Plan(found.jobs).total == 24
    assert [job.id for job in found.jobs[:4]] == ["a_p0_h0", "a_p0_left", "a_p0_h2", "a_p1_h0"]
    assert found.jobs[2].request.subjects[0].head.photo.endswith("lists/../b.png")
    # A sequence.json of `caphuman head` is a list of heads too.
    rows = [{"frame": i, "yaw": 5.0 * i, "expression": {"jawOpen": 0.1}} for i in range(3)]
    (tmp_path / "lists" / "sequence.json").write_text(json.dumps(rows))
    found = jobs.product_jobs(
        tmp_path,
        tmp_path / "lists" / "prompts.txt",
        tmp_path / "lists" / "sequence.json",
        checker,
        {},
    )
    assert not found.problems and len(found.jobs) == 2 * 2 * 3
    assert found.jobs[1].request.subjects[0].head == HeadTarget(
        yaw=5.0, expression={"jawOpen": 0.1}
    )
    (tmp_path / "lists" / "heads.jsonl").write_text('{"yaw": 500}\n')
    found = jobs.product_jobs(
        tmp_path,
        tmp_path / "lists" / "prompts.txt",
        tmp_path / "lists" / "heads.jsonl",
        checker,
        {},
    )
    assert found.problems[0].startswith(
        "a.png × prompts.txt:1 × heads.jsonl:1: head.yaw: yaw must lie"
    )


def test_a_head_json_is_a_list_of_one_head(write, checker, tmp_path):
    """What `caphuman head` writes, with entries that say whose head it is."""
    (tmp_path / "prompts.txt").write_text("a photo\n")
    file = tmp_path / "head.json"
    file.write_text(json.dumps({"model": "anny", "reference": {"name": "b.png"}, "yaw": 4.0}))
    made = lambda: jobs.product_jobs(
        tmp_path / "b.png", tmp_path / "prompts.txt", file, checker, {}
    )
    found = made()
    assert not found.problems and len(found.jobs) == 1
    assert found.jobs[0].request.subjects[0].head == HeadTarget(yaw=4.0)
    for text, words in (('{"yaw": 4', "head.json: "), ("4", "must be a JSON list")):
        file.write_text(text)
        with pytest.raises(SettingError, match=words):
            made()


def test_one_photo_is_a_list_of_one_person(write, checker, tmp_path):
    (tmp_path / "prompts.txt").write_text("a photo\na painting\n")
    found = jobs.product_jobs(tmp_path / "b.png", tmp_path / "prompts.txt", None, checker, {})
    assert not found.problems and [job.id for job in found.jobs] == ["b_p0", "b_p1"]
    assert found.jobs[0].request.subjects[0].references == (str(tmp_path / "b.png"),)


def test_fingerprint_is_of_what_is_asked(write, checker):
    fingerprint = lambda *lines, **defaults: (
        jobs.read_jobs(write(*lines), checker, defaults).fingerprint
    )
    same = fingerprint(GOOD)
    assert same == fingerprint("# said otherwise", dict(reversed(GOOD.items())) | {"id": 1})
    others = [
        fingerprint(GOOD, steps=3),
        fingerprint({**GOOD, "seed": 1}),
        fingerprint({**GOOD, "id": "2"}),
        fingerprint(GOOD, GOOD),
    ]
    assert len({same, *others}) == 5


def test_plan_puts_what_belongs_together_beside_each_other(write, checker):
    lines = [
        {
            **GOOD,
            "reference": f"{who}.png",
            "prompt": prompt,
            "head": {"yaw": yaw},
            "steps": steps,
            "num_images": 3,
        }
        for prompt in ("x", "y")
        for steps in (2, 4)
        for yaw in (0, 9)
        for who in "ab"
    ]
    found = jobs.read_jobs(write(*lines), checker, {}).jobs
    for size in (None, 1, 5, 100):
        plan = Plan(found, size)
        pictures = [picture for unit in range(plan.units) for picture in plan.unit(unit)]
        assert (
            plan.total
            == len(pictures)
            == len(set((job.id, number) for job, number in pictures))
            == 48
            and plan.groups == 2
        )
        asked = [
            (
                job.request.params.steps,
                job.request.subjects[0].references,
                id(job.request.subjects[0].head),
            )
            for job, _ in pictures
        ]
        for depth in (1, 2, 3):  # each program, person and head comes in one run
            runs = [
                a[:depth]
                for a, b in zip(asked, [None, *asked])
                if b is None or a[:depth] != b[:depth]
            ]
            assert len(runs) == len(set(runs)) == 2**depth


def test_counting_says_what_keeping_says_and_keeps_nothing(write, checker):
    """--check counts the same jobs, groups and problems, one after the other."""
    lines = [
        *({**GOOD, "seed": i, "head": {"yaw": i}, "num_images": 1 + i % 3} for i in range(40)),
        {**GOOD, "steps": 5, "negative_prompt": "x"},
        {**GOOD, "steps": 0},
        {**GOOD, "seed": -1},
        {**GOOD, "seed": "x", "steps": 5},
        {"product": {"prompt": ["a", "b"], "seed": [1, 2, 3]}, "reference": "b.png"},
        {**GOOD, "id": "x"},
        {**GOOD, "id": "X"},
        "not json",
    ]
    path = write(*lines)
    kept = jobs.read_jobs(path, checker, {"guidance_scale": 4})
    counted = jobs.tally(jobs.file_entries(path), checker, {"guidance_scale": 4}, path.name)
    plan = Plan(kept.jobs)
    assert counted.problems == kept.problems and len(kept.problems) == 5
    assert (counted.jobs, counted.pictures, counted.groups) == (
        len(kept.jobs),
        plan.total,
        plan.groups,
    )
    assert any("'X' is already used by jobs.jsonl:46" in problem for problem in kept.problems)


def test_a_job_that_is_counted_takes_little_memory(write):
    path = write(*({**GOOD, "id": f"job{i:06d}", "seed": i} for i in range(20_000)))
    checker = Checker(MINI)
    jobs.tally(jobs.file_entries(write(GOOD, name="one.jsonl")), checker, {}, "one.jsonl")
    tracemalloc.start()
    found = jobs.tally(jobs.file_entries(path), checker, {}, path.name)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.jobs == 20_000 and most / found.jobs < 200


def test_own_settings_of_a_job_are_checked_and_do_not_reach_the_next(checker, tmp_path, write):
    write(GOOD)
    params = []
    for own in ({"seed": 5, "num_images": 2}, {}, {"negative_prompt": "x"}, {"seed": 2**32}):
        wrong, request = checker({**GOOD, "steps": 7, **own}, tmp_path)
        params.append(request and request.params)
    assert [p and (p.seed, p.num_images, p.negative_prompt, p.steps) for p in params] == [
        (5, 2, "", 7),
        (0, 1, "", 7),
        (0, 1, "x", 7),
        None,
    ]
    assert "seed: seed must lie between 0 and" in wrong[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe{}\n", "cannot be read"),
        (b'{"prompt": "a"}\n\xe9\n', "cannot be read .line 2 is not UTF-8 text"),
        (b"\n\n# only a comment\n", "holds no jobs"),
    ],
)
def test_files_that_are_no_jobs(tmp_path, checker, data, message):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(SettingError, match=message):
        jobs.read_jobs(tmp_path / "x.jsonl", checker, {})


def test_a_product_of_wrong_jobs_is_not_checked_to_its_end(write, checker):
    """A line of a kB can ask for ten million jobs."""
    wrong = {"seed": ["x"] * 100, "smiel": [1] * 100, "steps": list(range(1, 101))}
    found = jobs.read_jobs(write({**GOOD, "product": wrong}), checker, {})
    assert any("smiel: there is no such field" in problem for problem in found.problems)
    assert found.problems[-1].endswith("is wrong job 10,000; the rest was not checked")
