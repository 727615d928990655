import os
import signal
import subprocess
import sys
import threading

import pytest

from caphuman_jax.io import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_text(path, "grün")
    assert path.read_text(encoding="utf-8") == "grün"
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.json"]


def test_a_new_file_has_the_usual_permissions_and_a_replaced_one_keeps_its_own(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    atomic.write_bytes(tmp_path / "a", b"1")
    mode = lambda name: (tmp_path / name).stat().st_mode & 0o777
    assert mode("a") == mode("usual")
    (tmp_path / "a").chmod(0o600)
    atomic.write_bytes(tmp_path / "a", b"2")
    assert mode("a") == 0o600


@pytest.mark.parametrize("write", [atomic.file, atomic.folder])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, write, error):
    old = tmp_path / "out"
    if write is atomic.file:
        old.write_text("old")
    else:
        old.mkdir()
        (old / "old").touch()
    for path in (old, tmp_path / "new"):
        with pytest.raises(error), write(path) as part:
            (part if write is atomic.file else part / "half").write_text("half")
            raise error
    assert names(tmp_path) == ["out"]
    assert old.read_text() == "old" if write is atomic.file else names(old) == ["old"]


def test_a_killed_writer_leaves_the_old_file_and_one_hidden_leftover(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    program = (
        "import sys, time; from caphuman_jax.io import atomic\n"
        "with atomic.file(sys.argv[1]) as part:\n"
        "    part.write_text('half'); print('written', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "written"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_text() == "old"
    (left,) = atomic.leftovers(tmp_path)
    assert left.name.startswith(".a.") and names(tmp_path) == sorted([left.name, "a"])


def test_two_writers_of_one_file_or_folder_do_not_meet(tmp_path):
    with atomic.file(tmp_path / "a") as one, atomic.file(tmp_path / "a") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one"  # the outer block ended last
    with atomic.folder(tmp_path / "b") as one, atomic.folder(tmp_path / "b") as two:
        (one / "one").touch()
        (two / "two").touch()
    assert names(tmp_path / "b") == ["one"] and names(tmp_path) == ["a", "b"]


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("first", "second"):
        with atomic.folder(tmp_path / "deep" / "out") as part:
            (part / content).mkdir()
            (part / content / "file").write_text(content)
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == ["second"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    rename = os.rename

    def fail(source, target):
        if str(source).endswith(".part"):
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # as on other systems
    with pytest.raises(OSError, match="no"), atomic.folder(out) as part:
        (part / "new").touch()
    assert names(tmp_path) == ["out"] and names(out) == ["old"]


@pytest.mark.skipif(sys.platform != "linux", reason="two names are exchanged at once on Linux")
def test_a_folder_that_is_replaced_is_never_away(tmp_path, monkeypatch):
    """Whoever looks at any moment finds the old one or the new one."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def seen(*_):
        raise AssertionError("the folder is renamed away")

    monkeypatch.setattr(os, "rename", seen)
    with atomic.folder(out) as part:
        (part / "new").touch()
    assert names(out) == ["new"] and names(tmp_path) == ["out"]


def test_only_one_of_many_creates_a_file(tmp_path):
    start, results = threading.Barrier(8), []

    def create(i):
        start.wait()
        results.append((atomic.create(tmp_path / "a", b"%d" % i), i))

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [i for created, i in results if created]
    assert (tmp_path / "a").read_bytes() == b"%d" % winner and names(tmp_path) == ["a"]


def test_a_file_is_created_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "link", link)
    assert atomic.create(tmp_path / "a", b"1") and names(tmp_path) == ["a"]


@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("moment", ["flushed", "renamed"])
def test_a_file_that_is_removed_meanwhile_stops_the_folder(
    moment, old, exchanged, tmp_path, monkeypatch
):
    """What somebody else removes from the temporary folder never makes a folder that lacks it."""
    path = tmp_path / "out"
    if old:
        path.mkdir()
        (path / "old").touch()
    flush, rename = os.fsync, os.rename
    exchange = atomic._exchange

    def remove():
        for folder in tmp_path.glob(".out.*.part"):
            (folder / "a").unlink(missing_ok=True)

    def flushed(descriptor):
        flush(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/b") and moment == "flushed":
            remove()

    def renamed(*names):
        if moment == "renamed":
            remove()
        rename(*names)

    def exchanging(*names):
        if moment == "renamed":
            remove()
        return exchanged and exchange(*names)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(atomic, "_exchange", exchanging)
    with pytest.raises(FileNotFoundError), atomic.folder(path) as part:
        for name in ("a", "b"):
            (part / name).write_text(name)
    assert names(tmp_path) == (["out"] if old else [])
    assert not old or names(path) == ["old"]


def test_files_that_are_missing_are_named(tmp_path):
    (tmp_path / "a").touch()
    atomic.check_there(tmp_path, ["a"])
    with pytest.raises(FileNotFoundError, match="run the same command again.*b/c"):
        atomic.check_there(tmp_path, ["a", "b/c"])
