# SPDX-License-Identifier: Apache-2.0
"""Quantizers stand where NNCF puts them, and nothing is said about it."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

from djpq_nncf.algorithms.djpq import CompressedNetwork
from djpq_nncf.nn import ActivationQuantizer, WeightQuantizer
from tests.helpers import NETWORKS, QUANTIZATION_ONLY, images, insert_into

aten = torch.ops.aten


def quantizer_of(model: GraphModule, node: Node) -> ActivationQuantizer | None:
    """The activation quantizer that a node is, if it is one."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ActivationQuantizer) else None


def upstream(model: GraphModule, node: Node) -> set[ActivationQuantizer]:
    """The activation quantizers through which a value came last; pooling and joining keep the grid."""
    found = quantizer_of(model, node)
    if found is not None:
        return {found}
    assert node.op != "placeholder", "is not quantized"
    assert node.target not in (aten.conv2d.default, aten.linear.default, aten.add.Tensor), "is not quantized"
    sources = [s for s in node.all_input_nodes if s.op != "get_attr" and not isinstance(s.meta.get("val"), int)]
    return set().union(*(upstream(model, source) for source in sources))


def quantize(name: str, **djpq: Any) -> CompressedNetwork:
    return insert_into(NETWORKS[name](), images(), **{**QUANTIZATION_ONLY, **djpq})


@pytest.fixture(scope="module")
def resnet() -> CompressedNetwork:
    return insert_into(torchvision.models.resnet18(), images(2, 32), **QUANTIZATION_ONLY)


def test_both_inputs_of_a_residual_sum(resnet: CompressedNetwork) -> None:
    sums = [node for node in resnet.model.graph.nodes if node.target is aten.add.Tensor]
    assert len(sums) == 8
    for node in sums:
        assert all(upstream(resnet.model, source) for source in node.args), node


def test_one_quantizer_for_all_readers(resnet: CompressedNetwork) -> None:
    """A ReLU in front of a block feeds its first convolution and its sum."""
    blocks = 0
    for node in resnet.model.graph.nodes:
        quantizer = quantizer_of(resnet.model, node)
        if quantizer is not None and quantizer.rectifies:
            blocks += {user.target for user in node.users} == {aten.conv2d.default, aten.add.Tensor}
    assert blocks == 4, "the blocks without a projection, and the first"


def test_every_layer_has_quantized_input_and_weight(resnet: CompressedNetwork) -> None:
    nodes = {node.name: node for node in resnet.model.graph.nodes}
    assert len(resnet.operators) == 21
    for operator in resnet.operators:
        source, weight = nodes[operator.node].args[:2]
        assert isinstance(source, Node) and isinstance(weight, Node)
        assert isinstance(resnet.model.get_submodule(str(weight.target)), WeightQuantizer)
        assert upstream(resnet.model, source)
        assert resnet.placement.inputs_of[operator.layer]


def test_sign_of_the_grids(resnet: CompressedNetwork) -> None:
    nodes = {node.name: node for node in resnet.model.graph.nodes}
    for point in resnet.placement.activations:
        pools = aten.max_pool2d.default, aten.adaptive_avg_pool2d.default
        positive = point.source not in nodes or nodes[point.source].target in pools
        assert resnet.activation_quantizers[point.quantizer].grid == ("unsigned" if positive else "symmetric")
        assert point.is_input == point.source.startswith("x")


class Rectified(nn.Module):
    """Ways of clipping below zero, each in front of a convolution; one value is read without a quantizer too."""

    def __init__(self, clip: Callable[[Tensor], Tensor], *, read_twice: bool = False) -> None:
        super().__init__()
        self.clip, self.read_twice = clip, read_twice
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        clipped = self.clip(self.first(x))
        return (self.second(clipped), clipped.exp()) if self.read_twice else self.second(clipped)


@pytest.mark.parametrize(
    ("clip", "bound"),
    [
        (functional.relu, math.inf),
        (functional.relu6, 6.0),
        (lambda x: functional.hardtanh(x, 0.0, 2.5), 2.5),
        (lambda x: x.clamp(0, 4), 4.0),
        (lambda x: x.clamp(-1, 4), None),
        (lambda x: x.clamp(min=0), None),
        (functional.silu, None),
    ],
)
def test_a_quantizer_takes_the_place_of_a_relu(clip: Callable[[Tensor], Tensor], bound: float | None) -> None:
    network = insert_into(Rectified(clip).eval(), images(), **QUANTIZATION_ONLY)
    quantizer = next(q for name, q in network.activation_quantizers.items() if name != "x")
    assert quantizer.rectifies == bound
    names = {str(node.target).split(".")[1] for node in network.model.graph.nodes if node.op == "call_function"}
    assert names == ({"conv2d"} if bound else names | {"conv2d"})
    if bound is None:
        return
    x = 20 * images()[0]
    quantizer.initialize_(min(bound, 9.0), 8)
    assert quantizer.range().item() <= bound * (1 + 1e-6)
    values = torch.linspace(-9, 9, 101)
    torch.testing.assert_close(quantizer(values), clip(values), atol=0.02, rtol=0)
    seen: list[Tensor] = []
    with quantizer.observe(seen.append):
        network.model(x)
        assert torch.equal(quantizer(values), clip(values))
    assert seen[0].min() >= 0
    assert seen[0].max() <= bound


def test_a_relu_that_is_read_elsewhere_stays() -> None:
    network = insert_into(Rectified(functional.relu, read_twice=True).eval(), images(), **QUANTIZATION_ONLY)
    targets = [node.target for node in network.model.graph.nodes]
    assert aten.relu.default in targets
    assert all(quantizer.rectifies is None for quantizer in network.activation_quantizers.values())


def test_unified_scales_at_a_concatenation() -> None:
    network = quantize("concat")
    joined = next(node for node in network.model.graph.nodes if node.target is aten.cat.default)
    quantizers = [quantizer_of(network.model, source) for source in joined.args[0]]
    assert quantizers[0] is not None
    assert quantizers[0] is quantizers[1]
    assert network.placement.inputs_of["join"]
    assert all(network.activation_quantizers[name] is quantizers[0] for name in network.placement.inputs_of["join"])


def test_squeeze_and_excitation_is_quantized() -> None:
    network = quantize("squeeze_excite")
    nodes = {node.name: node for node in network.model.graph.nodes}
    for layer in ("squeeze", "excite"):
        operator = next(operator for operator in network.operators if operator.layer == layer)
        assert layer in network.placement.weights
        source = nodes[operator.node].args[0]
        assert isinstance(source, Node)
        assert quantizer_of(network.model, source) is not None


@pytest.mark.parametrize("name", NETWORKS)
def test_bits_of_every_input_are_known(name: str) -> None:
    """The quantizers that the accounting names are those in front of the layer."""
    network = quantize(name)
    model = network.model
    nodes = {node.name: node for node in model.graph.nodes}

    for operator in network.operators:
        source = nodes[operator.node].args[0]
        assert isinstance(source, Node)
        named = {network.activation_quantizers[quantizer] for quantizer in network.placement.inputs_of[operator.layer]}
        assert upstream(model, source) == named, operator.layer


class Similar(nn.Module):
    """Names that differ in a dot and an underscore."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.a_0 = nn.Conv2d(4, 6, 1)
        self.fc = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.a_0(self.a(x))))


def test_similar_names_do_not_collide() -> None:
    network = insert_into(Similar(), images())
    assert list(network.gates) == ["a.0", "a_0"]
    found = [module for module in network.model.modules() if isinstance(module, WeightQuantizer)]
    assert len(found) == len(network.weight_quantizers) == 3
    modules = set(network.model.modules())
    inserted = (*network.gates.values(), *network.weight_quantizers.values(), *network.activation_quantizers.values())
    assert modules.issuperset(inserted)
    with torch.no_grad():
        network.model(images())


def test_layers_that_nncf_leaves_out_share_the_quantizer_of_their_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("djpq_nncf.passes._placement.find_quantization_points", lambda *_, **__: ())
    network = quantize("projection_residual")
    inputs = network.placement.inputs_of
    assert inputs["conv1"] == inputs["shortcut"]
    nodes = {node.name: node for node in network.model.graph.nodes}
    for operator in network.operators:
        source = nodes[operator.node].args[0]
        assert isinstance(source, Node)
        (name,) = inputs[operator.layer]
        assert quantizer_of(network.model, source) is network.activation_quantizers[name]


def test_original_names_stay() -> None:
    model = NETWORKS["bottleneck"]()
    network = insert_into(model, images())
    own = {name for name in network.model.state_dict() if not name.startswith("compression.")}
    assert own == set(model.state_dict())


def test_nothing_is_printed() -> None:
    """NNCF imports torchao, which complains about what a CPU machine lacks."""
    script = (
        "import torch, torchvision\n"
        "from djpq_nncf.capture import capture\n"
        "from djpq_nncf.cost import find_mac_operators\n"
        "from djpq_nncf.passes import place_quantizers\n"
        "graph = capture(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval(),"
        " (torch.rand(2, 3, 8, 8),))\n"
        "assert place_quantizers(graph, find_mac_operators(graph)).activations\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


class SeveralOutputs(nn.Module):
    """Operators with several outputs whose shapes NNCF does not know by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        ordered, _ = torch.sort(self.first(x), dim=-1)
        one, other = ordered.unflatten(1, (-1, 2)).unbind(2)
        return self.third(self.second(torch.cat([one, other], 1)).amax(2))


def test_operators_with_several_outputs() -> None:
    network = insert_into(SeveralOutputs(), torch.randn(2, 3, 14, 14), **QUANTIZATION_ONLY)
    assert set(network.weight_quantizers) == {"first.weight", "second.weight", "third.weight"}
    assert len(network.activation_quantizers) >= 3
