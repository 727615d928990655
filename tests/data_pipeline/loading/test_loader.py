"""Batches: what stands in the records, the same by tf.data and by Grain, on any number of hosts and
after any restart.
"""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from records_standin import write_standin

from caphuman_jax.errors import DataError, SettingError
from data_pipeline.loading.augment import AugmentConfig
from data_pipeline.loading.augment_sampling import (
    MIDDLE,
    MIRROR,
    AugmentPolicy,
    Drops,
    identity_source,
    sample_augmentations,
)
from data_pipeline.loading.loader import make_loader
from data_pipeline.loading.shuffle import records_of
from data_pipeline.records import tf_example
from data_pipeline.records.reader import RecordsFolder
from data_pipeline.records.schema import NAME, VERSION

TRAIN, TEST = 13, 5
DROP = Drops(0.3, 0.3, 0.6)
PICTURES = {
    "latents": "pictures",
    "hints": "pictures",
    "identity": "input",
    "text": False,
    "recognizer": "dlib",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records with everything that can be stored."""
    return write_standin(
        tmp_path_factory.mktemp("records") / "all",
        TRAIN,
        test=TEST,
        recognizer="facenet",
        hints=True,
        moments=(4, 4, 8),
        text=16,
        image_tokens=(5, 12),
    )


def take(count, *args, **kwargs):
    """Copies of the first `count` batches; the loader's state beside each."""
    loader = make_loader(*args, **kwargs)
    found = [(jax.tree.map(np.copy, next(loader)), loader.samples) for _ in range(count)]
    loader.close()
    return found


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other)):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("kind", [{}, PICTURES, {"identity": None, "one_pass": True}])
def test_tf_and_grain_give_the_same_bits(folder, kind):
    batches = [
        take(3, folder, batch=6, seed=3, drop=DROP, loader=loader, **kind)
        for loader in ("tf", "grain")
    ]
    for (one, samples), (other, same) in zip(*batches):
        assert samples == same
        assert_same(one, other)


def test_a_batch_holds_what_the_records_hold(folder):
    records, lots = RecordsFolder(folder), AugmentPolicy(MIRROR, 1.0, 0.8, DROP)
    lent = 0
    for step, (batch, samples) in enumerate(
        take(4, folder, batch=8, seed=3, drop=DROP, identity_swap_prob=0.8)
    ):
        epoch, index = records_of(np.arange(8 * step, 8 * step + 8), TRAIN, 3)
        drawn = sample_augmentations(lots, 3, epoch, index, 3)
        assert samples == 8 * step + 8
        np.testing.assert_array_equal(batch["index"], index)
        np.testing.assert_array_equal(batch["epoch"], epoch)
        np.testing.assert_array_equal(batch["weight"], 1)
        assert_same(
            {name: batch[name] for name in ("change", "without_text", "without_identity")},
            {name: drawn[name] for name in ("change", "without_text", "without_identity")},
        )
        for row in range(8):
            own = records.record("train", index[row])
            other = records.record(
                "train",
                identity_source(
                    index[row], drawn["swap_identity"][row], drawn["partner"][row], own["partners"]
                ),
            )
            lent += own["key"] != other["key"]
            assert own["person"] == other["person"]
            expected = {
                "region": records.pixels("region", own["region"]),
                "covered": own["covered"],
                "caption_ids": own["caption_ids"][drawn["caption"][row]],
                "text": own["text"][drawn["caption"][row]],
                "moments": own["moments"][int(drawn["change"]["mirror"][row])],
                "recognition": other["recognition/facenet"],
                "image_tokens": other["image_tokens"],
                "head": {
                    name: own[f"head/{name}"]
                    for name in ("expression", "rotation", "scale", "translation", "light")
                }
                | {
                    "identity": other["head/identity"],
                    "albedo": other["head/albedo"],
                    "size": np.full(2, 44, np.float32),
                },
            }
            assert_same(
                {name: jax.tree.map(lambda x: x[row], batch[name]) for name in expected}, expected
            )
    assert lent > 5


def test_pictures_and_their_lots(folder):
    records = RecordsFolder(folder)
    ((batch, _),) = take(1, folder, batch=8, seed=1, **PICTURES)
    assert set(batch) == {
        "index",
        "weight",
        "epoch",
        "change",
        "light",
        "without_text",
        "without_identity",
        "picture",
        "hints",
        "region",
        "covered",
        "identity_input",
        "recognition",
        "caption_ids",
    }
    drawn = sample_augmentations(
        AugmentPolicy(drop=Drops(0, 0, 0)), 1, batch["epoch"], batch["index"], 3
    )
    assert_same([batch["change"], batch["light"]], [drawn["change"], drawn["light"]])
    for row, index in enumerate(batch["index"]):
        own = records.record("train", index)
        for name, key in (("photo", "picture"), ("hints", "hints")):
            np.testing.assert_array_equal(batch[key][row], records.pixels(name, own[name]))
        other = records.record(
            "train",
            identity_source(
                index, drawn["swap_identity"][row], drawn["partner"][row], own["partners"]
            ),
        )
        np.testing.assert_array_equal(
            batch["identity_input"][row], records.pixels("identity_input", other["identity_input"])
        )
        np.testing.assert_array_equal(batch["recognition"][row], other["recognition/dlib"])


@pytest.mark.parametrize("loader", ["tf", "grain"])
def test_hosts_share_a_batch_and_a_run_goes_on_with_another_number_of_them(folder, loader):
    through = take(6, folder, batch=4, seed=5, drop=DROP, loader=loader)
    for hosts in (1, 2):
        on = [
            take(
                3,
                folder,
                batch=4,
                seed=5,
                drop=DROP,
                loader=loader,
                start=through[2][1],
                process_index=h,
                process_count=hosts,
            )
            for h in range(hosts)
        ]
        for step in range(3):
            joined = jax.tree.map(
                lambda *parts: np.concatenate(parts), *(host[step][0] for host in on)
            )
            assert_same(joined, through[3 + step][0])
            assert {host[step][1] for host in on} == {through[3 + step][1]}


@pytest.mark.parametrize("loader", ["tf", "grain"])
def test_one_pass_is_every_record_once_and_fills_up_with_weight_0(folder, loader):
    hosts = [
        list(
            make_loader(
                folder,
                "test",
                batch=4,
                one_pass=True,
                loader=loader,
                process_index=h,
                process_count=2,
            )
        )
        for h in range(2)
    ]
    index, weight = (
        np.concatenate([np.concatenate([host[step][name] for host in hosts]) for step in range(2)])
        for name in ("index", "weight")
    )
    assert [len(host) for host in hosts] == [2, 2]
    assert index.tolist() == [0, 1, 2, 3, 4, 4, 4, 4] and weight.tolist() == [1] * 5 + [0] * 3
    batch = hosts[0][0]
    assert (
        not batch["change"]["mirror"].any()
        and (batch["change"]["scale"] == 1).all()
        and not batch["without_text"].any()
    )
    loader = make_loader(folder, "test", batch=4, one_pass=True, loader=loader)
    assert [next(loader) and loader.samples for _ in range(2)] == [4, 5]
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("loader", ["tf", "grain"])
def test_a_damaged_record_stops_with_its_name(tmp_path, loader):
    def spoil(record, number):
        return record | (
            {"region": record["region"][:-30], "photo": b"no picture"} if number == 3 else {}
        )

    folder = write_standin(tmp_path / "x", 6, shards=2, change=spoil)
    batches = make_loader(folder, batch=2, one_pass=True, loader=loader, latents="pictures")
    next(batches)
    file = folder / NAME / VERSION / f"{NAME}-train.array_record-00001-of-00002"
    with pytest.raises(
        DataError, match=f"{file}, record 0 .number 3 of train.: photo is not an image"
    ):
        next(batches)


def test_loaders_that_are_not_there(folder, monkeypatch):
    find = importlib.util.find_spec
    with pytest.raises(SettingError, match="tf, grain or auto"):
        make_loader(folder, batch=2, loader="torch")
    with pytest.raises(SettingError, match="processes are Grain's"):
        make_loader(folder, batch=2, loader="tf", processes=2)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("tensorflow", "grain") else find(name),
    )
    for loader, line in (
        ("tf", "needs TensorFlow"),
        ("grain", "needs Grain"),
        ("auto", "needs Grain"),
    ):
        with pytest.raises(DataError, match=line + r".*pip install '.\[data\]'"):
            make_loader(folder, batch=2, loader=loader)


def test_what_records_do_not_hold_or_cannot_do(folder, tmp_path):
    bare = write_standin(tmp_path / "bare", 3)
    for asked in (
        {"latents": "moments"},
        {"hints": "pictures"},
        {"identity": "image_tokens"},
        {"text": True},
    ):
        with pytest.raises(DataError, match="holds no (moments|hints|image_tokens|text); prepare"):
            make_loader(bare, batch=2, **asked)
    for asked, line in (
        ({"latents": "sketch"}, "latents is None or moments or pictures"),
        ({"recognizer": "facenet"}, "recognizer is None or dlib or mobilefacenet"),
        ({"batch": 3, "process_count": 2}, "cannot be split evenly"),
        ({"identity_swap_prob": 2.0}, "identity_swap_prob is a share"),
    ):
        with pytest.raises(SettingError, match=line):
            make_loader(bare, **{"batch": 2, **asked})
    for changes in ({"augment": AugmentConfig()}, {"light": 1.2}):
        with pytest.raises(SettingError, match="moments of unchanged pictures"):
            make_loader(folder, batch=2, **changes)
    with pytest.raises(DataError, match="split 'dev'"):
        make_loader(folder, "dev", batch=2)
    make_loader(folder, batch=2, augment=MIDDLE).close()


def test_grain_needs_no_tensorflow(folder):
    program = """if True:
        import sys
        sys.modules["tensorflow"] = None  # as where it is not installed
        from data_pipeline.loading.loader import make_loader
        loader = make_loader(sys.argv[1], batch=2, loader=sys.argv[2])
        next(loader), loader.close()
        assert not [name for name in sys.modules if name.startswith("tensorflow.")]
    """
    root = Path(tf_example.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), "grain"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        'loader="tf"',
        'loader="grain"',
        pytest.param('loader="grain", processes=2', marks=pytest.mark.slow),
    ],
)
def test_a_script_that_never_closes_its_loader_ends(folder, tmp_path, options):
    """At once and without a complaint, whatever the loader's threads do at that moment."""
    done = run_script(
        tmp_path,
        f"""
        from data_pipeline.loading.loader import make_loader

        if __name__ == "__main__":
            loader = make_loader({str(folder)!r}, "train", batch=4, {options})
            batch = next(loader)
        """,
    )
    wrong = [word for word in ("Traceback", "ignored", "leaked") if word in done.stderr]
    assert done.returncode == 0 and not wrong, done.stderr


@pytest.mark.slow
def test_a_script_with_processes_and_no_guard_is_told_so(folder, tmp_path):
    done = run_script(
        tmp_path,
        f"""
        from data_pipeline.loading.loader import make_loader

        next(make_loader({str(folder)!r}, batch=2, loader="grain", processes=1))
        """,
    )
    assert done.returncode and 'under `if __name__ == "__main__":`' in done.stderr


def run_script(folder: Path, text: str) -> subprocess.CompletedProcess:
    """A program of its own, as a user starts it."""
    (folder / "script.py").write_text(textwrap.dedent(text))
    root = Path(tf_example.__file__).parents[2]
    return subprocess.run(
        [sys.executable, str(folder / "script.py")],
        env=os.environ
        | {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_grains_processes_give_the_same_batches(folder):
    one = take(4, folder, batch=4, loader="grain")
    for (a, _), (b, _) in zip(one, take(4, folder, batch=4, loader="grain", processes=2)):
        assert_same(a, b)


MEMORY = """if True:
    import json, os, sys
    from pathlib import Path
    import jax
    from data_pipeline.loading.loader import make_loader

    def used():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    batches, levels, read = make_loader(sys.argv[1], batch=64, loader=sys.argv[2], workers=2), [], 0
    for step in range(320):  # 20,480 records
        read += sum(leaf.nbytes for leaf in jax.tree.leaves(next(batches))) / 2**20
        if step % 40 == 39:
            levels.append(used())
    print(json.dumps([levels, read]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["tf", "grain"])
def test_memory_stays_as_it_is(tmp_path, loader):
    """In a process of its own: other tests' memory moves by itself."""
    records = write_standin(tmp_path / "many", 600, shards=3)
    root = Path(tf_example.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(records), loader],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    levels, read = json.loads(done.stdout.splitlines()[-1])
    # Buffers fill in the first half. Of what the second one reads, nothing stays: threads that take
    # turns in another order move an allocator's level by some MB.
    assert max(levels[4:]) - max(levels[:4]) < 0.05 * read / 2, (levels, read)
