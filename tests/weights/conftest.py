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
