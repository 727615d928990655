"""A person in a file, to be used instead of a photo: identity, head and the square of the photo
that they come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import jax.numpy as jnp
import numpy as np

from caphuman_jax.errors import PhotoError
from caphuman_jax.face.face import Face
from caphuman_jax.head.head import Head
from caphuman_jax.io import atomic, json_reader, safetensors_file
from caphuman_jax.io.picture_formats import read_head
from caphuman_jax.person.person import Person

ENDING = ".identity"
FORMAT, FORMAT_VERSION = "caphuman_jax identity", "1"
_ARRAYS = ("square", "landmarks", "place", "vectors", "image_tokens")


def save(path: str | os.PathLike, person: Person, head_model: str) -> None:
    """Write a person as a safetensors file, whose bytes depend on the person alone. `head_model`:
    see `Pipeline.head_name`. Raises OSError.
    """
    arrays = {name: np.ascontiguousarray(getattr(person, name)) for name in _ARRAYS}
    arrays |= {
        f"head.{field.name}": np.asarray(getattr(person.head, field.name), np.float32)
        for field in dataclasses.fields(Head)
    }
    arrays |= {
        f"face.{name}": np.ascontiguousarray(getattr(person.face, name))
        for name in ("box", "keypoints", "landmarks", "expression")
    }
    facts = {
        "name": person.name,
        "sha256": person.sha256,
        "photo_size": list(map(int, person.photo_size)),
        "face_count": person.face_count,
        "known_by": person.known_by,
        "head_model": head_model,
        "score": float(person.face.score),
        "presence": float(person.face.presence),
    }
    described = json.dumps(facts)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "person": described,
        "sha256": _checksum(arrays, described),
    }
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    # The safetensors library writes metadata in a random order, and so other bytes every time.
    with atomic.file(path) as part:
        safetensors_file.write(
            part, specs, (arrays[name] for name in safetensors_file.order(specs)), metadata
        )


def is_identity_file(source) -> TypeGuard[str | os.PathLike]:
    """Whether a photo's place is taken by the path of an identity file."""
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix == ENDING


def load(path: str | os.PathLike, head_model: str, known_by: str) -> Person:
    """The person in a file. Raises PhotoError where it cannot be read or was made for a model with
    another head or other recognizers.
    """
    from safetensors import SafetensorError, safe_open

    try:
        read_head(path)  # not a named pipe or a device
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FORMAT:
                raise PhotoError(f"{path} is not an identity file; make one with caphuman identity")
            if facts.get("format_version") != FORMAT_VERSION:
                raise PhotoError(
                    f"{path} has format version {facts.get('format_version')}; this program reads "
                    f"{FORMAT_VERSION}"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if facts.get("sha256") not in (None, _checksum(arrays, facts["person"])):
            raise PhotoError(
                f"the identity file {path} is damaged: its checksum is not the one in it; make it "
                f"again from the photo"
            )
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise PhotoError(
                    f"the identity file {path} is damaged: {name} holds numbers that are not finite"
                )
        facts = json_reader.parse(facts["person"])
        # A head that DECA measured is drawn also where it measures none itself.
        if (
            facts["head_model"] not in (head_model, f"{head_model} by DECA")
            or facts["known_by"] != known_by
        ):
            raise PhotoError(
                f"{path} knows the person by {facts['known_by']} and the head "
                f"{facts['head_model']}; this model takes {known_by} "
                f"and the head {head_model}: make it again from the photo"
            )
        head = Head(
            **{
                field.name: jnp.asarray(arrays[f"head.{field.name}"])
                for field in dataclasses.fields(Head)
            }
        )
        face = Face(
            score=facts["score"],
            presence=facts["presence"],
            **{
                name: arrays[f"face.{name}"]
                for name in ("box", "keypoints", "landmarks", "expression")
            },
        )
        return Person(
            name=facts["name"],
            sha256=facts["sha256"],
            head=head,
            face=face,
            photo_size=tuple(facts["photo_size"]),
            face_count=facts["face_count"],
            known_by=facts["known_by"],
            **{name: arrays[name] for name in _ARRAYS},
        )
    except FileNotFoundError as error:
        raise PhotoError(f"the identity file {path} does not exist") from error
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise PhotoError(f"the identity file {path} is damaged: {error}") from error


def _checksum(arrays: Mapping[str, np.ndarray], facts: str) -> str:
    """SHA-256 of the names, types, shapes and values of the arrays, and of the facts."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {arrays[name].shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
