# SPDX-License-Identifier: Apache-2.0
"""BatchNorm goes into the layer before it, quantized weights keep their codes."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from djpq_nncf.capture import capture
from djpq_nncf.export import fold_batchnorm
from djpq_nncf.nn._frozen import FrozenWeightQuantizer
from tests.export.helpers import NETS, Temporal, randomize, strip
from tests.helpers import insert_into, random_bits
from tests.helpers import strip as remove_channels


def _batchnorms(model: fx.GraphModule) -> int:
    called = [model.get_submodule(str(node.target)) for node in model.graph.nodes if node.op == "call_module"]
    return sum(isinstance(module, _BatchNorm) for module in called)


@pytest.mark.parametrize(
    ("net", "left"), [("plain", 0), ("residual", 0), ("inverted", 0), ("dense", 3), ("temporal", 0)]
)
def test_float_model_computes_the_same(net: str, left: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 20) if net == "temporal" else torch.randn(4, 3, 16, 16)
    model = randomize({**NETS, "temporal": Temporal}[net]()).eval()
    captured = capture(model, (x,))

    folded = fold_batchnorm(captured)

    assert _batchnorms(folded) == left
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert _batchnorms(captured) > 0


@pytest.mark.parametrize("per_channel", [True, False])
def test_codes_stay_and_steps_scale(per_channel: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    stripped = strip(randomize(NETS["residual"]()), (x,), per_channel=per_channel, weight_bits=[3])
    quantizer = stripped.get_submodule("stem_0_weight_quantizer")
    batchnorm = stripped.get_submodule("stem.1")
    assert isinstance(quantizer, FrozenWeightQuantizer) and isinstance(batchnorm, _BatchNorm)
    assert batchnorm.running_var is not None
    scale = batchnorm.weight / torch.sqrt(batchnorm.running_var + batchnorm.eps)
    codes = quantizer.codes(stripped.get_parameter("stem.0.weight"))

    folded = fold_batchnorm(stripped)

    after = folded.get_submodule("stem_0_weight_quantizer")
    weight = folded.get_parameter("stem.0.weight")
    assert isinstance(after, FrozenWeightQuantizer)
    kept = scale != 0
    torch.testing.assert_close(after.codes(weight)[kept], (codes * scale.sign().reshape(-1, 1, 1, 1))[kept])
    torch.testing.assert_close(after.step[kept], (quantizer.step * scale.abs())[kept])
    torch.testing.assert_close(after(weight), weight, rtol=0, atol=0)
    assert (after.step[~kept] == 1).all() and (weight[~kept] == 0).all()
    assert not [name for name, _ in folded.named_parameters() if name.startswith("stem.1")]


def test_tiny_scales_give_zero_codes() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    model = NETS["residual"]()
    model.get_parameter("stem.1.weight").data[1] = 1e-42

    folded = fold_batchnorm(strip(model, (x,)))

    assert (folded.get_parameter("stem.0.weight")[1] == 0).all()
    assert all(bool(parameter.isfinite().all()) for parameter in folded.parameters())


class _Shared(nn.Module):
    """One weight, two BatchNorms; a layer that is used twice does not fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.first, self.second, self.third = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.first(self.conv(x)), self.second(self.conv(2 * x)), self.conv(x + 1)
        return a + b + c + self.third(c)


def test_shared_weights_and_shared_outputs() -> None:
    torch.manual_seed(0)
    model, x = randomize(_Shared()).eval(), torch.randn(2, 3, 4, 4)

    folded = fold_batchnorm(capture(model, (x,)))

    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert _batchnorms(folded) == 1


class _Repeated(nn.Module):
    """One convolution and its BatchNorm, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))


def test_a_quantized_weight_that_two_layers_read() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    network = insert_into(randomize(_Repeated()).eval(), x, pruning={"enabled": False})
    random_bits(network, 0, x)
    stripped = remove_channels(network)

    folded = fold_batchnorm(stripped)

    torch.testing.assert_close(folded(x), stripped(x), rtol=1e-5, atol=1e-5)
    assert _batchnorms(folded) == 0
