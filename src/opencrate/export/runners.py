"""Exported files as functions from tensors to tensors, on the CPU with torch's number of threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Runner = Callable[..., tuple[Tensor, ...]]
"""Inputs in the graph's order -> its outputs, all on the CPU."""


def runner_of(path: Path, backend: str) -> Runner:
    """A function that computes what the file says, by `torch`, `onnx` or `openvino`.

    With `torch` only for files that this process wrote: reading one may run code that it holds.
    """
    return {"torch": _torch, "onnx": _onnx, "openvino": _openvino}[backend](path)


def _torch(path: Path) -> Runner:
    module = torch.export.load(path).module()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return module(*inputs)

    return run


def _onnx(path: Path) -> Runner:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Idle threads that spin take the cores from torch, which runs beside: eager calls took twice as long on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})
        return tuple(torch.from_numpy(value) for value in found)

    return run


def _openvino(path: Path) -> Runner:
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = compiled([value.numpy() for value in inputs])
        return tuple(torch.from_numpy(found[index].copy()) for index in range(len(compiled.outputs)))

    return run
