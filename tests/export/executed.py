# SPDX-License-Identifier: Apache-2.0
"""Networks of 8 bits, ours and those of NNCF's post-training quantization, and what OpenVINO executes of them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nncf
import openvino as ov
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from djpq_nncf.algorithms.djpq._initialization import initialize_activation_ranges, initialize_weight_ranges
from tests.hardware import OVERFLOW_FIX
from tests.helpers import insert_into, settings_of, strip

_KEYS = ("layerType", "outputPrecisions", "primitiveType", "runtimePrecision")
_LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
# they move or retype values
_MOVING = frozenset({"Convert", "Reorder", "Reshape", "ShapeOf"})
_ENDS = frozenset({"Const", "Input", "Output"})
_FLOAT, _INT8 = frozenset({"bf16", "f16", "f32"}), frozenset({"i8", "u8"})


@dataclass(frozen=True)
class Node:
    """A node of the executed graph: its type, the precision it computes in and those it reads and writes."""

    kind: str
    precision: str
    primitive: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    reads_input: bool

    @property
    def is_layer(self) -> bool:
        return self.kind in _LAYERS

    @property
    def is_int8(self) -> bool:
        return self.primitive.lower().endswith("_i8")


@dataclass(frozen=True)
class ExecutedGraph:
    """The nodes that run for every sample: what depends on the inputs."""

    nodes: tuple[Node, ...]

    @property
    def layers(self) -> list[Node]:
        return [node for node in self.nodes if node.is_layer]

    @property
    def floating(self) -> list[Node]:
        """What computes in float."""
        return [node for node in self.nodes if node.precision in _FLOAT and node.kind not in _MOVING]

    @property
    def conversions(self) -> list[Node]:
        """What does nothing but turn numbers into codes or codes into numbers, besides the inputs of the network."""
        return [node for node in self.nodes if _converts(node) and not node.reads_input]

    def of(self, kind: str) -> list[Node]:
        return [node for node in self.nodes if node.kind == kind]


def _converts(node: Node) -> bool:
    if node.kind == "FakeQuantize":
        return True
    codes = [bool(_INT8.intersection(precisions)) for precisions in (node.reads, node.writes)]
    numbers = [bool(_FLOAT.intersection(precisions)) for precisions in (node.reads, node.writes)]
    changes = (codes[0] and numbers[1]) or (numbers[0] and codes[1])
    return node.kind in {"Convert", "Reorder"} and changes


def executed_graph(path: Path) -> ExecutedGraph:
    """Reads a saved file back and compiles it for the CPU."""
    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds: dict[str, str] = {}
    precisions: dict[str, tuple[str, ...]] = {}
    nodes = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = {key: op.get_rt_info()[key].astype(str) for key in _KEYS}
        sources = [value.get_node().get_friendly_name() for value in op.input_values()]
        running = [source for source in sources if source in kinds]
        if info["layerType"] != "Input" and not running:
            continue
        name = op.get_friendly_name()
        kinds[name], precisions[name] = info["layerType"], tuple(info["outputPrecisions"].split(","))
        if info["layerType"] not in _ENDS:
            nodes.append(
                Node(
                    kind=info["layerType"],
                    precision=info["runtimePrecision"],
                    primitive=info["primitiveType"],
                    reads=tuple(precision for source in running for precision in precisions[source]),
                    writes=precisions[name],
                    reads_input=any(kinds[source] == "Input" for source in running),
                )
            )
    return ExecutedGraph(tuple(nodes))


def write_post_training(
    model: nn.Module, inputs: Sequence[Tensor], path: Path, preset: nncf.QuantizationPreset | None = None
) -> None:
    """NNCF's post-training quantization of a float network, calibrated with one batch, for any batch size."""
    arrays = [x.numpy() for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenVINO traces with what torch is about to give up
        converted = ov.convert_model(model.eval(), example_input=tuple(inputs) if len(inputs) > 1 else inputs[0])
    converted.reshape({port: [-1, *x.shape[1:]] for port, x in zip(converted.inputs, arrays, strict=True)})
    sample = arrays if len(arrays) > 1 else arrays[0]
    quantized = nncf.quantize(converted, nncf.Dataset([sample]), subset_size=1, preset=preset)
    ov.save_model(quantized, path, compress_to_fp16=False)


@torch.no_grad()
def eight_bits(model: nn.Module, x: Tensor) -> GraphModule:
    """A stripped network of 8 bits without any training: all channels, ranges of one batch, gates of various means."""
    network = insert_into(model, x, quantization={"overflow_fix": OVERFLOW_FIX})
    assert network.gates
    for gate in network.gates.values():
        gate.mu.uniform_(0.5, 1.5)
    initializer = settings_of(initializer={"range": {"type": "min_max"}}).initializer
    initialize_weight_ranges(network.model, network.weight_quantizers, 8, initializer)
    initialize_activation_ranges(network.model, network.activation_quantizers, 8, [x], initializer)
    for quantizer in (*network.weight_quantizers.values(), *network.activation_quantizers.values()):
        quantizer.fix_bits(quantizer.max_bits)
    return strip(network)
