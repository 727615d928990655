"""`caphuman prepare`: from the command line to the settings."""

import argparse
from pathlib import Path

import pytest

from caphuman_jax.cli import prepare
from caphuman_jax.cli.app import main
from data_pipeline.prepare import splits
from data_pipeline.prepare.settings import PrepareSettings, QualityThresholds

ASSETS = Path(__file__).parents[2] / "caphuman_jax" / "assets"


def test_every_setting_has_an_option_and_the_defaults_are_the_settings_own(monkeypatch):
    def settings_of(*arguments):
        parser, found = argparse.ArgumentParser(), {}
        prepare.add_arguments(parser)
        monkeypatch.setattr(
            prepare,
            "prepare",
            lambda photos, out, settings, **options: found.update(
                options, settings=settings, photos=photos, out=out
            ),
        )
        prepare.run(parser.parse_args(["--photos", "p", "--out", "o", *arguments]))
        return found

    assert settings_of()["settings"] == PrepareSettings()
    found = settings_of(
        *"--size 256 --margin 1.2 --quality 90 --captions 2 --hints pictures --same-person "
        "recognition --hold-out 8 --seed 3 --faces largest "
        "--min-face 37 --min-sharpness 0.1 --max-yaw 30 --max-pitch 20 --max-roll 10 "
        "--min-presence 0.5 --min-confidence 0.4 --max-outside 0.1 "
        "--min-covered 0.4 --drawings drop --drawing-score 1 --duplicates keep --duplicate-bits 3 "
        "--person folder --captions-from c.json "
        "--model mini --encode moments --runner FlinkRunner --workers 3 --limit 9 --format "
        "tfrecord --keep-work -- --parallelism=4".split()
    )
    thresholds = QualityThresholds(
        "largest", 37, 0.1, 30, 20, 10, 0.5, 0.4, 0.1, 0.4, "drop", 1, "keep", 3
    )
    assert found["settings"] == PrepareSettings(
        256, 1.2, 90, thresholds, 2, None, "pictures", "mini", ("moments",), "recognition", 8, 3
    )
    assert found["options"] == {"person": "folder", "captions": "c.json"} and found[
        "beam_options"
    ] == ["--parallelism=4"]
    assert [found[name] for name in ("runner", "workers", "limit", "file_format", "keep_work")] == [
        "FlinkRunner",
        3,
        9,
        "tfrecord",
        True,
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--photos", "/nowhere"], "/nowhere does not exist or is not a source of photos"),
        (["--photos", ".", "--size", "13"], "size must be"),
        (["--photos", ".", "--out", "p://x"], "no installed package writes to p://"),
        (["--photos", ".", "--limit", "0"], "whole number from 1 on, not '0'"),
        (["--photos", ".", "photos"], "unexpected argument 'photos'"),
        (["--photos", ".", "--encode", "moments"], "come from a model"),
        (["--photos", ".", "--", "--nonsense=1"], "'--nonsense=1' after -- is not an option"),
        (["--photos", ".", "--", "--direct_num_workers=x"], "invalid int value: 'x'"),
        (["--photos", ".", "--runner", "NopeRunner"], "--runner NopeRunner cannot be used"),
        (["--photos", ".", "--runner", "FlinkRunner", "--workers", "2"], "--workers is for this"),
        (["--photos", ".", "--runner", "DataflowRunner", "--", "--project=p"], "after --: Missing"),
    ],
)
def test_bad_input_is_reported_in_one_line(arguments, message, tmp_path, capsys):
    try:
        code = main(["prepare", "--out", str(tmp_path / "out"), *arguments])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err
    assert (
        code == 2 and message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
    )


def test_photos_that_are_refused_leave_no_work_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(splits, "ALL_PAIRS", 0)
    arguments = ["prepare", "--photos", str(ASSETS), "--out", str(tmp_path), "--size", "64"]
    assert main([*arguments, "--same-person", "recognition"]) == 2
    assert "compares every photo with every other" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
