"""Files of textual-inversion embeddings, as the programs write them that people use."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from caphuman_jax.config import ModelConfig, TextConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.weights import embeddings

CONFIG = ModelConfig(text=TextConfig(width=8))
VECTORS = np.arange(24, dtype=np.float32).reshape(3, 8) / 7


def webui(path):
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.nn.Parameter(torch.tensor(VECTORS))},
            "name": "mystyle",
            "step": 100,
            "sd_checkpoint": "0123abcd",
            "sd_checkpoint_name": "some model",
        },
        path,
    )


def webui_safetensors(path):
    save_file({"emb_params": VECTORS}, path)


def diffusers(path):
    torch.save({"<mystyle>": torch.tensor(VECTORS[0])}, path)


def diffusers_safetensors(path):
    save_file({"<mystyle>": VECTORS}, path)


def bundled(path):
    save_file(
        {
            "bundle_emb.mystyle.string_to_param.*": VECTORS,
            "bundle_emb.other.string_to_param.*": VECTORS[:1],
        },
        path,
    )


@pytest.mark.parametrize(
    "write, name, words",
    [
        (webui, "a.pt", {"mystyle": VECTORS}),
        (webui_safetensors, "EasyNegative.safetensors", {"EasyNegative": VECTORS}),
        (diffusers, "learned_embeds.bin", {"<mystyle>": VECTORS[:1]}),
        (diffusers_safetensors, "b.safetensors", {"<mystyle>": VECTORS}),
        (bundled, "lora.safetensors", {"mystyle": VECTORS, "other": VECTORS[:1]}),
    ],
)
def test_files_of_other_programs(tmp_path, write, name, words):
    write(tmp_path / name)
    found, records = embeddings.read_files([(tmp_path / name, None)], CONFIG)
    assert found.keys() == words.keys()
    for word, vectors in words.items():
        np.testing.assert_array_equal(found[word], vectors)
        assert found[word].dtype == np.float32
    assert records[0]["name"] == name and records[0]["words"] == list(words)
    assert embeddings.in_lora(tmp_path / name) == (write is bundled)


def test_a_word_of_ones_own(tmp_path):
    webui(tmp_path / "a.pt")
    path = tmp_path / "a.pt"
    assert embeddings.parse(f"{path}=xyz") == (path, "xyz")
    assert embeddings.parse(str(path)) == (path, None)
    (tmp_path / "b=c.pt").write_bytes(path.read_bytes())
    assert embeddings.parse(f"{tmp_path}/b=c.pt") == (tmp_path / "b=c.pt", None)
    assert list(embeddings.read_file(path, CONFIG, "xyz")) == ["xyz"]
    with pytest.raises(SettingError, match="there is an embedding 'xyz' already"):
        embeddings.read_files([(path, "xyz"), (path, "xyz")], CONFIG)
    with pytest.raises(SettingError, match="write FILE or FILE=WORD"):
        embeddings.parse("nothing.pt=")


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"emb_params": np.ones((2, 768), np.float32)}, "768 numbers, the text encoder of"),
        ({"emb_params": np.full((2, 8), np.nan, np.float32)}, "not finite"),
        ({"emb_params": np.ones((2, 2, 8), np.float32)}, r"has the shape \(2, 2, 8\)"),
        ({"emb_params": np.ones((80, 8), np.float32)}, "has 80 vectors; a prompt takes 75"),
        ({"clip_g": np.ones((2, 8), np.float32), "clip_l": VECTORS}, "is an embedding for SDXL"),
        ({"a.weight": np.ones((3, 3, 8, 8), np.float32)}, "is not a textual-inversion embedding"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, arrays, message):
    save_file(arrays, tmp_path / "e.safetensors")
    config = dataclasses.replace(CONFIG, name="tiny")
    with pytest.raises(ModelFolderError, match=message):
        embeddings.read_file(tmp_path / "e.safetensors", config)


def test_embeddings_of_a_model_folder(tmp_path):
    assert embeddings.of_folder(tmp_path) == []
    (tmp_path / "embeddings").mkdir()
    webui(tmp_path / "embeddings" / "good hands.pt")
    (tmp_path / "embeddings" / "readme.txt").write_text("")
    assert embeddings.of_folder(tmp_path) == [
        (tmp_path / "embeddings" / "good hands.pt", "good hands")
    ]
