"""Models of an exported policy in the runtime that computes them, with threads that do not spin.

On a robot's processor other things run. A runtime whose threads spin at barriers waits for a thread that was descheduled: two
threads of a vision transformer took 2 s instead of 0.25 s at load 8 (specs). So: no spinning, no pinning, one stream, and by
default one thread, which leaves the others for the robot's other work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kineflow.deploy.exported_manifest import ExportError, Format, ModelFile, Precision
from kineflow.extras import require

Arrays = Mapping[str, np.ndarray]


class Model(Protocol):
    """One loaded model: arrays by name to arrays by name."""

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]: ...


class OnnxModel:
    """ONNX Runtime on the processor."""

    def __init__(self, file: Path, threads: int) -> None:
        ort = require("onnxruntime", "to run an exported policy")
        self._session = ort.InferenceSession(str(file), onnx_options(threads), providers=["CPUExecutionProvider"])
        self._taken = {value.name for value in self._session.get_inputs()}
        self._given = [value.name for value in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        fed = {name: np.ascontiguousarray(value) for name, value in inputs.items() if name in self._taken}
        return dict(zip(self._given, self._session.run(self._given, fed)))


def onnx_options(threads: int) -> Any:
    """Session options: so many threads within an operation, one operation at a time, and none that spins."""
    ort = require("onnxruntime", "to run an exported policy")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    options.log_severity_level = 3
    return options


class OpenVinoModel:
    """OpenVINO on the processor, in float32 or, where it has such instructions, with bfloat16 products."""

    def __init__(self, file: Path | Any, outputs: Sequence[str], threads: int, precision: Precision) -> None:
        """`file`: an .xml, or a model that is in memory."""
        ov = require("openvino", "to run an exported policy")
        core = ov.Core()
        model = core.read_model(str(file)) if isinstance(file, Path) else file
        self._compiled = core.compile_model(model, "CPU", openvino_options(threads, precision))
        self._request = self._compiled.create_infer_request()
        hint = str(self._compiled.get_property("INFERENCE_PRECISION_HINT"))
        self.computes_in = "bf16" if "bfloat16" in hint or "bf16" in hint else "f32"  # a processor may have no bfloat16
        self._taken = [value.any_name for value in self._compiled.inputs]
        self._outputs = tuple(outputs)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        self._request.infer({name: np.ascontiguousarray(inputs[name]) for name in self._taken}, share_inputs=True)
        return {name: self._request.get_output_tensor(place).data.copy() for place, name in enumerate(self._outputs)}


def openvino_options(threads: int, precision: Precision) -> dict[str, Any]:
    """One stream for latency, no pinning to cores that others use; int8 models do the rest of their work in bfloat16."""
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
    }


def load_model(folder: Path, model: ModelFile, form: Format, precision: Precision, threads: int) -> Model:
    """One model of an exported policy.

    Raises:
        ExportError: a format that this module does not run, or a runtime that refuses the model.
    """
    file = folder / model.files[0]
    try:
        if form == "onnx":
            return OnnxModel(file, threads)
        if form == "openvino":
            return OpenVinoModel(file, [output.name for output in model.outputs], threads, precision)
    except RuntimeError as error:
        raise ExportError(
            f"{file}: its runtime refuses it ({error}); export again, with the runtime's version of this machine"
        ) from error
    if form == "torch":  # the one that needs torch, imported where it is asked for
        from kineflow.deploy.export.torch_model import TorchModel

        return TorchModel(file, [value.name for value in model.inputs], [value.name for value in model.outputs])
    raise ExportError(f"{file}: format '{form}' is none of onnx, openvino, torch")
