"""ArcFace recognition vectors from insightface's model packs, which the user has; nothing is
fetched and nothing is shipped.

Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019. The packs
lie where the `insightface` package keeps them; the package itself is not needed, only the pack's
recognition network, one ONNX file."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from caphuman_jax.errors import ModelFolderError, PhotoError
from caphuman_jax.face import recognition

SIZE, WIDTH = recognition.MOBILEFACENET_SIZE, 512
# The recognition network of each pack, in the order in which they are looked for.
PACKS = {
    "buffalo_l": "w600k_r50.onnx",
    "antelopev2": "glintr100.onnx",
    "buffalo_m": "w600k_r50.onnx",
}
_BATCH, _LARGEST_BATCH = 32, 1024


class ArcFace:
    """A recognition network: aligned crops (N, 112, 112, 3) uint8 RGB → unit vectors (N, 512)
    float32.

    name: of the file without its ending, such as "w600k_r50"; vectors of different networks cannot
    be compared.
    sha256: of the file. `threads` inside one operator, 0: as many as onnxruntime thinks best.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 0):
        """Raises ModelFolderError if the file cannot be read or is not a network of this kind."""
        import onnxruntime

        self.path = Path(path).expanduser()
        self.name = self.path.stem
        try:
            document = self.path.read_bytes()
        except OSError as error:
            raise ModelFolderError(
                f"the ArcFace network {self.path} cannot be read ({error.strerror or error})"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        try:
            self._session = onnxruntime.InferenceSession(
                document, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ModelFolderError(
                f"{self.path} is damaged or not an ONNX file; download it again "
                f"({_first_line(error)})"
            ) from error
        self.sha256 = hashlib.sha256(document).hexdigest()
        self._input, self._batch = _check(self._session, self.path)
        # Networks that came from MXNet scale their pixels themselves, in their first two nodes.
        self._raw = b"_minusscalar0" in document[:4096] and b"_mulscalar0" in document[:4096]

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Raises PhotoError for crops of another shape or type, or where the network gives no
        direction.
        """
        crops = np.asarray(crops)
        if crops.ndim != 4 or crops.shape[1:] != (SIZE, SIZE, 3) or crops.dtype != np.uint8:
            raise PhotoError(
                f"ArcFace takes aligned crops (N, {SIZE}, {SIZE}, 3) of 8 bits, not {crops.shape} "
                f"of {crops.dtype}"
            )
        pixels = crops.astype(np.float32)
        pixels = (pixels if self._raw else (pixels - 127.5) / 127.5).transpose(0, 3, 1, 2)
        step = self._batch or _BATCH
        parts = [self._run(pixels[i : i + step], step) for i in range(0, len(pixels), step)]
        vectors = np.concatenate(parts) if parts else np.zeros((0, WIDTH), np.float32)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.all(np.isfinite(length)) or np.any(length < 1e-6):
            raise PhotoError(f"{self.path} gives no vector for this face")
        return (vectors / length).astype(np.float32)

    def _run(self, pixels, step):
        count = len(pixels)
        if self._batch and count < step:  # a file of fixed batch
            pixels = np.concatenate(
                [pixels, np.zeros((step - count, *pixels.shape[1:]), np.float32)]
            )
        try:
            outputs = self._session.run(None, {self._input: np.ascontiguousarray(pixels)})
            vectors = np.asarray(outputs[0], np.float32)
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ModelFolderError(
                f"{self.path} cannot be run; download it again ({_first_line(error)})"
            ) from error
        if vectors.shape != (len(pixels), WIDTH):
            raise ModelFolderError(
                f"{self.path} gives {vectors.shape} for {len(pixels)} faces; an ArcFace network "
                f"gives (N, {WIDTH})"
            )
        return vectors[:count]


def find(path: str | os.PathLike | None = None, threads: int = 0) -> ArcFace:
    """The network at `path` (an ONNX file, a pack's folder, or a pack's name); else at
    $CAPHUMAN_ARCFACE; else the first of PACKS in insightface's folder of models ($INSIGHTFACE_HOME,
    or ~/.insightface), read once.

    Raises ModelFolderError, naming the places, where there is none.
    """
    asked = path or os.environ.get("CAPHUMAN_ARCFACE")
    places = _places(str(asked) if asked else None)
    for place in places:
        if place.is_file():
            return _read(str(place), place.stat().st_mtime_ns, threads)
    where = "; ".join(dict.fromkeys(map(str, places)))
    raise ModelFolderError(
        f"no ArcFace network found, looked for {where}; get insightface's pack buffalo_l or "
        f"antelopev2 (its terms allow "
        "non-commercial research), or name the ONNX file in CAPHUMAN_ARCFACE"
    )


@functools.cache
def _read(path, changed, threads):
    return ArcFace(path, threads)


def _places(asked: str | None) -> list[Path]:
    """Files to look for, best first."""
    home = Path(os.environ.get("INSIGHTFACE_HOME") or "~/.insightface").expanduser()
    if asked and asked not in PACKS:
        folder = Path(asked).expanduser()
        if not folder.is_dir():
            return [folder]
        return [
            folder / inside / name
            for inside in ("", folder.name)
            for name in dict.fromkeys(PACKS.values())
        ]
    packs = {asked: PACKS[asked]} if asked else PACKS
    # antelopev2's archive unpacks to a folder in a folder of the same name; $INSIGHTFACE_HOME may
    # name the models' folder itself.
    return [
        root / inside / name
        for pack, name in packs.items()
        for root in (home / "models", home)
        for inside in (pack, Path(pack) / pack)
    ]


def _check(session, path) -> tuple[str, int | None]:
    """Name of the only input and its batch where that is fixed."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape, result = ([part.shape for part in parts] for parts in (inputs, outputs))
    # Sides without a name are None or a text, as "N".
    fits = lambda shape, wanted: (
        len(shape) == len(wanted) + 1
        and all(s == w or not isinstance(s, int) for s, w in zip(shape[1:], wanted))
    )
    if (
        len(inputs) != 1
        or not outputs
        or {inputs[0].type, outputs[0].type} != {"tensor(float)"}
        or not fits(shape[0], (3, SIZE, SIZE))
        or (isinstance(shape[0][0], int) and shape[0][0] > _LARGEST_BATCH)
        or not fits(result[0], (WIDTH,))
    ):
        raise ModelFolderError(
            f"{path} takes {_listed(shape)} to {_listed(result)}; an ArcFace "
            f"network takes (N, 3, {SIZE}, {SIZE}) floats to (N, {WIDTH}): "
            "name the pack's recognition network, w600k_r50.onnx or glintr100.onnx"
        )
    batch = shape[0][0]
    return inputs[0].name, batch if isinstance(batch, int) and batch > 0 else None


def _listed(shapes: list) -> str:
    return ", ".join(map(str, shapes))[:100] or "nothing"


def _first_line(error) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
