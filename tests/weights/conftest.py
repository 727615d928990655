"""Fixtures of the weight files; what they are made of is in weight_standins.py, which
tests import.
"""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> Path:
    from weight_standins import TINY

    file = tmp_path_factory.mktemp("config") / "tiny.json"
    file.write_text(json.dumps(TINY.to_dict()))
    return file


@pytest.fixture(scope="session")
def caphuman(tmp_path_factory) -> Path:
    """A caphuman.ckpt of TINY's size as PyTorch Lightning writes it, float32, with all extras."""
    import torch
    from weight_standins import EXTRAS, state_dict

    file = tmp_path_factory.mktemp("caphuman") / "caphuman.ckpt"
    torch.save(
        {"epoch": 2, "global_step": 5, "state_dict": state_dict() | EXTRAS, "callbacks": {}}, file
    )
    return file


@pytest.fixture(scope="module")
def shapes_once():
    """Shapes of TINY are asked for in every test; making them takes a second or two."""
    from caphuman_jax.models import registry

    made: dict[str, dict] = {}
    original = registry.abstract

    def abstract(cfg, dtype=None, *, only=None):
        key = json.dumps(
            [{**cfg.to_dict(), "name": "", "diffusion": 0, "head": 0}, sorted(only or ())]
        )
        if key not in made:
            made[key] = original(cfg, only=only)
        return made[key]

    patch = pytest.MonkeyPatch()
    patch.setattr(registry, "abstract", abstract)
    yield
    patch.undo()
