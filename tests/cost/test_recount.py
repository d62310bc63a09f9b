# SPDX-License-Identifier: Apache-2.0
"""MACs, bits and BOPs read back from exported files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from djpq_nncf.capture import capture
from djpq_nncf.cost._recount import range_bits, recount, signed_bits
from djpq_nncf.errors import ExportError
from djpq_nncf.export import export_model
from tests.export.helpers import NETS, Temporal, expected_bits, expected_macs, move_quantizer, randomize, strip

FORMATS = ["xml", "onnx"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("net", [*NETS, "temporal"])
def test_bits_and_macs_of_every_layer(net: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 3, 20) if net == "temporal" else torch.randn(4, 3, 16, 16)
    stripped = strip(randomize({**NETS, "temporal": Temporal}[net]()), (x,), seed=1)
    export_model(stripped, tmp_path / f"net.{suffix}")

    cost = recount(tmp_path / f"net.{suffix}")

    bits, macs = expected_bits(stripped), expected_macs(stripped)
    assert [(layer.weight_bits, layer.activation_bits) for layer in cost.layers] == bits
    assert [layer.macs for layer in cost.layers] == macs
    assert cost.macs == sum(macs)
    assert cost.bops == sum(count * w * a for count, (w, a) in zip(macs, bits, strict=True))


@pytest.mark.parametrize("suffix", FORMATS)
def test_float_model_has_32_bits(suffix: str, tmp_path: Path) -> None:
    captured = capture(NETS["inverted"]().eval(), (torch.randn(4, 3, 16, 16),))
    export_model(captured, tmp_path / f"net.{suffix}")

    cost = recount(tmp_path / f"net.{suffix}")

    assert cost.macs == 256 * (3 * 24 + 9 * 24 + 24 * 8) + 80
    assert cost.bops == cost.macs * 32 * 32


@pytest.mark.parametrize("suffix", FORMATS)
def test_layers_behind_pooling_and_reshaping_see_the_grid(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 10))
    image = torch.randn(4, 3, 16, 16)
    stripped = strip(model, (image,), weight_bits=[5], activation_bits=[3])
    # to where NNCF puts it: in front of the pooling
    move_quantizer(stripped, "quantizer_1", "relu")
    export_model(stripped, tmp_path / f"net.{suffix}")

    assert [layer.activation_bits for layer in recount(tmp_path / f"net.{suffix}").layers] == [3, 3]


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_of_codes(bits: int) -> None:
    highest = 2 ** (bits - 1) - 1
    codes = np.arange(-highest, highest + 1)
    assert signed_bits(codes) == bits
    assert signed_bits(codes * 3) == bits
    assert range_bits(-highest, highest) == bits
    assert range_bits(-highest - 1, highest) == bits
    assert range_bits(0, 2**bits - 1) == bits
    assert range_bits(0, 2 ** (bits - 1)) == bits


def test_weights_that_are_zero_need_two_bits() -> None:
    assert signed_bits(np.zeros(3, np.int8)) == 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_and_damaged_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net.{suffix}"
    with pytest.raises(ExportError, match="no such file"):
        recount(path)
    path.write_text("<net")
    with pytest.raises(ExportError, match="damaged"):
        recount(path)
    with pytest.raises(ExportError, match=r"\.xml \(OpenVINO IR\)"):
        recount(tmp_path / "net.pt")
