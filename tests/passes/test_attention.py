# SPDX-License-Identifier: Apache-2.0
"""Attention written out computes what torch's own operator computes, and its gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from djpq_nncf.capture import DynamicDims, capture, layer_name
from djpq_nncf.passes import decompose_attention
from tests.attention import HEADS, LENGTH, Attention, words

aten = torch.ops.aten
ALLOWED = torch.rand(4, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)) > 0.4
ALLOWED[0, 0, 2] = False  # a query that may attend to nothing
BIAS = torch.randn(4, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(2))

CASES: dict[str, tuple[Attention, Tensor | None]] = {
    "plain": (Attention(), None),
    "scale": (Attention(scale=0.3), None),
    "causal": (Attention(is_causal=True), None),
    "grouped queries": (Attention(key_heads=2, enable_gqa=True), None),
    "one key head": (Attention(key_heads=1, enable_gqa=True, is_causal=True), None),
    "what may be seen": (Attention(), ALLOWED),
    "bias": (Attention(), BIAS),
    "minus infinity": (Attention(), BIAS.masked_fill(~ALLOWED, -math.inf)),
    "lowest number": (Attention(), BIAS.masked_fill(~ALLOWED, torch.finfo(torch.float32).min)),
}


def targets(model: GraphModule) -> list[object]:
    return [node.target for node in model.graph.nodes]


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case: str) -> None:
    model, mask = CASES[case]
    inputs = (words(),) if mask is None else (words(), mask)
    captured = capture(model.eval(), inputs)
    written = decompose_attention(captured)

    assert aten.scaled_dot_product_attention.default not in targets(written)
    assert aten.scaled_dot_product_attention.default in targets(captured), "the model given is left as it is"
    assert written.state_dict().keys() == captured.state_dict().keys()
    for batch in (slice(None), slice(0, 1), slice(1, 4)):
        sliced = [x[batch].clone().requires_grad_(x.is_floating_point()) for x in inputs]
        outputs = [network(*sliced) for network in (written, model)]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
        if case == "lowest number":
            continue  # torch's own implementations do not agree on the gradient
        leaves = [x for x in sliced if x.requires_grad]
        gradients = [torch.autograd.grad(output.square().sum(), leaves) for output in outputs]
        for one, other in zip(*gradients, strict=True):
            assert one.isfinite().all()
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_products_have_the_path_of_their_module() -> None:
    model = torch.nn.Sequential(torch.nn.Identity(), Attention())
    written = decompose_attention(capture(model.eval(), (words(),)))
    products = [node for node in written.graph.nodes if node.target is aten.matmul.default]
    assert [layer_name(node) for node in products] == ["1", "1"]
    assert [tuple(node.meta["val"].shape) for node in products] == [(4, HEADS, LENGTH, LENGTH), (4, HEADS, LENGTH, 4)]


class Masked(Attention):
    """A mask computed from sizes alone."""

    def __init__(self, keys: int) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        allowed = (torch.arange(x.shape[1]) < self.keys).expand(x.shape[0], 1, x.shape[1], -1)
        return super().forward(x, allowed)


@pytest.mark.parametrize(("keys", "fills"), [(LENGTH, 0), (3, 1), (0, 2)])
def test_a_mask_known_beforehand_costs_no_more_than_it_must(keys: int, fills: int) -> None:
    """One that hides nothing is left out; where every query sees something there is nothing to make up for."""
    model = Masked(keys).eval()
    written = decompose_attention(capture(model, (words(),)))
    assert targets(written).count(aten.masked_fill.Scalar) == fills
    torch.testing.assert_close(written(words()), model(words()), rtol=1e-5, atol=1e-6)


def test_causal_for_every_length() -> None:
    model = Attention(is_causal=True).eval()
    written = decompose_attention(capture(model, (words(),), dynamic={0: DynamicDims((1,))}))
    for length in (3, LENGTH, 12):
        x = torch.randn(2, length, 16)
        torch.testing.assert_close(written(x), model(x), rtol=1e-5, atol=1e-6)


class Dropping(Attention):
    """Dropout on the weights, whatever the mode."""

    def __init__(self) -> None:
        super().__init__(dropout_p=0.5)


def test_dropout_stays() -> None:
    written = decompose_attention(capture(Dropping().eval(), (words(),)))
    assert aten.dropout.default in targets(written)
    with torch.no_grad():
        assert not torch.equal(written(words()), written(words()))


class DroppingInTraining(Attention):
    """Dropout as it is used: it follows the mode."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.options = {"dropout_p": 0.5 if self.training else 0.0}
        return super().forward(x, mask)


def test_dropout_follows_the_mode() -> None:
    model = DroppingInTraining().eval()
    written = decompose_attention(capture(model, (words(),)))
    with torch.no_grad():
        assert not torch.equal(written.train()(words()), written(words()))
        torch.testing.assert_close(written.eval()(words()), model(words()), rtol=1e-5, atol=1e-6)
    (dropped,) = (module for module in written.modules() if isinstance(module, torch.nn.Dropout))
    assert dropped.p == 0.5


def test_nothing_to_do() -> None:
    captured = capture(torch.nn.Linear(3, 2).eval(), (torch.randn(2, 3),))
    assert decompose_attention(captured) is captured
