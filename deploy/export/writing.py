"""Graphs to the files of a runtime. Several ways lead to OpenVINO; the parity gate chooses among them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kineflow.deploy.export.graphs import Graph
from kineflow.deploy.exported_manifest import ExportError, ModelFile, TensorSpec
from kineflow.extras import require

Arrays = Mapping[str, np.ndarray]
WAYS = ("directly", "through ONNX")  # to OpenVINO; a fused attention with as many tokens as heads is wrong through ONNX
WEIGHTS_ONLY = "weights only"  # in int8, where products in int8 lose too much


def program_of(graph: Graph) -> Any:
    """The graph as torch.export has it."""
    with _quiet():
        return torch.export.export(graph.module, tuple(graph.example.values()), strict=False)


def write_torch(graph: Graph, folder: Path, name: str) -> ModelFile:
    file = folder / f"{name}.pt2"
    with _quiet():
        torch.export.save(program_of(graph), file)
    return _model(graph, file.name)


def write_onnx(graph: Graph, folder: Path, name: str) -> ModelFile:
    """By the dynamo exporter, one file."""
    require("onnxscript", "to export a policy")
    file, given = folder / f"{name}.onnx", tuple(graph.example.values())
    names: dict[str, Any] = {"input_names": list(graph.example), "output_names": list(graph.outputs)}
    with _quiet():
        made: Any = torch.onnx.export(program_of(graph), given, dynamo=True, verbose=False, **names)
        assert made is not None
        made.save(file, external_data=_is_large(graph))
    data = file.with_name(f"{file.name}.data")
    return _model(graph, file.name, *([data.name] if data.exists() else []))


def openvino_of(graph: Graph, way: str, folder: Path, name: str) -> Any:
    """An OpenVINO model in memory. Raises ExportError where OpenVINO does not know an operation."""
    ov = require("openvino", "to export a policy")
    try:
        with _quiet():
            if way == "directly":
                model = ov.convert_model(program_of(graph))
            else:
                written = write_onnx(graph, folder, name)
                model = ov.convert_model(str(folder / written.files[0]))
                for file in written.files:
                    (folder / file).unlink()
    except Exception as error:  # OpenVINO and torch raise what they like here
        raise ExportError(f"{name}: OpenVINO does not convert it {way} ({str(error).splitlines()[0][:200]})") from error
    return model


def write_openvino(model: Any, graph: Graph, folder: Path, name: str) -> ModelFile:
    ov = require("openvino", "to export a policy")
    ov.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
    return _model(graph, f"{name}.xml", f"{name}.bin")


def quantised(model: Any, seen: Sequence[Arrays]) -> Any:
    """Weights and products in int8, calibrated on inputs that were `seen`."""
    nncf = require("nncf", "to export in int8")
    taken = [value.any_name for value in model.inputs]
    data = nncf.Dataset([{name: given[name] for name in taken} for given in seen])
    with _quiet():
        return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(seen))


def lighter(model: Any) -> Any:
    """Weights in int8, a scale for each row of them; products in float."""
    nncf = require("nncf", "to export in int8")
    with _quiet():
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


def _model(graph: Graph, *files: str) -> ModelFile:
    with torch.no_grad():
        answer = graph(graph.example)
    return ModelFile(tuple(files), _specs(graph.example), _specs({name: answer[name] for name in graph.outputs}))


def _specs(tensors: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, str(value.numpy().dtype), tuple(value.shape)) for name, value in tensors.items())


def _is_large(graph: Graph) -> bool:
    """Protocol buffers end at 2 GB."""
    return sum(value.numel() * value.element_size() for value in graph.module.buffers()) > 1_500_000_000


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk; what matters is in the parity report."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
