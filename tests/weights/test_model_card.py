"""The card of a trained model says what the folder holds, and leaves another's alone."""

from tiny_model import TINY

from caphuman_jax.weights import model_card, model_folder


def test_a_card_is_written_and_another_one_kept(tiny_params, tmp_path):
    folder = tmp_path / "model"
    metadata = {"steps": 250, "training": {"batch_size": 4}, "held_out": {"parts": 16}}
    model_folder.save_model(folder, TINY, tiny_params, metadata=metadata)
    model_card.write(folder)
    text = (folder / model_card.NAME).read_text()
    count = sum(leaf.size for leaf in _leaves(tiny_params))
    assert "\n# `tiny`: model card\n" in text and f"{count / 1e6:.1f} M parameters" in text
    for told in ("250 steps", '"batch_size": 4', "float32", "64 × 64", "AI-generated", "license"):
        assert told in text
    metadata["steps"] = 500
    model_folder.save_model(folder, TINY, tiny_params, metadata=metadata, overwrite=True)
    model_card.write(folder)
    assert "500 steps" in (folder / model_card.NAME).read_text()
    (folder / model_card.NAME).write_text("my own")
    model_card.write(folder)
    assert (folder / model_card.NAME).read_text() == "my own"


def test_a_model_folder_appears_with_its_card(tiny_params, tmp_path):
    """And with whatever else is written into it; another's card is carried over."""
    folder, seen = tmp_path / "model", []

    def more(part):
        written = model_card.write(part, replaced=folder)
        seen.append((part / model_card.NAME).exists() and part != folder)
        return written

    model_folder.save_model(folder, TINY, tiny_params, more=more)
    assert seen == [True] and model_card.NAME in {path.name for path in folder.iterdir()}
    (folder / model_card.NAME).write_text("my own")
    model_folder.save_model(folder, TINY, tiny_params, overwrite=True, more=more)
    assert seen == [True, False] and (folder / model_card.NAME).read_text() == "my own"


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]
