"""The shipped ONNX networks as JAX functions, so that a loss can look through a recognizer.

onnxruntime runs these networks faster on a CPU, but gives no gradient and cannot be part of a
compiled step. Only the operators that the shipped recognizers, detector and landmark network use
are here (semantics: https://onnx.ai/onnx/operators, opset 18); any other is an error when the file
is read. Needs the `onnx` package, which the extra `train` installs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.errors import ModelFolderError

Params = dict[str, np.ndarray]
Apply = Callable[..., dict[str, jax.Array]]


def load_onnx(path: str | Path | Traversable) -> tuple[Params, Apply]:
    """Read an ONNX file into `(params, apply)`.

    `params` maps tensor names to float32 arrays (weights stored as float16 or 8-bit are unpacked
    here, once). `apply(params, inputs, outputs=None)` takes one array, or a dict from input names
    to arrays, laid out and scaled as the network expects, with any batch size, and returns a dict
    with the tensors named in `outputs` (default: the graph's own). Inner tensors may be asked for;
    layers after the last of them are not traced.
    It is pure: use it under `jit`, `grad` and `vmap`. Compute follows the dtype of `params` and
    inputs, which must agree. Inner tensors keep the graph's layout, which is NCHW.

    Raises ModelFolderError for a file that is not an ONNX network or holds an operator that is not
    known here, and, from `apply`, for a tensor name that the graph does not have."""
    graph = _read_graph(path)
    params, shapes, nodes = _fold_constants(graph)
    unknown = sorted({node.op_type for node in nodes} - set(_OPERATORS))
    if unknown:
        raise ModelFolderError(f"{path}: operators without a JAX form here: {', '.join(unknown)}")

    constants = set(params) | set(shapes)
    input_names = [i.name for i in graph.input if i.name not in constants]
    default_outputs = [o.name for o in graph.output]
    producer = {name: node for node in nodes for name in node.output}

    def apply(params, inputs, outputs: Sequence[str] | None = None) -> dict[str, jax.Array]:
        outputs = default_outputs if outputs is None else list(outputs)
        if not isinstance(inputs, dict):
            inputs = {input_names[0]: inputs}
        if set(inputs) != set(input_names):
            raise ModelFolderError(
                f"{path}: inputs are {', '.join(input_names)}; given: {', '.join(inputs)}"
            )
        missing = [name for name in outputs if name not in producer]
        if missing:
            raise ModelFolderError(f"{path}: no tensor named {', '.join(missing)} in the graph")

        needed = _needed(outputs, producer)
        values: dict[str, Any] = {**shapes, **params}
        values |= {k: jnp.asarray(v) for k, v in inputs.items()}
        for node in nodes:  # ONNX files list nodes in an order in which they can be run
            if id(node) in needed:
                arguments = [values[name] if name else None for name in node.input]
                values[node.output[0]] = _OPERATORS[node.op_type](_attributes(node), *arguments)
        return {name: values[name] for name in outputs}

    return params, apply


def _read_graph(path: str | Path | Traversable):
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModelFolderError(
            "training needs the package onnx: pip install '.[train]', or pip install onnx"
        ) from error

    try:
        return onnx.load(str(path)).graph
    except FileNotFoundError as error:
        raise ModelFolderError(f"{path}: no such file") from error
    except Exception as error:  # protobuf raises its own, undocumented kinds for damaged files
        raise ModelFolderError(f"{path}: not an ONNX network ({error})") from error


def _fold_constants(graph) -> tuple[Params, dict[str, np.ndarray], list]:
    """Split a graph into float parameters, integer constants (shapes, pads) and the nodes that
    depend on the input.

    Nodes fed by constants alone (unpacking of stored weights) are computed here by ONNX's own
    reference code."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes = []
    for node in graph.node:
        if all(name in constants for name in node.input if name):
            feed = {name: constants[name] for name in node.input if name}
            constants.update(
                zip(node.output, ReferenceEvaluator(node).run(None, feed), strict=True)
            )
        else:
            nodes.append(node)

    used = {name for node in nodes for name in node.input}
    params = {
        k: np.asarray(v, np.float32)
        for k, v in constants.items()
        if k in used and v.dtype.kind == "f"
    }
    shapes = {k: v for k, v in constants.items() if k in used and v.dtype.kind != "f"}
    return params, shapes, nodes


def _needed(outputs: Sequence[str], producer: dict[str, Any]) -> set[int]:
    """Identities of the nodes that the named outputs depend on."""
    needed: set[int] = set()
    waiting = list(outputs)
    while waiting:
        node = producer.get(waiting.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            waiting.extend(node.input)
    return needed


def _attributes(node) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _padding(attributes: dict[str, Any]) -> str | list[tuple[int, int]]:
    """ONNX's padding of the spatial axes in the form that `lax` takes."""
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "VALID"):
        return auto.removesuffix("_UPPER")
    if auto != "NOTSET":
        raise ModelFolderError(f"padding {auto} has no JAX form here")
    pads = attributes.get("pads", [0, 0, 0, 0])
    return list(zip(pads[:2], pads[2:], strict=True))


def _conv(attributes, x, weight, bias=None):
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(weight),
        attributes.get("strides", [1, 1]),
        _padding(attributes),
        rhs_dilation=attributes.get("dilations", [1, 1]),
        feature_group_count=attributes.get("group", 1),
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return y if bias is None else y + jnp.asarray(bias)[None, :, None, None]


def _pool(attributes, x, start, operation):
    padding = _padding(attributes)
    if not isinstance(padding, str):
        padding = [(0, 0), (0, 0), *padding]
    window, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
    return jax.lax.reduce_window(x, start, operation, (1, 1, *window), (1, 1, *strides), padding)


def _max_pool(attributes, x):
    return _pool(attributes, x, -np.inf, jax.lax.max)


def _average_pool(attributes, x):
    if _padding(attributes) not in ("VALID", [(0, 0), (0, 0)]):
        raise ModelFolderError("AveragePool with padding has no JAX form here")
    return _pool(attributes, x, 0.0, jax.lax.add) / jnp.asarray(
        np.prod(attributes["kernel_shape"]), x.dtype
    )


def _pad(attributes, x, pads, value=None, axes=None):
    if attributes.get("mode", b"constant") != b"constant":
        raise ModelFolderError("Pad other than with a constant has no JAX form here")
    axes = range(x.ndim) if axes is None else [int(a) for a in axes]
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        widths[axis] = (int(pads[i]), int(pads[i + len(axes)]))
    fill = (
        jnp.zeros((), x.dtype) if value is None else jnp.asarray(value).reshape(()).astype(x.dtype)
    )
    return jnp.pad(x, widths, constant_values=fill)


def _prelu(attributes, x, slope):
    slope = jax.lax.broadcast_to_rank(jnp.asarray(slope), x.ndim)
    return jnp.where(x < 0, x * slope, x)


def _reshape(attributes, x, shape):
    # ONNX: 0 keeps the size of that axis.
    return x.reshape([x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])


def _flatten(attributes, x):
    axis = attributes.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _elementwise(function: Callable) -> Callable:
    """With ONNX's broadcasting, which is NumPy's."""

    def apply(attributes, x, y):
        rank = max(np.ndim(x), np.ndim(y))
        return function(*(jax.lax.broadcast_to_rank(part, rank) for part in (x, y)))

    return apply


_OPERATORS: dict[str, Callable] = {
    "Abs": lambda a, x: jnp.abs(x),
    "Add": _elementwise(jnp.add),
    "AveragePool": _average_pool,
    "Concat": lambda a, *xs: jnp.concatenate(xs, axis=a["axis"]),
    "Conv": _conv,
    "Div": _elementwise(jnp.divide),
    "Flatten": _flatten,
    "GlobalAveragePool": lambda a, x: jnp.mean(x, axis=(2, 3), keepdims=True),
    "MatMul": lambda a, x, y: jnp.matmul(jnp.asarray(x), jnp.asarray(y)),
    "MaxPool": _max_pool,
    "Mul": _elementwise(jnp.multiply),
    "Pad": _pad,
    "PRelu": _prelu,
    "Relu": lambda a, x: jax.nn.relu(x),
    "Reshape": _reshape,
    "Sigmoid": lambda a, x: jax.nn.sigmoid(x),
    "Sub": _elementwise(jnp.subtract),
    "Transpose": lambda a, x: jnp.transpose(x, a.get("perm")),
}
