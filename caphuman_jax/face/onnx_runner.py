"""The shipped ONNX networks behind one small runner (onnxruntime; on an NVIDIA GPU where
onnxruntime-gpu is installed).
"""

from __future__ import annotations

import functools
import importlib.resources
import json

import numpy as np
import onnxruntime

from caphuman_jax.errors import ModelFolderError

NAMES = (
    "blazeface_short_range",
    "face_landmarks_478",
    "face_blendshapes_52",
    "person_segmentation",
    "mobilefacenet_192",
    "dlib_resnet_128",
)


class OnnxNetwork:
    """One ONNX file of the package with a single input; the session is made at the first call.

    `threads` is the number of threads inside one operator. The networks are small and 1 is about as
    fast as more; with 1 there is no thread pool, so that the process may still be forked."""

    def __init__(self, name: str, threads: int = 1):
        if name not in NAMES:
            raise ModelFolderError(f"no network is called {name!r}; known: {', '.join(NAMES)}")
        self.name = name
        self.threads = threads

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run on a float32 array of the network's input shape; all outputs, in the file's order."""
        session = self._session
        feed = {session.get_inputs()[0].name: np.ascontiguousarray(x, np.float32)}
        return tuple(np.asarray(output) for output in session.run(None, feed))

    @functools.cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.use_deterministic_compute = True
        return onnxruntime.InferenceSession(
            read_asset(f"{self.name}.onnx"), options, providers=providers()
        )


@functools.cache
def network(name: str) -> OnnxNetwork:
    """The network of that name, one for the whole process."""
    return OnnxNetwork(name)


def providers() -> list[str]:
    """What onnxruntime computes on here, best first."""
    there = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]


def read_asset(file_name: str) -> bytes:
    """Bytes of a file in assets/face. Raises ModelFolderError if the installation lacks it."""
    file = importlib.resources.files("caphuman_jax").joinpath("assets", "face", file_name)
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelFolderError(
            f"{file_name} is missing from the installed package ({error}); install caphuman_jax "
            f"again"
        ) from error


@functools.cache
def blendshape_table() -> tuple[np.ndarray, tuple[str, ...]]:
    """(indices of the 146 landmarks that the expression network reads, its 52 ARKit names)."""
    table = json.loads(read_asset("face_blendshapes_52.json"))
    return np.asarray(table["landmark_indices"]), tuple(table["names"])
