"""Which files of a folder are the weights: every naming that diffusers and transformers write, and
the folders of the hub's cache.

A name is a stem, and in any order between dots a variant ("fp16"), the number of a shard
("-00001-of-00002"), the kind of file, and "index" for the list of what is in which shard."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from caphuman_jax.errors import ModelFolderError

_STEMS = (
    "diffusion_pytorch_model",
    "diffusion_flax_model",
    "pytorch_model",
    "flax_model",
    "adapter_model",
    "model",
)
_KINDS = ("safetensors", "bin", "msgpack")
_VARIANTS = ("", "fp32", "fp16", "bf16")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_LOOSE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".msgpack")


@dataclasses.dataclass(frozen=True)
class _Name:
    name: str
    variant: str
    kind: str
    index: bool
    shard: tuple[int, int] | None

    @property
    def rank(self) -> tuple:
        variants = (*_VARIANTS, self.variant)
        form = 0 if not self.index and self.shard is None else 1 if self.index else 2
        return variants.index(self.variant), self.variant, _KINDS.index(self.kind), form


def _parse(name: str) -> _Name | None:
    stem = next((stem for stem in _STEMS if re.match(rf"{stem}[.-]", name)), None)
    if stem is None:
        return None
    shard = _SHARD.search(name)
    parts = _SHARD.sub("", name.removeprefix(stem)).strip(".").split(".")
    kind = next((part for part in parts if part in _KINDS), None)
    index = "index" in parts
    if kind is None or (parts[-1] != "json" if index else parts[-1] != kind):
        return None
    variant = ".".join(part for part in parts if part not in (kind, "index", "json"))
    numbers = (int(shard[1]), int(shard[2])) if shard else None
    return _Name(name, variant, kind, index, numbers)


def choose(names: Iterable[str]) -> list[str]:
    """The names of a folder's weights: one file, the index of several, or all shards where there is
    no index; [] where there are none.

    What has no variant comes before fp16 and others, safetensors before pickles before Flax.
    """
    names = list(names)
    parsed = sorted((p for p in map(_parse, names) if p), key=lambda p: p.rank)
    for best in parsed:
        if best.shard is None:
            return [best.name]
        shards = [
            p for p in parsed if (p.variant, p.kind, p.index) == (best.variant, best.kind, False)
        ]
        shards = sorted((p for p in shards if p.shard and p.shard[1] == best.shard[1]), key=_number)
        if [_number(p) for p in shards] == list(range(1, best.shard[1] + 1)):
            return [p.name for p in shards]
    loose = [name for name in names if name.endswith(_LOOSE) and not _SHARD.search(name)]
    return loose if len(loose) == 1 else []


def _number(name: _Name) -> int:
    assert name.shard is not None
    return name.shard[0]


def weights_in(folder: Path) -> list[Path]:
    """The files of `choose`. Raises ModelFolderError where there are none."""
    names = choose(sorted(path.name for path in folder.iterdir() if path.is_file()))
    if names:
        return [folder / name for name in names]
    parts = [path.name for path in folder.glob("*-of-*") if _parse(path.name)]
    if parts:
        raise ModelFolderError(
            f"{folder} lacks some of its parts; it has {', '.join(sorted(parts))}"
        )
    raise ModelFolderError(
        f"{folder} has no weight file; looked for diffusion_pytorch_model.safetensors, "
        f"model.safetensors, pytorch_model.bin, flax_model.msgpack and the like"
    )


def snapshot(folder: Path) -> Path:
    """The files in a folder of the hub's cache (models--ORG--NAME): those of its branch main, else
    the only snapshot. Any other folder as it is. Raises ModelFolderError where there is none."""
    if not (folder / "snapshots").is_dir():
        return folder
    there = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    commit = main.read_text().strip()[:64] if main.is_file() else ""
    named = [path for path in there if path.name == commit]
    if not named and len(there) != 1:
        raise ModelFolderError(
            f"{folder} is a folder of the hub's cache with {len(there)} snapshots and no branch "
            f"main; name one of its snapshots"
        )
    return (named or there)[0]
