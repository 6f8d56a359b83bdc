"""Models as ONNX: written by torch's exporter, run by onnxruntime, compared with what they come from."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_ONE_FILE = 3 * 2**29  # bytes of weights; protobuf ends at 2 GB


@contextmanager
def export_libraries() -> Iterator[None]:
    """Around what imports them: says what to install.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise ImportError(
            f"no module named {error.name!r}, which ONNX needs; pip install 'macaron-net[export]'"
        ) from error


def check_libraries() -> None:
    """
    Raises:
        ImportError: one of those that an export to ONNX needs is missing.
    """
    with export_libraries():
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def program(module: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """`module` by torch.export, with all sizes of its inputs free that it does not itself fix.

    Args:
        inputs: an example, tensors or lists of them, by the names of the arguments of `forward`; those of size 1 are
            fixed.

    Raises:
        ValueError: it cannot be exported.
    """
    dynamic = torch.export.Dim.AUTO
    # copies, since of views the tensors that they are views of would be part of the program's conditions
    example = tree_map(lambda t: t.clone(memory_format=torch.contiguous_format), dict(inputs))
    free = tree_map(lambda t: {dim: dynamic for dim, size in enumerate(t.shape) if size > 1}, example)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, (), example, dynamic_shapes=free)
    except Exception as error:  # of any kind, by what the model computes
        raise ValueError(
            f"{type(module).__name__} cannot be exported by torch.export: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error


def write(
    exported: Any, file: Path, outputs: Sequence[str], sizes: Mapping[str, Mapping[int, str]] | None = None
) -> None:
    """A program of `program` as an ONNX file; weights of more than 1.5 GB lie beside it.

    Args:
        outputs: names, in the order in which the module returns them.
        sizes: names of the free sizes, by input and dimension.

    Raises:
        ImportError: a library is missing.
        ValueError: torch's exporter does not know something in it.
    """
    check_libraries()
    import onnx

    weights = sum(t.nbytes for t in exported.state_dict.values())
    try:
        with _quiet():
            made = torch.onnx.export(exported, dynamo=True, output_names=list(outputs), verbose=False)
            assert made is not None
            with tempfile.TemporaryDirectory(dir=file.parent, prefix=".onnx.") as scratch:
                made.save(Path(scratch, file.name), external_data=weights > _ONE_FILE)
                model = onnx.load(Path(scratch, file.name))
    except Exception as error:
        raise ValueError(
            f"torch's exporter to ONNX does not know this model: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    _strip(model)
    for value in model.graph.input:
        for dim, name in (sizes or {}).get(value.name, {}).items():
            value.type.tensor_type.shape.dim[dim].dim_param = name
    large = weights > _ONE_FILE
    onnx.save(model, file, save_as_external_data=large, location=f"{file.name}.data" if large else None)


def _strip(model: Any) -> None:
    """Without where in the source each node comes from, which names folders of this machine."""
    del model.metadata_props[:]
    del model.graph.value_info[:]  # shapes of what lies between, which are inferred where they are wanted
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]


def quantize(file: Path, to: Path) -> None:
    """int8 by onnxruntime: matrices with a scale for each column, activations at run time with one for each tensor."""
    with export_libraries(), _quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(file, to, weight_type=QuantType.QInt8, per_channel=True)


class Session:
    """An ONNX file in onnxruntime, on the CPU; called with tensors by name, it returns tensors by name.

    Args:
        file: the model.
        threads: None: onnxruntime's own choice, a thread for each core.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: the file is missing, or no model that it can read.
    """

    def __init__(self, file: str | os.PathLike[str], threads: int | None = None) -> None:
        with export_libraries():
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        if not Path(file).is_file():
            raise ValueError(f"{file} is missing; export the model again, or copy the whole folder")
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds, without a common parent
            raise ValueError(
                f"{file} cannot be read by onnxruntime {onnxruntime.__version__}: {str(error).splitlines()[0]}; export "
                f"the model again"
            ) from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        given = {name: inputs[name].detach().contiguous().numpy() for name in self.inputs}
        found = self._session.run(None, given)
        return dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxruntime say about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    root, before = logging.getLogger(), logging.getLogger().level
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        root.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(before)
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


__all__ = ["Session", "check_libraries", "program", "quantize", "write"]
