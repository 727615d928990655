"""CLIP as a judge, against transformers' CLIPModel with random weights; the scores on vectors with
a known answer; and what an import keeps of a CLIP.
"""

import dataclasses

import numpy as np
import pytest
import torch

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.evaluation.clip_judge import ClipJudge, find
from caphuman_jax.evaluation.metrics import clip_score
from caphuman_jax.evaluation.metrics.base import Run
from caphuman_jax.evaluation.outcome import HeadParams, ImageMeasurement, Outcome, Subject
from caphuman_jax.evaluation.prompt_suite import Request
from caphuman_jax.weights import clip_files, sources

PROMPTS = ["a photo of a person", "a person wearing glasses, blue background", "hat " * 90]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(folder, model) of a small CLIP, whose sizes are nobody's defaults."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    vision = {**text, "hidden_size": 40, "image_size": 28, "patch_size": 7, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    for name, value in model.named_parameters():
        if name.endswith(("projection.weight", "bias")):
            torch.nn.init.normal_(value, std=0.3)
    folder = tmp_path_factory.mktemp("clip") / "small"
    model.save_pretrained(folder)
    return folder, model


def unit(found):
    found = getattr(found, "pooler_output", found).detach().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_vectors_are_those_of_transformers(clip):
    from transformers import CLIPImageProcessorPil

    folder, model = clip
    judge = ClipJudge(clip_files.of_transformers(folder))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, width, 3), np.uint8) for width in (64, 90)]
    prepare = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    given = prepare(images, return_tensors="pt")
    wanted = unit(model.get_image_features(**given))
    np.testing.assert_allclose(judge.images(images), wanted, atol=2e-5)

    ids = torch.tensor(judge._tokenizer(PROMPTS, 77).astype(np.int64))
    ends = ids.numpy() == 49407
    mask = torch.tensor((np.cumsum(ends, axis=1) <= 1).astype(np.int64))
    wanted = unit(model.get_text_features(input_ids=ids, attention_mask=mask))
    np.testing.assert_allclose(judge.texts(PROMPTS), wanted, atol=2e-5)


def test_what_is_no_clip_is_said(clip, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(clip[0] / "model.safetensors")
    without = {name: x for name, x in weights.items() if "text_projection" not in name}
    save_file(without, tmp_path / "model.safetensors")
    with pytest.raises(ModelFolderError, match="lacks text_projection or visual_projection"):
        clip_files.of_transformers(tmp_path)
    only = {name: x for name, x in weights.items() if name.startswith("text_model")}
    save_file(only, tmp_path / "model.safetensors")
    with pytest.raises(ModelFolderError, match="not a CLIP with a text encoder and an image"):
        clip_files.of_transformers(tmp_path)


def test_projections_are_kept_only_where_both_encoders_are_theirs(clip):
    one, other = (sources.read("clip", clip[0]) for _ in range(2))
    try:
        found = clip_files.find({"text": one, "image_encoder": one})
        shapes = {path: piece.shape for path, piece in found.items()}
        assert shapes == {"text.kernel": (32, 24), "image_encoder.kernel": (40, 24)}
        assert clip_files.find({"text": one, "image_encoder": other}) == {}
        assert clip_files.find({"text": one}) == {}
    finally:
        one.close()
        other.close()


def test_a_model_without_projections_has_no_judge(tiny_folder):
    assert find(None, tiny_folder) is None


def test_scores_of_known_vectors(pipe):
    """Three pictures lie on their prompts' vectors, one on another's, and one half-way."""
    texts = dict(zip("abc", np.eye(3, 4, dtype=np.float32)))
    half = (texts["a"] + np.eye(4, dtype=np.float32)[3]) / np.sqrt(2)
    pictures = [("a", texts["a"]), ("b", texts["b"]), ("c", texts["c"])]
    pictures += [("a", texts["b"]), ("a", half)]
    nothing = HeadParams.missing(pipe.head_model)
    subject = Subject("x", None, None, None, {}, values={clip_score.VALUE: texts["c"]})
    outcomes = [
        Outcome(
            Request(i, 0, "own", prompt, 0),
            0,
            nothing,
            nothing,
            ImageMeasurement(0, nothing, {}, {clip_score.VALUE: vector}),
        )
        for i, (prompt, vector) in enumerate(pictures)
    ]
    run = Run(pipe.head_model, [subject], outcomes, texts=texts)
    wanted = [100, 100, 100, 0, 100 / np.sqrt(2)]
    np.testing.assert_allclose(clip_score.score(run), wanted, rtol=1e-6)
    np.testing.assert_array_equal(clip_score.accuracy(run), [1, 1, 1, 0, 1])
    found = clip_score.compute(run)["clip"]
    assert found["accuracy"]["value"] == 0.8 and found["accuracy"]["copied"] == 0.2
    alone = dataclasses.replace(run, outcomes=outcomes[:1])
    assert np.isnan(clip_score.accuracy(alone)).all()  # one prompt is nothing to choose from
    absent = clip_score.compute(dataclasses.replace(run, texts={}))["clip"]
    assert np.isnan(absent["score"]["value"])
