"""What a model lacks is said before anything is written, and by `caphuman check` afterwards."""

import json
import shutil

import flame_standin
import pytest
import torch
from weight_standins import TINY, face_state, import_model, state_dict

from caphuman_jax.cli.app import main
from caphuman_jax.weights import model_folder


@pytest.fixture
def no_flame(monkeypatch):
    monkeypatch.delenv("CAPHUMAN_FLAME", raising=False)
    monkeypatch.delenv("CAPHUMAN_ARCFACE", raising=False)
    monkeypatch.setenv("INSIGHTFACE_HOME", "/nowhere")


@pytest.fixture(scope="module")
def flame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flame")
    flame_standin.write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def config_512(tiny_config, tmp_path_factory):
    """TINY with a projector that takes FaceNet's 512 numbers."""
    config = json.loads(tiny_config.read_text())
    config["identity"]["recognition_width"] = 512
    path = tmp_path_factory.mktemp("config") / "tiny512.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def caphuman_512(tmp_path_factory):
    sd = state_dict()
    sd["id_linear.weight"] = torch.zeros(16, 512)
    path = tmp_path_factory.mktemp("caphuman512") / "caphuman.ckpt"
    torch.save({"state_dict": sd}, path)
    return path


@pytest.fixture(scope="module")
def facenet(tmp_path_factory):
    path = tmp_path_factory.mktemp("facenet") / "20180402-114759-vggface2.pt"
    torch.save(face_state("facenet"), path)
    return path


def test_an_import_names_all_that_photos_need(
    tmp_path, caphuman_512, config_512, facenet, flame, no_flame, capsys
):
    """One error names everything and nothing is written; --partial makes the folder all the same;
    with the two options there is nothing to say but what differs from training."""
    common = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman_512)]
    common += ["--config", str(config_512)]
    assert main(common) == 2
    error = capsys.readouterr().err
    assert "photos need FaceNet: --facenet 20180402-114759-vggface2.pt" in error
    assert "heads need FLAME's files: --flame DIR, or --head anny" in error
    assert "Nothing was written" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())

    assert main([*common, "--partial"]) == 0
    assert "missing: photos need FaceNet" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "m")]) == 2
    out = capsys.readouterr().out
    assert "photos          no" in out and "missing: photos need FaceNet: --facenet" in out

    assert main([*common, "--overwrite", "--facenet", str(facenet), "--flame", str(flame)]) == 0
    out = capsys.readouterr().out
    assert "missing: without DECA's encoder" in out and "need" not in out.split("missing:")[0]
    assert "before use, set CAPHUMAN_FLAME to the folder with generic_model.pkl" in out
    assert f"({flame.resolve()})" in out
    assert model_folder.read_config(tmp_path / "m").head == "flame"


@pytest.mark.parametrize("named, said", [("the same", False), ("another", True)])
def test_flame_that_the_environment_names_is_not_asked_for(
    tmp_path, caphuman_512, config_512, facenet, flame, named, said, monkeypatch, capsys
):
    monkeypatch.setenv("CAPHUMAN_FLAME", str(flame if named == "the same" else tmp_path / "other"))
    command = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman_512)]
    command += ["--config", str(config_512), "--facenet", str(facenet), "--flame", str(flame)]
    assert main(command) == 0
    assert ("before use, set CAPHUMAN_FLAME" in capsys.readouterr().out) is said


def test_the_shipped_head_is_said_aloud(tmp_path, caphuman, tiny_config, no_flame, capsys):
    command = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman), "--partial"]
    assert main([*command, "--config", str(tiny_config), "--head", "anny"]) == 0
    assert (
        "without the head model flame, hints come from the head model anny, which these weights "
        "never saw in training: --head flame" in capsys.readouterr().out
    )


@pytest.mark.parametrize("head", [[], ["--head", "flame"]])
def test_flame_is_always_checked(tmp_path, caphuman, tiny_config, head, no_flame, capsys):
    command = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman), "--partial", *head]
    assert main([*command, "--config", str(tiny_config), "--flame", "/nonexistent"]) == 2
    assert "/nonexistent" in capsys.readouterr().err
    assert main([*command, "--head", "anny", "--flame", "/nonexistent"]) == 2
    assert "--flame is for --head flame" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recognizer", "needed"),
    [
        ("facenet", "photos need a projector for the 512 numbers of facenet; this one takes 8"),
        ("arcface/w600k_r50", "photos need the ArcFace network w600k_r50: get insightface's pack"),
    ],
)
def test_recognizers_that_do_not_fit(
    tmp_path, caphuman, tiny_config, recognizer, needed, no_flame, capsys
):
    config = json.loads(tiny_config.read_text())
    config["identity"]["recognizer"] = recognizer
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman), "--head", "anny"]
    assert main([*command, "--config", str(tmp_path / "config.json")]) == 2
    assert needed in capsys.readouterr().err


def test_the_other_facenet_is_refused(tmp_path, caphuman, tiny_config, no_flame, capsys):
    torch.save(
        face_state("facenet") | {"logits.weight": torch.zeros(10575, 1)}, tmp_path / "casia.pt"
    )
    command = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman), "--partial"]
    command += ["--config", str(tiny_config), "--facenet", str(tmp_path / "casia.pt")]
    assert main(command) == 2
    assert "trained on CASIA-WebFace" in capsys.readouterr().err


def test_check_of_damaged_folders(tmp_path, caphuman, capsys):
    """A file that is gone, cut off or changed is named; a change that leaves the size as it is
    shows with --verify."""
    import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    file = tmp_path / "m" / "vae.safetensors"
    whole = file.read_bytes()

    def check(*options):
        code = main(["check", str(tmp_path / "m"), "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    assert check("--verify")[1]["checksums"] == "equal"
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert check()[1]["problems"] == []
    code, found = check("--verify")
    assert code == 2 and "vae.safetensors is damaged or was changed" in found["problems"][0]
    file.write_bytes(whole[:-4])
    assert "vae.safetensors has" in check()[1]["problems"][0]
    file.unlink()
    code, found = check()
    assert code == 2 and "vae.safetensors is missing" in found["problems"][0]
    assert not found["photos"] and not found["identity_files"]


def test_check_of_the_shipped_model_and_of_none(tiny_folder, tmp_path, capsys):
    assert main(["check"]) == 0
    assert "256² is best; sides are multiples of 32" in capsys.readouterr().out
    assert main(["check", str(tiny_folder), "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lacks"] == [] and found["photos"] and found["size"]["multiple_of"] == 8
    shutil.copytree(tiny_folder, tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    assert main(["check", str(tmp_path / "m")]) == 2
    assert "is not a model folder" in capsys.readouterr().err
