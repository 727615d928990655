"""The API's description as OpenAPI 3.1, made from the dataclasses that check requests."""

from __future__ import annotations

import dataclasses
from typing import Any

from caphuman_jax.diffusion.sampling_field import FieldSpec
from caphuman_jax.diffusion.sampling_params import FIELDS, SamplingParams
from caphuman_jax.head import editing
from caphuman_jax.jobs.validate import JOB_FIELDS
from caphuman_jax.person.person import COMBINE
from caphuman_jax.pipeline.edit_mask import MASKS
from caphuman_jax.pipeline.head_target import HeadTarget
from caphuman_jax.pipeline.request import ControlRequest, EditRequest
from caphuman_jax.version import __version__

_TYPES = {
    "text": "string",
    "switch": "boolean",
    "int": "integer",
    "float": "number",
    "choice": "string",
    "sampler": "string",
    "spacing": "string",
}
_PHOTO = {
    "type": "string",
    "description": "an upload: its id, its file name, or its field in the form",
}
_WEIGHTS = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
_FACE = {"type": "integer", "minimum": 0, "description": "number of the face, 0 the largest"}
_LIGHT = {
    "description": "a preset, `preset=strength`, `x,y,z,strength`, or 27 numbers",
    "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}],
}
_REGION_FIELDS: dict[str, dict[str, Any]] = {
    "prompt": {"type": "string", "description": "what this person's part of the picture shows"},
    "box": {
        "type": "array",
        "items": {"type": "number", "minimum": 0, "maximum": 1},
        "minItems": 4,
        "maxItems": 4,
        "description": "that part: x0, y0, x1, y1 in widths and heights of the picture",
    },
    "mask": {**_PHOTO, "description": "or a picture of the same shape, white there"},
}
_HEAD_FIELDS: dict[str, dict[str, Any]] = {
    "photo": _PHOTO,
    "take": {
        "type": "array",
        "items": {"enum": [*editing.PARTS, "all"]},
        "description": "what is taken from the photo's head",
    },
    "framing": {"enum": list(editing.FRAMINGS)},
    "photo_face": _FACE,
    **{
        name: {"type": "number", "minimum": -limit, "maximum": limit, "description": "degrees"}
        for name, limit in editing.LIMITS.items()
    },
    "expression": {"oneOf": [{"type": "string"}, _WEIGHTS]},
    "light": _LIGHT,
    "position": {
        "type": "array",
        "items": {"type": ["number", "null"]},
        "minItems": 3,
        "maxItems": 3,
        "description": "x in widths, y and size in heights of the picture",
    },
    "weights": {**_WEIGHTS, "description": "expressions that replace their own weight alone"},
}
_EDIT_FIELDS: dict[str, dict[str, Any]] = {
    "photo": _PHOTO,
    "mask": {"oneOf": [{"enum": list(MASKS)}, _PHOTO], "default": "auto"},
    "face": _FACE,
    "person": {"type": "boolean", "default": True},
}
_CONTROL_FIELDS: dict[str, dict[str, Any]] = {
    "name": {"type": "string"},
    "picture": _PHOTO,
    "scale": {"type": "number", "minimum": 0, "maximum": 10, "default": 1},
}
_REFERENCE = {"oneOf": [_PHOTO, {"type": "array", "items": _PHOTO, "minItems": 1}]}
_REF = "#/components/schemas/"


def document() -> dict[str, Any]:
    """The description as JSON types."""
    job = _ref("Job")
    error = _answer("what is wrong, by field", _ref("Error"))
    pictures = _answer("the pictures", _ref("Pictures"))
    pictures["content"] |= {
        "text/event-stream": {"schema": {"type": "string"}},
        "image/png": {"schema": {"type": "string", "format": "binary"}},
    }
    make = lambda text: _post(text, job, {"200": pictures, "429": error, "422": error})
    upload = {"type": "object", "properties": {"photo": {"type": "string", "format": "binary"}}}
    ask = {"type": "object", "properties": {"photo": _PHOTO, "face": _FACE}}
    plain = {"200": {"description": "JSON"}}
    by_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    one = lambda method, text: {
        "parameters": [by_id],
        method: {"summary": text, "responses": {"default": {"description": text}}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "CapHuman on JAX", "version": __version__},
        "paths": {
            "/health": {"get": {"summary": "the process runs", "responses": plain}},
            "/ready": {"get": {"summary": "the model is ready, or 503", "responses": plain}},
            "/metrics": {"get": {"summary": "counters for Prometheus", "responses": plain}},
            "/v1/models": {"get": {"summary": "the model that is served", "responses": plain}},
            "/v1/head-model": {"get": {"summary": "the head, for viewers", "responses": plain}},
            "/v1/session": {
                "post": {"summary": "begin a session", "responses": {"201": plain["200"]}},
                "get": {"summary": "its photos and pictures", "responses": plain},
                "delete": {"summary": "delete it", "responses": {"204": {"description": "done"}}},
            },
            "/v1/photos": _post("keep photos for a session", upload, {"201": plain["200"]}, True),
            "/v1/photos/{id}": one("get", "a photo as a JPEG"),
            "/v1/heads": _post(
                "faces of a photo and the head of one of them", ask, {**plain, "422": error}
            ),
            "/v1/images": make("make pictures"),
            "/v1/images/{id}": one("delete", "cancel a request"),
            "/v1/edits": make("change a photo"),
            "/v1/identities": _post(
                "an identity file of a person's photos", job, {"200": {"description": "the file"}}
            ),
            "/v1/pictures/{id}": one("get", "a picture of the session"),
        },
        "components": {"schemas": schemas()},
    }


def schemas() -> dict[str, Any]:
    """The schemas of requests and errors."""
    sampling = {name: _of_spec(name, spec) for name, spec in FIELDS.items()}
    person = {"reference": _REFERENCE, "head": _ref("Head"), "face": _FACE}
    job: dict[str, Any] = {
        "id": {"type": "string", "description": "answered as `job`"},
        "prompt": {"type": "string", "description": "what the pictures show"},
        **person,
        "people": {"type": "array", "items": _object({**person, **_REGION_FIELDS})},
        "combine": {"enum": list(COMBINE)},
        "controls": {"type": "array", "items": _ref("Control")},
        "edit": _ref("Edit"),
        **sampling,
    }
    problem = {"field": {"type": ["string", "null"]}, "reason": {"type": "string"}}
    failed = {
        "reason": {"type": "string"},
        "fields": {"type": "array", "items": _object(problem)},
    }
    picture = {
        "number": {"type": "integer"},
        "settings": {"type": "object"},
        "png": {"type": "string", "contentEncoding": "base64"},
    }
    return {
        "Job": _object({name: job[name] for name in ("id", *JOB_FIELDS)}),
        "Head": _object(
            {field.name: _HEAD_FIELDS[field.name] for field in dataclasses.fields(HeadTarget)}
        )
        | {
            "additionalProperties": {"type": "number"},
            "description": "also the entries of head.json and single expressions by name",
        },
        "Edit": _object(
            {
                field.name: _EDIT_FIELDS[field.name]
                for field in dataclasses.fields(EditRequest)
                if field.name in _EDIT_FIELDS
            }
        ),
        "Control": _object(
            {
                field.name: _CONTROL_FIELDS[field.name]
                for field in dataclasses.fields(ControlRequest)
            }
        ),
        "Pictures": _object({"pictures": {"type": "array", "items": _object(picture)}})
        | {"additionalProperties": True},
        "Error": _object({"error": _object(failed)}),
    }


def _of_spec(name: str, spec: FieldSpec) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": spec.help}
    default = getattr(SamplingParams(), name)
    if default is not None:
        schema["default"] = default
    if spec.kind in ("interval", "size"):
        items = {"type": "integer" if spec.kind == "size" else "number"}
        return {**schema, "type": "array", "items": items, "minItems": 2, "maxItems": 2}
    schema["type"] = _TYPES[spec.kind]
    if spec.choices:
        schema["enum"] = list(spec.choices)
    for key, limit in (("minimum", spec.low), ("maximum", spec.high)):
        if isinstance(limit, int | float):
            schema[key] = limit
    return schema


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF + name}


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _post(
    text: str, schema: dict[str, Any], responses: dict[str, Any], form_only: bool = False
) -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {} if form_only else {"job": schema},
        "additionalProperties": {"type": "string", "format": "binary"},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if not form_only:
        content["application/json"] = {"schema": schema}
    wrong = {"400": _answer("what is wrong, by field", _ref("Error"))}
    return {
        "post": {
            "summary": text,
            "requestBody": {"required": True, "content": content},
            "responses": wrong | responses,
        }
    }
