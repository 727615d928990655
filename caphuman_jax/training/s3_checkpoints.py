"""Checkpoints on s3://.

Orbax hands gs:// to TensorStore's own driver and takes every other URL for a local path, although
TensorStore has a driver for s3://, too. `enable` makes the three functions of Orbax that decide
this send s3:// to that driver. A rename in a bucket is a copy of each object, so a checkpoint on
s3:// is whole when its file commit_success.txt is there, as Orbax does it on gs://.
"""

from __future__ import annotations

import os
from typing import Any

from orbax.checkpoint._src.path import atomicity, gcs_utils, step
from orbax.checkpoint._src.serialization import tensorstore_utils

from caphuman_jax.errors import SettingError

_PREFIX = "s3://"


def options(folder: str | os.PathLike) -> dict[str, Any]:
    """The options of Orbax's CheckpointManager that say when a checkpoint in a folder is whole.

    Raises:
        SettingError: where this version of Orbax cannot be made to write there.
    """
    if not os.fspath(folder).startswith(_PREFIX):
        return {"step_name_format": step.standard_name_format()}
    enable()
    kind = atomicity.CommitFileTemporaryPath
    return {
        "temporary_path_class": kind,
        "step_name_format": step.standard_name_format(temporary_path_cls=kind),
    }


def enable() -> None:
    """Sends Orbax's s3:// to TensorStore; once for a process. Raises SettingError where Orbax has
    changed.
    """
    if getattr(tensorstore_utils, "_caphuman_s3", False):
        return
    try:
        is_bucket = tensorstore_utils._use_gcs_driver
        normalize = tensorstore_utils._normalize_path
        gcs_kvstore = gcs_utils.get_kvstore_for_gcs
    except AttributeError as error:
        raise SettingError(
            f"checkpoints cannot be written to s3:// with this version of orbax-checkpoint "
            f"({error}): take the one of constraints.txt, or a --workdir on a shared file system"
        ) from error

    def kvstore(ckpt_path: str) -> dict[str, Any]:
        return _kvstore(ckpt_path) if ckpt_path.startswith(_PREFIX) else gcs_kvstore(ckpt_path)

    def use_driver(directory: str) -> bool:
        return directory.startswith(_PREFIX) or is_bucket(directory)

    def normalized(path: str) -> str:
        rest = path.removeprefix(_PREFIX)
        return normalize(path) if rest == path else _PREFIX + os.path.normpath(rest)

    tensorstore_utils._use_gcs_driver = use_driver
    tensorstore_utils._normalize_path = normalized
    gcs_utils.get_kvstore_for_gcs = kvstore
    tensorstore_utils._caphuman_s3 = True  # pyrefly: ignore[missing-attribute]


def _kvstore(url: str) -> dict[str, Any]:
    """TensorStore's description of a place on s3://. Credentials come from where AWS's own tools
    look; AWS_ENDPOINT_URL names another provider, as it does for them.
    """
    bucket, _, path = url.removeprefix(_PREFIX).partition("/")
    found = {"driver": "s3", "bucket": bucket, "path": path}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        found["endpoint"], region = endpoint, region or "us-east-1"
    return found | ({"aws_region": region} if region else {})
