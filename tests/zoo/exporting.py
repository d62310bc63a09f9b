# SPDX-License-Identifier: Apache-2.0
"""The check that the files of a pruned, and of a pruned and quantized, architecture compute what PyTorch computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from djpq_nncf.algorithms.djpq import CompressedNetwork, insert_gates_and_quantizers
from djpq_nncf.algorithms.djpq._initialization import initialize_activation_ranges, initialize_weight_ranges
from djpq_nncf.capture import argument_names, capture
from djpq_nncf.errors import ExportError
from djpq_nncf.export import export_model, verify_export
from djpq_nncf.nn import FrozenActivationQuantizer, FrozenWeightQuantizer
from djpq_nncf.passes import kept_channels, remove
from tests.export.helpers import make_exact
from tests.hardware import OVERFLOW_FIX
from tests.helpers import PRUNING_ONLY, settings_of
from tests.zoo.comparison import run, variation
from tests.zoo.registry import Example, ZooModel
from tests.zoo.removal import VARIES, close_a_quarter

FORMATS = {"OpenVINO": ".xml", "ONNX": ".onnx"}
BITS = 8
QUANTIZED = f"pruned, {BITS} bits"
FLOAT_TOLERANCE = 1e-4
QUANTIZED_TOLERANCE = 2e-2
"""Runtimes differ in the last bit of a softmax or a mean: values on a border between two codes then fall to either
side. Networks that only add and multiply agree exactly, see ``_exact``."""


@dataclass
class ExportRow:
    """What the export check of an architecture found.

    ``errors`` and ``int8_shares`` are by what was written ("pruned, ONNX"): the largest difference relative to the
    range of the output, and the share of multiply-accumulates in INT8 kernels. ``refused`` holds the messages of
    libraries that cannot convert the network.
    """

    kind: ClassVar[str] = "export"
    name: str
    family: str
    inputs: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    int8_shares: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failure: str = ""


def check_export(model: ZooModel, row: ExportRow, folder: Path, refused: Mapping[str, str]) -> None:
    """Fill ``row``, writing files into ``folder``.

    Args:
        model: its small form is exported.
        row: what to fill.
        folder: for the files.
        refused: format -> part of the message with which its library refuses this network.

    Raises:
        AssertionError: a file computes something else, or an expected refusal does not happen.
    """
    for kind, make, tolerance in (
        ("pruned", _pruned, FLOAT_TOLERANCE),
        (QUANTIZED, _quantized, QUANTIZED_TOLERANCE),
    ):
        example = model.build("small")
        row.inputs = example.describe_inputs()
        if kind == QUANTIZED:
            example = _exact(example)
        network = make(example)
        assert variation(run(network, example)) > VARIES / 10, f"{kind}: the output hardly depends on the input"
        data = _named_inputs(network, example)
        for runtime, suffix in FORMATS.items():
            written, path = f"{kind}, {runtime}", folder / f"network{suffix}"
            try:
                export_model(network, path)
            except ExportError as error:
                if runtime not in refused or refused[runtime] not in str(error):
                    raise
                row.refused[runtime] = str(error)
                continue
            assert runtime not in refused, f"{runtime} takes {model.name} now: take it off the list"
            found = verify_export(path, network, data)
            row.errors[written] = found.max_relative_difference
            row.int8_shares[written] = found.int8_mac_share
            assert found.max_relative_difference <= tolerance, (
                f"{written}: differs by {found.max_relative_difference:.1e} of the output's range"
            )


def _pruned(example: Example) -> GraphModule:
    return _strip(_insert(example, **PRUNING_ONLY))


def _quantized(example: Example) -> GraphModule:
    network = _insert(example, quantization={"overflow_fix": OVERFLOW_FIX})
    initializer = settings_of(initializer={"range": {"type": "min_max"}}).initializer
    initialize_weight_ranges(network.model, network.weight_quantizers, BITS, initializer)
    batch = dict(zip(argument_names(network.model), example.args, strict=False)) | (example.kwargs or {})
    initialize_activation_ranges(network.model, network.activation_quantizers, BITS, [batch], initializer)
    for quantizer in (*network.weight_quantizers.values(), *network.activation_quantizers.values()):
        quantizer.fix_bits(min(BITS, quantizer.max_bits))
    stripped = _strip(network)
    _snap_steps(stripped)
    return stripped


def _exact(example: Example) -> Example:
    """Inputs, biases and BatchNorm are short binary fractions, as steps will be.

    Sums of products are then exact in floating point and in any order, so that what differs is wrong.
    """
    make_exact(example.module)
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda x: (x * 64).round() / 64 if x.is_floating_point() else x, (example.args, example.kwargs)
    )
    return Example(example.module, args, kwargs)


def _strip(network: CompressedNetwork) -> GraphModule:
    close_a_quarter(network)
    return remove(network.model, network.analysis, kept_channels(network.analysis, network.gates))


def _insert(example: Example, **djpq: Any) -> CompressedNetwork:
    return insert_gates_and_quantizers(capture(example.module, *example.inputs()), settings_of(**djpq))


@torch.no_grad()
def _snap_steps(model: GraphModule) -> None:
    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, FrozenWeightQuantizer):
            weight = model.get_parameter(str(node.args[0].target))
            codes = module.codes(weight)
            module.step.copy_(_power_of_two(module.step))
            weight.copy_(codes * module.step)
        elif isinstance(module, FrozenActivationQuantizer):
            module.step.copy_(_power_of_two(module.step))


def _power_of_two(step: Tensor) -> Tensor:
    return torch.exp2(torch.log2(step).round())


def _named_inputs(network: GraphModule, example: Example) -> dict[str, Tensor]:
    leaves = pytree.tree_leaves(example.inputs())
    return {
        spec.name: leaf
        for spec, leaf in zip(network.meta["djpq_inputs"], leaves, strict=True)
        if isinstance(leaf, Tensor)
    }
