"""The last net under the command: one line, an exit code, no traceback."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from caphuman_jax.cli import app, failures, generate, sample
from caphuman_jax.errors import HUNG, INTERRUPTED, RESTART, PhotoError, SettingError
from caphuman_jax.io import checks
from caphuman_jax.launch.outcome import OWN_REASONS

COMMAND = [sys.executable, "-m", "caphuman_jax.cli"]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (PhotoError("no\nface"), 2, "error: no face"),
        (PhotoError("\x1b[2J\u202egpj"), 2, r"error: \x1b[2J\u202egpj"),
        (OSError(errno.ENOSPC, "No space left on device", "out/a.png"), 2, "out/a.png: no space"),
        (RuntimeError("RESOURCE_EXHAUSTED: x: No space left on device"), 2, "no space is left"),
        (FileNotFoundError(2, "No such file or directory", "x"), 2, "x: No such file"),
        (MemoryError(), 2, "--batch"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), 2, "--memory low"),
        (RuntimeError("Unable to initialize backend 'x'"), 2, "JAX cannot use"),
        (RecursionError(), 2, "nested"),
        (TypeError("inside"), 70, "unexpected TypeError: inside; add --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(error, code, said, monkeypatch, capsys):
    def run(args):
        raise error

    monkeypatch.setattr(generate, "run", run)
    assert app.main(["generate"]) == code
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told and "Traceback" not in told
    if code != 130:
        with pytest.raises(type(error)):
            app.main(["generate", "--debug"])


@pytest.mark.parametrize(
    "verb, setting",
    [
        ("sample", "--memory low"),
        ("train", "training.batch_size"),
        ("prepare", "--workers"),
        ("head", "--size"),
        ("identity", "JAX_PLATFORMS=cpu"),
    ],
)
def test_a_full_memory_names_a_setting_that_the_verb_has(verb, setting):
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes")
    told = failures.explain(error, verb)
    assert setting in told and ("--batch" in told) == (verb == "sample")


@pytest.mark.parametrize("given", ["--light=--", "--num-images=--", "--out=--", "--yaw=--"])
def test_two_dashes_are_no_value(given, capsys):
    """argparse of Python 3.11 makes an empty list of them, which no option expects."""
    arguments = ["generate", "--reference", "me.png", "--prompt", "a photo", given]
    with pytest.raises(SystemExit) as left:
        app.run(arguments)
    assert left.value.code == 2
    assert f"error: {given}: -- is not a value" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["generate", "--reference", ""], "--reference: must not be empty"),
        (["generate", "--reference", "a.png", " "], "--reference: must not be empty"),
        (["generate", "--out="], "--out: must not be empty"),
        (["check", ""], "MODEL: must not be empty"),
        (["prepare", "--photos", "", "--out", "o"], "--photos: must not be empty"),
        (["serve", "--host", ""], "--host: must not be empty"),
        (["serve", "--max-upload", "-1"], "from 1 on, not '-1'"),
        (["train", "--workdir", "w", "--minutes", "nan"], "above 0, not 'nan'"),
        (["train", "--workdir", "w", "--minutes=-inf"], "above 0, not '-inf'"),
        (["train", "--workdir", "w", "--profile=-1"], "from 0 on, not '-1'"),
    ],
)
def test_values_that_mean_nothing(arguments, said, capsys):
    """An empty path would be the current directory, and an empty address all interfaces."""
    with pytest.raises(SystemExit) as left:
        app.run(arguments)
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--every", "2"], "--every needs --sequence"),
        (["--missing", "error"], "--missing needs --sequence"),
        (["--sequence", "photos", "--smooth", "nan"], "--smooth must be at least 0, not nan"),
    ],
)
def test_options_of_sequences(arguments, said, capsys):
    assert app.main(["head", "--reference", "me.png", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_whole_numbers_have_all_their_digits():
    with pytest.raises(SettingError, match="between 0 and 4294967295, not 4294967296"):
        checks.whole("seed", 2**32, 0, 2**32 - 1)


@pytest.mark.parametrize("port", [-1, 65_536, 70_000])
def test_ports_out_of_range(port):
    """Resolvers may take the last 16 bits: 70000 would be 4464."""
    server = pytest.importorskip("caphuman_jax.studio.server")
    with pytest.raises(SettingError, match=f"between 0 and 65535, not {port}"):
        server._listen("127.0.0.1", port)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_in_a_finalizer_is_not_lost(number, code, monkeypatch, capsys):
    """Python drops what a finalizer raises, as it does in callbacks of its garbage collector."""

    class Finalized:
        def __del__(self):
            signal.raise_signal(number)

    def run(args):
        Finalized()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(generate, "run", run)
    hook = sys.unraisablehook
    assert app.main(["generate"]) == code and sys.unraisablehook is hook
    assert "ignored" not in capsys.readouterr().err


def test_a_full_disk_in_a_thread_is_one_line(monkeypatch, capsys):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "events")

    def run(args):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    monkeypatch.setattr(generate, "run", run)
    assert app.main(["generate"]) == 0
    assert capsys.readouterr().err == (
        "caphuman: warning: events: no space is left; make room, and run the same command again\n"
    )


def test_what_follows_from_a_reported_error_is_not_shown(monkeypatch):
    """Orbax closes its loop at the first write that fails; the others still report to it."""
    import asyncio

    import tensorstore

    def run(args):
        promise, future = tensorstore.Promise.new()
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(_result(future))
        loop.run_until_complete(asyncio.sleep(0))
        waiting._log_destroy_pending = False
        loop.close()
        thread = threading.Thread(target=promise.set_result, args=(1,))
        thread.start()
        thread.join()

    async def _result(future):
        return await future

    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: shown.append(failure.exc_value))
    monkeypatch.setattr(generate, "run", run)
    assert app.main(["generate"]) == 0 and not shown
    assert app.main(["generate", "--debug"]) == 0 and "closed" in str(shown[0])


def test_output_of_any_characters(monkeypatch):
    target = io.BytesIO()
    stream = io.TextIOWrapper(target, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    failures.plain_output()
    print("512 × 512 … é 写 \udcff", flush=True)
    assert target.getvalue() == b"512 x 512 ... e \\u5199 \\udcff\n"


def run(arguments, **options):
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [*options.pop("python", COMMAND), *arguments],
        capture_output="stdout" not in options,
        env=environment,
        timeout=300,
        **options,
    )


def test_a_plain_terminal_and_a_full_output():
    plain = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    found = run(["import", "--help"], env=plain)
    assert found.returncode == 0 and found.stdout.isascii() and not found.stderr
    with open("/dev/full", "w") as full:
        found = run(["--help"], stdout=full, stderr=subprocess.PIPE)
    lines = found.stderr.decode().strip().splitlines()
    said = ("cannot be written", "no space is left")  # when the buffer is flushed, or filled
    assert found.returncode == 2 and len(lines) == 1 and any(s in lines[0] for s in said)


def test_without_docstrings():
    python = [sys.executable, "-OO", "-m", "caphuman_jax.cli"]
    for verb in ("prepare", "head"):
        found = run([verb, "--help"], python=python)
        assert found.returncode == 0, found.stderr


def test_onnxruntime_keeps_and_sends_nothing(tmp_path):
    """Its telemetry would keep a device id and queued events in the user's cache."""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    code = (
        "import caphuman_jax.face.onnx_runner, onnxruntime, os; onnxruntime.SessionOptions(); "
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    found = run([], python=[sys.executable, "-c", code], env=home, cwd=Path(__file__).parents[2])
    assert found.stdout.strip() == b"1", found.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_documented_exit_codes_are_those_of_the_code():
    """134 is JAX's own: its process ends with SIGABRT when another host is lost."""
    rows = (
        (Path(__file__).parents[2] / "docs" / "reliability.md")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    codes = {int(found[1]) for row in rows if (found := re.match(r"\| (\d+) \|", row))}
    ours = {app._FAILED, failures.UNEXPECTED, sample.SOME_FAILED, RESTART, INTERRUPTED, HUNG}
    assert codes == {0, 1, *ours, 128 + signal.SIGABRT}
    assert {*OWN_REASONS, RESTART} <= codes and HUNG == 128 + signal.SIGALRM
