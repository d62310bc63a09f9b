# SPDX-License-Identifier: Apache-2.0
"""Loads what was saved, compares it with the PyTorch model and says what runs in INT8."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from djpq_nncf.cost._recount import FileLayer, recount
from djpq_nncf.errors import DataError, ExportError
from djpq_nncf.export._program import input_names_of
from djpq_nncf.export._runtime import Runtime, open_runtime
from djpq_nncf.export._saturation import saturating_layers


@dataclass(frozen=True)
class LayerExecution:
    """How the runtime executes one conv, linear or matmul; ``precision`` is the kernel's."""

    name: str
    operator: str
    macs: int
    int8: bool
    precision: str


@dataclass(frozen=True)
class ExportVerification:
    """What ``verify_export`` found.

    Attributes:
        path: the file.
        runtime: name and version of what ran it.
        samples: how many samples were compared.
        max_abs_difference: largest difference of an output element from PyTorch's.
        max_relative_difference: the largest difference divided by the range (max - min) of that output.
        top1_agreement: share of samples with the same largest class, None without a 2-D output.
        int8_mac_share: MACs of convs and linears executed in INT8 / all of them, 0 to 1.
        layers: one entry per conv, linear and matmul.
        saturating: names of layers whose INT8 sums may saturate on this CPU, since it lacks VNNI and their weights have
            8 bits: they then compute something else than PyTorch. ``quantization.overflow_fix`` avoids it.
    """

    path: str
    runtime: str
    samples: int
    max_abs_difference: float
    max_relative_difference: float
    top1_agreement: float | None
    int8_mac_share: float
    layers: tuple[LayerExecution, ...]
    saturating: tuple[str, ...] = ()

    def to_str(self) -> str:
        """A few lines for the terminal, with every layer that does not run in INT8."""
        percent = f"{100 * self.max_relative_difference:.3g} % of the output's range"
        lines = [
            f"{self.path} in {self.runtime}, {self.samples} samples",
            f"  largest difference from PyTorch  {self.max_abs_difference:.3g} ({percent})",
        ]
        if self.top1_agreement is not None:
            lines.append(f"  same top-1 class                 {100 * self.top1_agreement:.2f} %")
        lines.append(f"  MACs executed in INT8            {100 * self.int8_mac_share:.2f} %")
        lines += [
            f"  not in INT8: {layer.name} ({layer.operator}, {layer.precision}, {layer.macs} MACs)"
            for layer in self.layers
            if not layer.int8
        ]
        if self.saturating:
            lines.append(
                "  INT8 sums may saturate on this CPU, which lacks VNNI, where weights have 8 bits: "
                f'{", ".join(self.saturating)}. "quantization": {{"overflow_fix": "enable"}} avoids that'
            )
        return "\n".join(lines)


def verify_export(path: str | Path, model: nn.Module, data: Any) -> ExportVerification:
    """Runs the exported file at ``path`` and compares it, sample by sample, with ``model`` in eval mode.

    A quantized network rounds: where float arithmetic of two runtimes differs in the last bit, a value on
    the border between two codes falls to either side. Such differences are part of the figures.

    Args:
        path: a ``.xml`` or ``.onnx`` file written by ``export_model``.
        model: the stripped PyTorch model it was exported from.
        data: a tensor, a tuple of inputs, a dict of inputs by name, or an iterable of batches (such as a
            DataLoader) whose items are one of those or (input, target) pairs.

    Raises:
        ExportError: the file is missing, damaged, or does not fit the model.
        DataError: there is no data, or it holds NaN or infinity.
    """
    path = Path(path)
    runtime = open_runtime(path)
    comparison = _Comparison()
    names = input_names_of(model) if isinstance(model, torch.fx.GraphModule) else runtime.input_names
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            for inputs in _batches(data, names):
                _check_shapes(runtime, inputs)
                comparison.add(_reference(model, inputs), runtime.run([x.cpu().numpy() for x in inputs.values()]))
    finally:
        for module, mode in training.items():
            module.training = mode
    if not comparison.samples:
        raise DataError("There is nothing to compare: data holds no batch. Pass a tensor or a DataLoader.")
    counted = recount(path).layers
    layers = _layers(counted, runtime)
    total = sum(layer.macs for layer in layers)
    return ExportVerification(
        path=str(path),
        runtime=runtime.name,
        samples=comparison.samples,
        max_abs_difference=comparison.max_abs,
        max_relative_difference=comparison.max_relative,
        top1_agreement=comparison.agreeing / comparison.classified if comparison.classified else None,
        int8_mac_share=sum(layer.macs for layer in layers if layer.int8) / total if total else 0.0,
        layers=layers,
        saturating=saturating_layers(counted),
    )


def _layers(layers: Sequence[FileLayer], runtime: Runtime) -> tuple[LayerExecution, ...]:
    kernels = runtime.kernels([layer.name for layer in layers])
    found = []
    for layer in layers:
        kernel = kernels.get(layer.name)
        precision = "unknown" if kernel is None else kernel.precision
        found.append(
            LayerExecution(layer.name, layer.operator, layer.macs, kernel is not None and kernel.int8, precision)
        )
    return tuple(found)


class _Comparison:
    """Differences, over batches."""

    def __init__(self) -> None:
        self.samples = self.agreeing = self.classified = 0
        self.max_abs = 0.0
        self._differences: dict[int, float] = {}
        self._ranges: dict[int, tuple[float, float]] = {}

    @property
    def max_relative(self) -> float:
        ratios = [0.0]
        for index, difference in self._differences.items():
            low, high = self._ranges[index]
            ratios.append(difference / max(high - low, float(np.finfo(np.float32).tiny)))
        return max(ratios)

    def add(self, expected: list[NDArray[Any]], actual: list[NDArray[Any]]) -> None:
        if [x.shape for x in expected] != [x.shape for x in actual]:
            raise ExportError(
                f"The file returns outputs of shapes {[x.shape for x in actual]}, the model "
                f"{[x.shape for x in expected]}: they do not belong together. Export the model again."
            )
        self.samples += expected[0].shape[0] if expected and expected[0].ndim else 1
        for index, (reference, result) in enumerate(zip(expected, actual, strict=True)):
            if not reference.size:
                continue
            reference = reference.astype(np.float64)
            difference = float(np.abs(reference - result).max())
            self.max_abs = max(self.max_abs, difference)
            self._differences[index] = max(self._differences.get(index, 0.0), difference)
            low, high = self._ranges.get(index, (np.inf, -np.inf))
            self._ranges[index] = (min(low, float(reference.min())), max(high, float(reference.max())))
            if reference.ndim == 2 and index == 0:
                self.classified += len(reference)
                self.agreeing += int((reference.argmax(1) == result.argmax(1)).sum())


def _reference(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[NDArray[Any]]:
    anchor = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(()))
    moved = {name: value.to(anchor.device) for name, value in inputs.items()}
    return [leaf.cpu().numpy() for leaf in pytree.tree_leaves(_call(model, moved)) if isinstance(leaf, Tensor)]


def _call(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    info = getattr(model.graph._codegen, "pytree_info", None) if isinstance(model, torch.fx.GraphModule) else None
    if info is None:
        return model(*inputs.values())
    leaves: list[Any] = list(inputs.values())
    specified = getattr(model, "meta", {}).get("djpq_inputs")
    if specified is not None:
        tensors = iter(leaves)
        leaves = [spec.value if spec.dtype is None else next(tensors) for spec in specified]
    args, kwargs = pytree.tree_unflatten(leaves, info.in_spec)
    return model(*args, **kwargs)


def _check_shapes(runtime: Runtime, inputs: Mapping[str, Tensor]) -> None:
    if len(inputs) != len(runtime.input_shapes):
        raise ExportError(
            f"The file takes the inputs {list(runtime.input_names)}, the model {list(inputs)}: they do not belong "
            "together. Export the model again."
        )
    for (name, value), shape in zip(inputs.items(), runtime.input_shapes, strict=True):
        fits = len(shape) == value.dim() and all(
            size in (None, given) for size, given in zip(shape, value.shape, strict=True)
        )
        if not fits:
            expected = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
            raise DataError(
                f"Input {name!r} of shape {list(value.shape)} does not fit the exported model, which takes {expected}."
            )


def _batches(data: Any, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Inputs by name, in the order of ``names``."""
    batches: Iterable[Any] = [data] if isinstance(data, (Tensor, tuple, Mapping)) else data
    if not isinstance(batches, Iterable):
        raise DataError(f"Cannot take samples from {type(data).__name__}: pass a tensor or an iterable of batches.")
    for number, batch in enumerate(batches):
        inputs = _inputs(batch, names)
        for name, value in inputs.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise DataError(f"Batch {number}, input {name!r} holds NaN or infinity: clean the data first.")
        yield inputs


def _inputs(batch: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise DataError(f"The data lacks the inputs {missing}; it holds {list(batch)}.")
        return {name: torch.as_tensor(batch[name]) for name in names}
    values = [batch] if isinstance(batch, Tensor) else list(batch)
    if len(values) == 2 and len(names) != 2:
        # an (input, target) pair
        return _inputs(values[0], names)
    values = values[: len(names)]
    if len(values) < len(names) or not all(isinstance(value, Tensor) for value in values):
        raise DataError(
            f"The model takes the inputs {list(names)}, a batch holds {[type(value).__name__ for value in values]}."
        )
    return dict(zip(names, values, strict=True))
