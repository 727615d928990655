"""What is measured in uploads: whether they are photos, their faces, heads and identities."""

from __future__ import annotations

import contextlib
import hashlib
import io
import secrets
from typing import Any

from PIL import Image

from caphuman_jax.face.face import find_faces
from caphuman_jax.io.images import read_photo
from caphuman_jax.io.metadata import read_settings
from caphuman_jax.person import identity_file
from caphuman_jax.person.person import combine_references, measure_references
from caphuman_jax.pipeline.request import Request
from caphuman_jax.studio.engine import Engine, notices
from caphuman_jax.studio.failures import RequestError, reason_of, without_folder
from caphuman_jax.studio.head_view import face_view, person_view
from caphuman_jax.studio.sessions import Session, StoredFile

_LONGEST_SIDE = 1280  # pixels of a photo as it is shown


def store(session: Session, field: str, name: str, data: bytes) -> StoredFile:
    """Decode and keep an upload. Raises CapHumanError and OSError."""
    facts: dict[str, Any] = {"name": name[:200], "sha256": hashlib.sha256(data).hexdigest()}
    if not name.endswith(".identity"):
        height, width = read_photo(data).shape[:2]
        facts |= {"width": width, "height": height}
    stored = session.add_upload(name, data, facts, field)
    if data.startswith(b"\x89PNG"):
        with contextlib.suppress(Exception):  # of another program, or damaged
            stored.facts["settings"] = read_settings(stored.path)
    return stored


def preview(stored: StoredFile) -> bytes:
    """A photo as a JPEG for a browser: upright, in sRGB and not too large."""
    image, target = Image.fromarray(read_photo(stored.path)), io.BytesIO()
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    image.save(target, "JPEG", quality=88)
    return target.getvalue()


def head_of(
    engine: Engine, session: Session, upload: StoredFile, face: int | None
) -> dict[str, Any]:
    """The faces of a photo and the head of one of them, as JSON types. Raises RequestError."""
    try:
        with notices() as collected:
            person = engine.person(session, str(upload.path), face)
        faces = [face_view(person.face, person.photo_size)]
        if person.face_count > 1 and "width" in upload.facts:
            image = read_photo(upload.path)
            faces = [face_view(one, image.shape) for one in find_faces(image)]
    except Exception as error:  # noqa: BLE001 - a photo may cause anything
        raise RequestError(422, f"photo: {reason_of(error, str(session.folder))}") from error
    number = 0 if face is None else face
    warnings = [without_folder(line, str(session.folder)) for line in collected]
    view = person_view(engine.pipe.head_model, person)
    return {"faces": faces, "face": number, "notices": warnings, **view}


def identity(engine: Engine, session: Session, checked: Request) -> bytes:
    """The identity file of a request's person. Raises RequestError."""
    (subject,) = checked.subjects
    try:
        people = measure_references(
            subject.references, lambda photo: engine.person(session, photo, subject.face)
        )
        person = combine_references(people, checked.combine)
    except Exception as error:  # noqa: BLE001 - a photo may cause anything
        raise RequestError(422, f"reference: {reason_of(error, str(session.folder))}") from error
    path = session.folder / f"{secrets.token_hex(8)}.identity"
    try:
        identity_file.save(path, person, engine.pipe.head_name)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
