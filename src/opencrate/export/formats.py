"""A traced graph as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from .graph import Graph, quiet
from .targets import TARGETS

LARGE = 3 << 29
"""Bytes of weights from which ONNX keeps them in a file of their own: one file holds at most 2 GiB."""
LINEAR = ["MatMul", "Gemm"]
"""The operators whose constant matrices become 8-bit integers: every linear map, U and D among them."""


def write_graph(program: ExportedProgram, graph: Graph, to: str, folder: Path) -> Path:
    """Write a traced graph in the form `to`, one of `TARGETS`; the file that holds it.

    Raises:
        ValueError: ONNX lacks an operator of the model, or nothing of it can be 8-bit integers.
    """
    path = folder / TARGETS[to].file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the source files' places on this machine, for debugging
    with quiet():
        _WRITERS[to](program, graph, path)
    return path


def _write_torch(program: ExportedProgram, graph: Graph, path: Path) -> None:
    torch.export.save(program, path)


def _write_onnx(program: ExportedProgram, graph: Graph, path: Path) -> None:
    names: dict[str, Any] = {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}
    try:
        found = torch.onnx.export(program, (), dynamo=True, verbose=False, **names)
    except torch.onnx.OnnxExporterError as error:
        words = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"to=onnx: the model cannot be written as ONNX ({words}); give to=torch") from error
    assert found is not None
    for node in found.model.graph.all_nodes():
        node.metadata_props.clear()  # where each came from: more bytes than small weights, and places on this machine
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    found.save(path, external_data=size >= LARGE)


def _write_int8(program: ExportedProgram, graph: Graph, path: Path) -> None:
    """Dynamic quantisation by ONNX Runtime: weights per output channel, activations at each call."""
    import onnx  # pyright: ignore[reportMissingImports]
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore[reportMissingImports]

    whole = path.with_name("float.onnx")
    _write_onnx(program, graph, whole)
    model = onnx.load(whole)
    fold_constants(model)
    quantize_dynamic(model, path, op_types_to_quantize=LINEAR, per_channel=True, weight_type=QuantType.QInt8)
    _remove(whole)
    if not any(node.op_type.endswith("Integer") for node in onnx.load(path, load_external_data=False).graph.node):
        raise ValueError("to=int8: the model has no linear maps, so nothing of it would be 8 bits; give to=onnx")


def _write_openvino(program: ExportedProgram, graph: Graph, path: Path) -> None:
    """By way of ONNX: the graph that is tested."""
    import openvino  # pyright: ignore[reportMissingImports]

    whole = path.with_name("float.onnx")
    _write_onnx(program, graph, whole)
    openvino.save_model(openvino.convert_model(whole), path, compress_to_fp16=False)
    _remove(whole)


_WRITERS: dict[str, Callable[[ExportedProgram, Graph, Path], None]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
    "int8": _write_int8,
    "openvino": _write_openvino,
}


def fold_constants(model: Any) -> None:
    """Make the matrix of every linear map a constant without a factor, in an ONNX model in place.

    An ISTA step multiplies by the dictionary, times its step size, and by its transpose. ONNX Runtime leaves products
    with a factor, or with a matrix that is transposed in the graph, in floating point.
    """
    from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

    constants = {one.name: one for one in model.graph.initializer}

    def add(name: str, values: Any) -> None:
        constants[name] = numpy_helper.from_array(values, name)
        model.graph.initializer.append(constants[name])

    for node in list(model.graph.node):
        given = {one.name: one for one in node.attribute}
        if node.op_type == "Transpose" and node.input[0] in constants:
            order = given["perm"].ints if "perm" in given else None
            add(node.output[0], numpy_helper.to_array(constants[node.input[0]]).transpose(order).copy())
            model.graph.node.remove(node)
        elif node.op_type == "Gemm" and "alpha" in given and given["alpha"].f != 1 and node.input[1] in constants:
            values = numpy_helper.to_array(constants[node.input[1]])
            name = f"{node.input[1]}_times_{node.output[0]}"  # scales per channel take the factor up exactly
            add(name, (values * values.dtype.type(given["alpha"].f)).astype(values.dtype))
            node.input[1] = name
            node.attribute.remove(given["alpha"])
    used = {name for node in model.graph.node for name in node.input} | {one.name for one in model.graph.output}
    for one in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(one)


def _remove(path: Path) -> None:
    for one in (path, path.with_name(f"{path.name}.data")):
        one.unlink(missing_ok=True)
