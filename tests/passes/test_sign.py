# SPDX-License-Identifier: Apache-2.0
"""Values that may be negative must not be given an unsigned grid."""

from collections.abc import Callable, Set

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from djpq_nncf.capture import capture
from djpq_nncf.passes._sign import find_nonnegative, find_skewed
from tests.helpers import insert_into


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def _finds_result(find: Callable[[GraphModule], Set[str]], function: Callable[[Tensor], Tensor]) -> bool:
    captured = capture(_Function(function).eval(), (torch.randn(2, 3, 4, 4),))
    (output,) = next(node for node in captured.graph.nodes if node.op == "output").all_input_nodes
    return output.name in find(captured)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "relu": (lambda x: x.relu(), True),
    "sum of two": (lambda x: x.relu() + x.sigmoid(), True),
    "sum with a negative number": (lambda x: x.relu() + -1, False),
    "difference written as a sum": (lambda x: torch.add(x.relu(), x.sigmoid(), alpha=-1), False),
    "difference": (lambda x: x.relu() - x.sigmoid(), False),
    "relu6": (nn.functional.relu6, True),
    "hardtanh": (nn.functional.hardtanh, False),
    "hardswish": (nn.functional.hardswish, False),
    "pooled": (lambda x: nn.functional.max_pool2d(x.relu(), 2), True),
    "pooled in three dimensions": (lambda x: nn.functional.adaptive_avg_pool3d(x.relu(), 1), True),
    "masked with zero": (lambda x: x.softmax(1).masked_fill(x > 0, 0.0), True),
    "masked with less": (lambda x: x.relu().masked_fill(x > 0, -1.0), False),
    "picked by signed indices": (lambda x: x.relu()[:, torch.tensor([-1, 0])], True),
    "quotient": (lambda x: x.relu() / (x.abs() + 1), True),
    "quotient of what may be negative": (lambda x: x / (x.abs() + 1), False),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=1), True),
    "sum with what may be negative": (lambda x: x.relu() + x, False),
}


@pytest.mark.parametrize("case", CASES)
def test_sign(case: str) -> None:
    function, nonnegative = CASES[case]
    assert _finds_result(find_nonnegative, function) is nonnegative


SKEWED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "hardswish": (nn.functional.hardswish, True),
    "silu": (nn.functional.silu, True),
    "gelu": (nn.functional.gelu, True),
    "gelu by tanh": (lambda x: nn.functional.gelu(x, approximate="tanh"), True),
    "relu": (lambda x: x.relu(), True),
    "linear": (lambda x: x, False),
    "squeeze and excitation": (lambda x: nn.functional.silu(x) * x.mean((2, 3), keepdim=True).sigmoid(), True),
    "pooled": (lambda x: nn.functional.adaptive_avg_pool2d(nn.functional.hardswish(x), 1).flatten(1), True),
    "concatenated": (lambda x: torch.cat([nn.functional.silu(x), x.relu()], dim=1), True),
    "residual sum": (lambda x: nn.functional.silu(x) + x, False),
    "tanh": (lambda x: x.tanh(), False),
}


@pytest.mark.parametrize("case", SKEWED)
def test_skew(case: str) -> None:
    function, skewed = SKEWED[case]
    assert _finds_result(find_skewed, function) is skewed


class _Attention(nn.Module):
    """What is skewed feeds a layer and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x)
        return self.second(nn.functional.gelu(hidden)), nn.functional.silu(hidden) @ hidden.transpose(1, 2)


@pytest.mark.parametrize(
    ("mode", "grids"),
    [
        ("auto", {"first": "symmetric", "second": "asymmetric", "matmul": "symmetric"}),
        ("symmetric", {"first": "symmetric", "second": "symmetric", "matmul": "symmetric"}),
        ("asymmetric", {"first": "asymmetric", "second": "asymmetric", "matmul": "symmetric"}),
    ],
)
def test_choice_of_the_grid(mode: str, grids: dict[str, str]) -> None:
    """Factors of products stay symmetric: OpenVINO has no INT8 kernel for two activations of which one is not."""
    network = insert_into(_Attention(), torch.randn(2, 4, 8), quantization={"activations": {"mode": mode}})
    quantizers = {layer: network.activation_quantizers[name] for layer, (name,) in network.placement.inputs_of.items()}
    assert {layer: quantizer.grid for layer, quantizer in quantizers.items()} == grids
