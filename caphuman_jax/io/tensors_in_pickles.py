"""PyTorch's tensors in an ordinary pickle: each storage is a whole old torch.save file in bytes."""

from __future__ import annotations

import io

import numpy as np

from caphuman_jax.io import pickles, torch_tensors

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


def _storage_from_bytes(reader, data) -> _Storage:
    if not isinstance(data, bytes):
        raise pickles.Damaged("a tensor without bytes")
    stream = io.BytesIO(data)

    def storage(pid):
        # ("storage", type, key, place, count, view)
        if (
            type(pid) is not tuple
            or len(pid) < 5
            or pid[0] != "storage"
            or not isinstance(getattr(pid[1], "value", None), np.dtype)
        ):
            raise pickles.Refused("it refers to something that is not a storage")
        return _Storage(pid[1].value, pid[4])

    parts = [
        pickles.load(stream, len(data), torch_tensors.NAMES, storage) for _ in range(5)
    ]  # magic number, protocol, system, content, keys
    if parts[0] != _TORCH_MAGIC:
        raise pickles.Refused("it has a tensor in a form that is not known")
    if not isinstance(parts[3], _Storage) or len(parts[4]) != 1:
        raise pickles.Damaged("a tensor without storage")
    stream.read(8)  # the number of elements again
    dtype, count = parts[3].dtype, parts[3].count
    return _Storage(dtype, count, np.frombuffer(stream.read(count * dtype.itemsize), dtype, count))


class _Storage:
    def __init__(self, dtype, count, values=None):
        self.dtype, self.count, self.values = dtype, count, values


def _tensor(reader, storage, offset, size, strides, *_) -> np.ndarray:
    if not isinstance(storage, _Storage) or storage.values is None:
        raise pickles.Damaged("a tensor without storage")
    if (
        len(size) != len(strides)
        or 0 in size
        or min((offset, *strides)) < 0
        or offset + sum((n - 1) * step for n, step in zip(size, strides)) >= storage.count
        or np.prod(size) > storage.count
    ):
        raise pickles.Damaged("a tensor larger than its storage")
    bytes_ = tuple(step * storage.dtype.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(
        storage.values[offset:], size, bytes_, writeable=False
    ).copy()


NAMES = pickles.NAMES | {
    ("torch._utils", "_rebuild_tensor_v2"): pickles.Name(
        "torch._utils._rebuild_tensor_v2", _tensor
    ),
    ("torch.storage", "_load_from_bytes"): pickles.Name(
        "torch.storage._load_from_bytes", _storage_from_bytes
    ),
}
