# SPDX-License-Identifier: Apache-2.0
"""Values that may be negative must not be given an unsigned grid."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from djpq_nncf.capture import capture
from djpq_nncf.passes._sign import find_nonnegative


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


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
    captured = capture(_Function(function).eval(), (torch.randn(2, 3, 4, 4),))
    (output,) = next(node for node in captured.graph.nodes if node.op == "output").all_input_nodes
    assert (output.name in find_nonnegative(captured)) is nonnegative
