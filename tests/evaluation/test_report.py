"""A report's folder while it is written: marked, for one run alone, and never of two runs."""

import pytest

from caphuman_jax.errors import CapHumanError
from caphuman_jax.evaluation import report


def test_a_finished_report_is_kept_and_an_unfinished_one_is_written_again(tmp_path):
    folder = tmp_path / "report"
    with report.unfinished(folder, overwrite=False):
        assert (folder / report.UNFINISHED).is_file()
        with pytest.raises(CapHumanError, match="another caphuman evaluate writes to"):
            with report.unfinished(folder, overwrite=True):
                raise AssertionError("two write at once")
        (folder / "report.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    with pytest.raises(CapHumanError, match="exists already; .*--overwrite"):
        report.check_folder(folder, overwrite=False)

    with pytest.raises(KeyboardInterrupt), report.unfinished(folder, overwrite=True):
        assert not (folder / "report.json").exists()  # the old one, beside new pictures
        (folder / "picture.png").touch()
        raise KeyboardInterrupt
    report.check_folder(folder, overwrite=False)
    with report.unfinished(folder, overwrite=False):
        pass
    assert [path.name for path in folder.iterdir()] == ["picture.png"]


def test_nothing_is_left_of_a_report_that_did_not_begin(tmp_path):
    with pytest.raises(ValueError), report.unfinished(tmp_path / "report", overwrite=False):
        raise ValueError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(CapHumanError, match="exists already"):
        report.check_folder(tmp_path / "file", overwrite=True)
