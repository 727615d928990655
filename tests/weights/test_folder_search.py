"""`caphuman import --from`: files are known by what is in them, not by their names."""

import json
import shutil

import flame_standin
import numpy as np
import pytest
import torch
from weight_standins import TINY, face_state, state_dict

from caphuman_jax.cli.app import main
from caphuman_jax.errors import SettingError
from caphuman_jax.weights.folder_search import find
from caphuman_jax.weights.names import PREFIXES

MTCNN = {
    "pnet": {"conv4_1.weight": (2, 32, 1, 1), "conv4_2.weight": (4, 32, 1, 1)},
    "rnet": {"dense4.weight": (128, 576), "dense5_1.weight": (2, 128)},
    "onet": {"dense5.weight": (256, 1152), "dense6_1.weight": (2, 256)},
}


@pytest.fixture(scope="module")
def flame(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flame")
    flame_standin.write_folder(folder)
    return folder


@pytest.fixture
def downloads(tmp_path, caphuman, flame):
    """Everything under names that say nothing, in folders, with other files around them."""
    top = tmp_path / "downloads"
    (top / "one" / "two").mkdir(parents=True)
    shutil.copy(caphuman, top / "weights.bin")
    base = state_dict(PREFIXES["unet"], PREFIXES["vae"], PREFIXES["text"])
    torch.save({"state_dict": base}, top / "one" / "nice.ckpt")
    vae = {name.removeprefix(PREFIXES["vae"]): x for name, x in state_dict(PREFIXES["vae"]).items()}
    torch.save({"state_dict": vae}, top / "one" / "two" / "sharp.pt")
    torch.save(face_state("facenet"), top / "recognizer.pt")
    torch.save(face_state("face_parsing"), top / "parser.pth")
    torch.save({"E_flame": face_state("deca_encoder")}, top / "one" / "heads.tar")
    for stage, shapes in MTCNN.items():
        sd = {name: torch.zeros(shape) for name, shape in shapes.items()}
        torch.save(sd, top / f"{stage}.pt")
    torch.save({"x.lora_down.weight": torch.zeros(2, 2)}, top / "style.pt")
    torch.save({"fc.weight": torch.zeros(2, 2)}, top / "resnet.pth")
    (top / "me.jpg").write_bytes(b"not looked at")
    (top / "FLAME2020.zip").write_bytes(b"PK")
    (top / "w600k_r50.onnx").write_bytes(b"")
    shutil.copytree(flame, top / "flame")
    return top


def test_every_file_is_known_by_its_content(downloads):
    found = find(downloads, TINY)
    assert {name: x if name == "mtcnn" else x.name for name, x in found.taken.items()} == {
        "caphuman": "weights.bin",
        "base": "nice.ckpt",
        "vae": "sharp.pt",
        "facenet": "recognizer.pt",
        "face_parsing": "parser.pth",
        "deca": "heads.tar",
        "flame": "flame",
        "mtcnn": {stage: downloads / f"{stage}.pt" for stage in MTCNN},
    }
    report = "\n".join(found.lines())
    for said in (
        "style.pt is not part of the base: a LoRA",
        "not recognized: " + str(downloads / "resnet.pth") + " (its tensors are not known",
        "FLAME2020.zip (an archive; unpack it first)",
        "w600k_r50.onnx is not part of a model folder: CAPHUMAN_ARCFACE names",
        "with FLAME: " + str(downloads / "flame" / "head_template.obj"),
        "1 other files that are not weights by their names",
    ):
        assert said in report, report


def test_options_decide_before_the_folder_does(downloads):
    found = find(downloads, TINY, ["base", "deca", "flame"])
    assert not {"base", "deca", "flame"} & set(found.taken)
    assert any(
        "nice.ckpt, a Stable Diffusion 1 base, as its option" in note for note in found.notes
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("79999_iter.pth", b"<html>Too many requests</html>", "is a web page, not weights"),
        ("deca_model.tar", b"", "is empty"),
        ("caphuman.ckpt", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_a_published_name_with_another_content_is_an_error(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError, match=f"{name} should be .*{said}.* Download it again"):
        find(tmp_path, TINY)


def test_a_published_name_with_the_other_facenet_is_an_error(tmp_path):
    sd = face_state("facenet") | {"logits.weight": torch.zeros(10575, 1)}
    torch.save(sd, tmp_path / "20180402-114759-vggface2.pt")
    with pytest.raises(SettingError, match="should be FaceNet, but is .*CASIA-WebFace"):
        find(tmp_path, TINY)


def test_what_has_to_be_chosen_is_asked_for(tmp_path, caphuman):
    shutil.copy(caphuman, tmp_path / "a.ckpt")
    shutil.copy(caphuman, tmp_path / "b.ckpt")
    with pytest.raises(SettingError, match="several files could be CapHuman: .* --caphuman"):
        find(tmp_path, TINY)
    (tmp_path / "b.ckpt").rename(tmp_path / "caphuman.ckpt")
    assert find(tmp_path, TINY).taken["caphuman"].name == "caphuman.ckpt"


def test_other_models_and_folders_are_not_taken(tmp_path, caphuman):
    """SMPL has FLAME's arrays but another number of vertices; SDXL is no base; FLAME's companions
    elsewhere are no use."""
    names = ("v_template", "shapedirs", "J_regressor", "weights")
    np.savez(tmp_path / "body.npz", **{name: np.zeros((6890, 3)) for name in names})
    sd = state_dict(PREFIXES["unet"])
    sd["conditioner.embedders.0.x"] = torch.zeros(1)
    torch.save(sd, tmp_path / "xl.ckpt")
    shutil.copy(caphuman, tmp_path / "caphuman.ckpt")
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "head_template.obj").write_text(
        "v 0 0 0\nvt 0 0\nvt 1 0\nvt 1 1\nf 1/1 1/2 1/3\n"
    )
    found = find(tmp_path, TINY)
    assert list(found.taken) == ["caphuman"]
    report = "\n".join(found.lines())
    assert "body.npz is not FLAME: a body or hand model of 6,890 vertices" in report
    assert "xl.ckpt is not Stable Diffusion 1: SDXL" in report
    assert "head_template.obj, FLAME's template, without FLAME itself" in report
    with pytest.raises(SettingError, match="is not a folder"):
        find(tmp_path / "caphuman.ckpt", TINY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="none of its files are weights of CapHuman"):
        find(tmp_path / "empty", TINY)


def test_the_command(tmp_path, caphuman, tiny_config, capsys):
    (tmp_path / "downloads").mkdir()
    shutil.copy(caphuman, tmp_path / "downloads" / "caphuman.ckpt")
    command = ["import", str(tmp_path / "m"), "--from", str(tmp_path / "downloads")]
    command += ["--config", str(tiny_config), "--head", "anny"]
    assert main(command) == 2
    out, error = capsys.readouterr()
    assert f"--caphuman       {tmp_path}/downloads/caphuman.ckpt" in out
    assert "photos need" in error and "--facenet" in error
    assert main([*command, "--partial"]) == 0
    described = json.loads((tmp_path / "m" / "config.json").read_text())
    assert described["metadata"]["imported"]["networks"]["capface"] == "caphuman.ckpt"
