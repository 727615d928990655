"""Unusual machines and shells: commands work there, or say in one line what is wrong."""

import ast
import io
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.io.images import read_photo
from caphuman_jax.io.picture import PictureWriter

ROOT = Path(__file__).parents[2]
CAPHUMAN = f"{shlex.quote(sys.executable)} -m caphuman_jax.cli"
ODD = 'a b\'s "photo"\n\\ \udce9\udcff é.png'
"""Spaces, quotation marks, a newline, a backslash, bytes that are not UTF-8."""


def shell(command, **options):
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, errors="replace", **options
    )


@pytest.mark.parametrize("verb", app._VERBS)
def test_help_in_ascii(verb, monkeypatch):
    target = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(target, encoding="ascii"))
    with pytest.raises(SystemExit) as stop:
        app.main([verb, "--help"])
    sys.stdout.flush()
    assert stop.value.code == 0 and b"usage: caphuman" in target.getvalue()


@pytest.mark.parametrize(
    "streams, code, printed, errors",
    [
        (">&-", 0, "", ""),
        ("2>&-", 0, "usage", ""),
        ("<&- >&- 2>&-", 0, "", ""),
        ("fly >&-", 2, "", "invalid choice"),
        ("fly 2>&-", 2, "", ""),
    ],
)
def test_closed_streams(streams, code, printed, errors):
    arguments = "" if "fly" in streams else "--help"
    found = shell(f"{CAPHUMAN} {arguments} {streams}", env={**os.environ, "TERM": "dumb"})
    assert found.returncode == code and found.stdout.startswith(printed)
    assert errors in found.stderr and found.stderr.count("\n") <= 1


def test_a_file_is_never_opened_as_a_closed_stream(tmp_path):
    """Libraries write to descriptor 2, whatever it is."""
    code = (
        "from caphuman_jax.cli import failures; import os; failures.plain_output(); "
        f"file = open({str(tmp_path / 'picture')!r}, 'w'); assert file.fileno() > 2; "
        "os.write(1, b'x'); os.write(2, b'x')"
    )
    found = shell(f"{sys.executable} -c {shlex.quote(code)} <&- >&- 2>&-", cwd=ROOT)
    assert found.returncode == 0 and not (tmp_path / "picture").read_text()


def one_line(arguments, capsys) -> str:
    assert app.main([*map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("verb", app._NEEDS_POSIX)
def test_verbs_that_windows_cannot_run_say_so_at_once(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert f"caphuman {verb} needs Linux or macOS" in one_line([verb, "--help"], capsys)


def test_only_those_verbs_need_posix():
    """No other package imports a module of POSIX when it is imported."""
    found = set()
    for path in [*ROOT.glob("caphuman_jax/**/*.py"), *ROOT.glob("data_pipeline/**/*.py")]:
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import) and {"fcntl", "resource", "pwd", "termios"} & {
                alias.name for alias in statement.names
            }:
                found.add(str(path.relative_to(ROOT)))
    assert found == {
        "caphuman_jax/jobs/run_folder.py",
        "caphuman_jax/evaluation/whole.py",
        "caphuman_jax/studio/sessions.py",
    }


def test_no_loopback_interface(monkeypatch, tmp_path, astronaut_file, capsys):
    def refused(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refused)
    pytest.importorskip("apache_beam")
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(astronaut_file, photos)
    assert "ip link set lo up" in one_line(
        ["prepare", "--photos", photos, "--out", tmp_path / "records"], capsys
    )
    assert not (tmp_path / "records").exists()


def test_odd_names(tiny_folder, astronaut_file, tmp_path, capsys):
    """Of a photo and of the folder for the pictures; a photo that is not there is named in a line.
    The slow test below makes a picture with such names.
    """
    photo, out = tmp_path / ODD, tmp_path / ODD.removesuffix(".png")
    shutil.copy(astronaut_file, photo)
    path = PictureWriter(out).write_sheet(read_photo(photo))
    assert Path(path).parent == out and read_photo(path).shape == (512, 512, 3)
    words = ["generate", "--model", tiny_folder, "--prompt", "x", "--out", out, "--reference"]
    assert "does not exist" in one_line([*words, tmp_path / "gone\udcff\n.png"], capsys)


@pytest.mark.parametrize(
    "side, said", [(20_000, "too large"), (2**31 - 1, "too large"), (8, "only 8x8 pixels")]
)
def test_sides_of_photos(side, said, tiny_folder, tmp_path, capsys):
    """Judged by the header: the pixels of 20,000 x 20,000 would take 1.2 GB."""
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(photo)
    data = photo.read_bytes()
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + data[24:29]
    photo.write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])
    command = ["generate", "--model", tiny_folder, "--prompt", "x", "--reference", photo]
    assert said in one_line([*command, "--out", tmp_path / "out"], capsys)


@pytest.mark.parametrize(
    "number, said", [(0, "between 1 and 10000, not 0"), (10_001, "between 1 and 10000, not 10001")]
)
def test_numbers_of_pictures(number, said, tiny_folder, astronaut_file, tmp_path, capsys):
    command = ["generate", "--model", tiny_folder, "--prompt", "x", "--reference", astronaut_file]
    assert said in one_line([*command, "--num-images", number, "--out", tmp_path], capsys)


@pytest.mark.slow
def test_all_at_once(tiny_folder, astronaut_file, tmp_path):
    """No home, no cache, ASCII, a dumb terminal, a strict umask, no docstrings, odd names, no
    standard output, and no network, not even a loopback interface.
    """
    alone = "unshare -rn" if shell("unshare -rn true").returncode == 0 else ""
    photo = tmp_path / ODD
    shutil.copy(astronaut_file, photo)
    gone = {"HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"}
    plain = {name: value for name, value in os.environ.items() if name not in gone}
    plain |= {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    plain |= {"CAPHUMAN_CACHE": "/dev/null/cache", "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    python = shlex.quote(sys.executable)
    found = shell(
        f"umask 077; {alone} {python} -OO -m caphuman_jax.cli generate --model {tiny_folder} "
        f'--prompt "é × 写" --reference "$PHOTO" --out "$PHOTO.out" >&-',
        env=plain | {"PHOTO": os.fspath(photo)},
    )
    assert found.returncode == 0 and found.stderr.isascii(), found.stderr
    (picture,) = Path(f"{photo}.out").glob("picture_*.png")
    assert stat.S_IMODE(picture.stat().st_mode) == 0o600
    for platform in ("nonsense", "cuda"):
        if platform == "cuda" and any(Path("/dev").glob("nvidia[0-9]*")):
            continue
        wrong = shell(f"{CAPHUMAN} doctor", env={**os.environ, "JAX_PLATFORMS": platform})
        assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
        assert f"JAX_PLATFORMS={platform}" in wrong.stderr
    if alone:
        command = f'prepare --photos "$PHOTO" --out {tmp_path / "records"}'
        found = shell(
            f"{alone} {CAPHUMAN} {command}", env={**os.environ, "PHOTO": str(tmp_path)}, timeout=300
        )
        assert found.returncode == 2 and "ip link set lo up" in found.stderr
