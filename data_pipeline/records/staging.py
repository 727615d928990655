"""Records in a bucket. array_record reads files of this machine only, so they are copied here once.

Files lie in CACHE/records/HASH, where HASH is that of the manifest: another start, and other hosts
on this machine, find them there.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from caphuman_jax.errors import DataError
from caphuman_jax.io import atomic, buckets, json_reader
from caphuman_jax.runtime.compile_cache import cache_folder
from data_pipeline.records.manifest import MANIFEST
from data_pipeline.records.schema import NAME, VERSION

_AT_ONCE = 8
"""Files that are copied at the same time."""


def read_manifest(url: str) -> tuple[str, bytes]:
    """(URL of the version's folder, the bytes of its manifest).

    Raises:
        SettingError: for a URL of another kind than gs://, s3:// and file://.
        DataError: where there are no records, or the bucket cannot be read.
    """
    system = _system(url)
    for place in (f"{url.rstrip('/')}/{NAME}/{VERSION}", url.rstrip("/")):
        with buckets.problems(url):
            try:
                return place, system.cat_file(f"{place}/{MANIFEST}")
            except FileNotFoundError:
                continue
    raise DataError(
        f"{url}: no finished records of version {VERSION} there; make them with caphuman prepare "
        f"--photos PHOTOS --out {url}"
    )


def local_copy(url: str) -> Path:
    """A folder of this machine with the records of a URL; whole when this returns.

    Args:
        url: `--out` of `caphuman prepare`, or the version's folder inside it.

    Raises:
        SettingError: see `read_manifest`.
        DataError: where records cannot be read, are damaged, or do not fit on this disk.
    """
    place, content = read_manifest(url)
    folder = cache_folder() / "records" / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(f"{place}/{MANIFEST}", content)
    missing = [
        shard for shard in shards if _size(folder / str(shard["file"])) != int(shard["bytes"])
    ]
    needed, free = sum(int(shard["bytes"]) for shard in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the records of {url} need {_gib(needed)}, and {folder} has {_gib(free)} free: set "
            f"CAPHUMAN_CACHE to a larger disk, or mount the bucket (gcsfuse, mount-s3) and give "
            f"the folder there"
        )
    if missing:
        print(f"copying {_gib(needed)} of records from {url} to {folder}", file=sys.stderr)
    with ThreadPoolExecutor(_AT_ONCE) as pool, buckets.problems(url):
        list(pool.map(lambda shard: _fetch(place, folder, shard), missing))
    # Last: a folder with a manifest is a whole one.
    if not (folder / MANIFEST).exists():
        with atomic.file(folder / MANIFEST) as part:
            part.write_bytes(content)
    return folder


def _fetch(place: str, folder: Path, shard: Mapping[str, Any]) -> None:
    source = f"{place}/{shard['file']}"
    with atomic.file(folder / str(shard["file"])) as part:
        _system(place).get_file(source, str(part))
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard["sha256"]:
            raise DataError(f"{source} is damaged: make the records again with caphuman prepare")


def _shards(where: str, content: bytes) -> list[dict[str, Any]]:
    try:
        splits = json_reader.parse(content)["splits"]
        found = [dict(shard) for split in splits.values() for shard in split["shards"]]
        if all({"file", "bytes", "sha256"} <= set(shard) for shard in found):
            return found
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise DataError(f"{where} is damaged; make the records again with caphuman prepare")


def _system(url: str) -> Any:
    from fsspec.core import url_to_fs

    buckets.check(url, "records")
    return url_to_fs(url)[0]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
