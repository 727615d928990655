"""The ComfyUI nodes, against `comfy_api.latest` where ComfyUI is installed, and against a stand-in
that takes what ComfyUI's documentation ("V3 migration") and source list, and nothing else. No
package registry has ComfyUI.
"""

import asyncio
import contextlib
import dataclasses
import enum
import importlib
import importlib.util
import inspect
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from caphuman_jax.head import editing
from caphuman_jax.head.hints import pack_hints

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.json"))
_COMMON = {"display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link", "advanced"}
_WIDGET = _COMMON | {"default", "socketless", "force_input"}
_NUMBER = _WIDGET | {"min", "max", "step", "display_mode"}
_OPTIONS = {
    "BOOLEAN": _WIDGET | {"label_on", "label_off"},
    "INT": _NUMBER | {"control_after_generate"},
    "FLOAT": _NUMBER | {"round", "gradient_stops"},
    "STRING": _WIDGET | {"multiline", "placeholder", "dynamic_prompts"},
    "COMBO": (_WIDGET | {"options", "control_after_generate", "upload", "remote"})
    - {"force_input"},
}


@dataclasses.dataclass
class _Port:
    kind: str
    id: str | None
    options: dict


def _type(kind):
    """A type of ComfyUI, whose inputs refuse options that it does not have."""

    def input_(id, **options):
        assert set(options) <= _OPTIONS.get(kind, _COMMON), (kind, id, options)
        return _Port(kind, id, options)

    def output(id=None, **options):
        assert set(options) <= {"display_name", "tooltip", "is_output_list"}
        return _Port(kind, id, options)

    return types.SimpleNamespace(Input=input_, Output=output)


@dataclasses.dataclass
class _Schema:
    node_id: str
    display_name: str
    category: str
    inputs: list
    outputs: list
    hidden: list = dataclasses.field(default_factory=list)
    description: str = ""
    search_aliases: list = dataclasses.field(default_factory=list)
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False


class _NodeOutput:
    def __init__(self, *args, ui=None, expand=None, block_execution=None):
        self.args = args


class _Number(enum.StrEnum):
    number = "number"
    slider = "slider"
    gradient_slider = "gradientslider"


@contextlib.contextmanager
def _loaded(added):
    """The nodes' extension, as ComfyUI loads it; `added`: modules that are there meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in added.items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(
            "comfyui_caphuman", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "comfyui_caphuman", module)
        spec.loader.exec_module(module)
        yield asyncio.run(module.comfy_entrypoint())
        sys.modules.pop("comfyui_caphuman.nodes", None)


@pytest.fixture(scope="module")
def nodes():
    """{node id: class}"""
    latest = types.ModuleType("comfy_api.latest")
    latest.io = types.SimpleNamespace(
        ComfyNode=type("ComfyNode", (), {}),
        Schema=_Schema,
        NodeOutput=_NodeOutput,
        NumberDisplay=_Number,
        Custom=_type,
        **{name.capitalize(): _type(name) for name in (*_OPTIONS, "IMAGE", "MASK")},
    )
    latest.ComfyExtension = type("ComfyExtension", (), {})
    package = types.ModuleType("comfy_api")
    added = {"comfy_api": package, "comfy_api.latest": latest}
    with _loaded(added) as extension:
        assert isinstance(extension, latest.ComfyExtension)
        found = asyncio.run(extension.get_node_list())
        assert all(issubclass(node, latest.io.ComfyNode) for node in found)
        yield {node.define_schema().node_id: node for node in found}


def test_comfyui_takes_the_nodes():
    """What it sends to its page; only where ComfyUI is installed."""
    latest = pytest.importorskip("comfy_api.latest")
    with _loaded({}) as extension:
        assert isinstance(extension, latest.ComfyExtension)
        for node in asyncio.run(extension.get_node_list()):
            facts = node.GET_NODE_INFO_V1()
            order = [name for names in facts["input_order"].values() for name in names]
            assert sorted(order) == sorted(inspect.signature(node.execute).parameters)
            assert json.loads(json.dumps(facts))["name"].startswith("CapHuman")


def test_nodes_are_what_comfyui_expects(nodes):
    assert len(nodes) == 7
    for node in nodes.values():
        schema = node.define_schema()
        ids = [port.id for port in schema.inputs]
        optional = [port.id for port in schema.inputs if port.options.get("optional")]
        assert inspect.ismethod(node.execute) and inspect.ismethod(node.define_schema)
        signature = inspect.signature(node.execute).parameters
        assert list(signature) == ids and len(set(ids)) == len(ids)
        json.dumps([port.options for port in schema.inputs])  # sent to the page
        assert [n for n, p in signature.items() if p.default is not p.empty] == optional
        for port in schema.inputs:
            low, high = port.options.get("min"), port.options.get("max")
            if low is not None:
                assert low <= port.options["default"] <= high
            if "options" in port.options:
                assert port.options["default"] in port.options["options"]


class _Workflow:
    """Runs a workflow as ComfyUI does: each node once, after those that it is linked to."""

    def __init__(self, nodes, others, graph):
        self._nodes, self._others, self._graph, self._done = nodes, others, graph, {}

    def __call__(self, number):
        if number not in self._done:
            kind, given = self._graph[number]["class_type"], self._graph[number]["inputs"]
            value = lambda v: self(v[0])[v[1]] if isinstance(v, list) else v
            inputs = {name: value(v) for name, v in given.items()}
            if kind in self._others:
                self._done[number] = self._others[kind](**inputs)
            else:
                schema = self._nodes[kind].define_schema()
                needed = {p.id for p in schema.inputs if not p.options.get("optional")}
                assert needed <= set(inputs) <= {port.id for port in schema.inputs}
                self._done[number] = self._nodes[kind].execute(**inputs).args
                assert len(self._done[number]) == len(schema.outputs)
        return self._done[number]


@pytest.fixture
def run(nodes, pipe, astronaut, monkeypatch):
    photo = torch.from_numpy(astronaut.astype(np.float32) / 255)[None]
    photos = {"me.png": photo, "pose.png": photo.flip(2)}
    monkeypatch.setattr(sys.modules["comfyui_caphuman.nodes"], "_load", lambda *a: pipe)
    others = {
        "LoadImage": lambda image: (photos[image], torch.zeros(photo.shape[:3])),
        "SaveImage": lambda images, filename_prefix: images,
        "PreviewImage": lambda images: images,
    }

    def run(path):
        graph = json.loads(path.read_text())
        workflow = _Workflow(nodes, others, graph)
        return {graph[number]["class_type"]: workflow(number) for number in graph}

    return run


def test_the_first_workflow_makes_the_pipelines_pictures(run, pipe, astronaut_file):
    made = run(FOLDER / "workflows" / "head_to_picture.json")["SaveImage"]
    head = {"yaw": 20, "pitch": 0, "roll": 0, "expression": "smile=0.8", "light": "left"}
    prompt = "a photo of a person"
    wanted = pipe(reference=astronaut_file, prompt=prompt, head=head, num_images=2).images
    assert made.dtype == torch.float32 and tuple(made.shape) == (2, 64, 64, 3)
    np.testing.assert_array_equal(np.rint(made.numpy() * 255), wanted)


def test_the_second_workflow_shows_hints_and_edits(run, pipe, person, astronaut):
    made = run(FOLDER / "workflows" / "pose_from_photo_and_edit.json")
    normals, albedo, render, mask = made["CapHumanHints"]
    posed = pipe.person(np.ascontiguousarray(astronaut[:, ::-1])).head
    target = editing.mix(pipe.head_model, person.head, posed, ["pose", "expression"])
    hints = np.asarray(pipe.hints(target))
    there = (hints[..., :3] != 0).any(axis=-1)
    np.testing.assert_array_equal(mask[0].numpy() > 0, there)
    packed = pack_hints(hints)
    for image, first in ((normals, 0), (albedo, 3), (render, 6)):
        bytes_ = np.rint(image[0].numpy() * 255)
        np.testing.assert_allclose(bytes_[there], packed[..., first : first + 3][there], atol=1)
    edited = np.rint(made["SaveImage"].numpy() * 255)
    changed = (edited[0] != astronaut).any(axis=-1)
    assert edited.shape == (1, *astronaut.shape) and 0 < changed.mean() < 0.6
