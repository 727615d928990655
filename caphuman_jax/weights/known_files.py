"""Published weight files by their MD5, so that a report can say what a file is."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

KNOWN = {
    "6f0086112db9abc6ce4518a458d4d4b8": "caphuman.ckpt, the published CapHuman",
    "984367df26caf6707a4ef7aa354d4df6": "vae-ft-mse-840000-ema-pruned.ckpt, Stability's fine-tuned "
    "VAE",
    "24913fbd1ed9cb7500ee90191bc5d4b2": "Realistic_Vision_V3.0.ckpt",
    "ff26a222ce48a618a1fa820b46223cae": "79999_iter.pth, face parsing (BiSeNet)",
    "b182e51c26e5a73b1f7a5c53cf8cc038": "deca_model.tar, DECA",
    "cfc3b95159b2a8981ebc347170202ba5": "generic_model.pkl, FLAME",
    "2a3982db7667c32d0dd13351aa6758f7": "FLAME_texture.npz, FLAME's texture space",
    "ddc6d31590f871ebe1844b063b2f8042": "head_template.obj, FLAME's template",
    "a275dadfa4c1bd3c71a9f1411d68f92c": "landmark_embedding.npy, landmarks on FLAME",
}

PUBLISHED = {text.split(",")[0]: md5 for md5, text in KNOWN.items()}
"""{name of a published file: its MD5}."""


def md5(path: Path) -> str:
    """MD5 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class Identification:
    """MD5 of a file, taken in a thread while the file is read for its weights (one reads what the
    other left in memory).
    """

    def __init__(self, path: Path):
        self.path = path
        self._md5: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._md5 = md5(self.path)
        except OSError:  # reading the weights says so too
            self._md5 = None

    def result(self) -> tuple[str | None, str | None]:
        """(MD5, what the file is known as or None)."""
        self._thread.join()
        return self._md5, KNOWN.get(self._md5 or "")
