# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime executes, seen in the profile of a session: fused INT8 kernels."""

import json
from collections import Counter
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.export.helpers import NETS
from tests.export.transformers import compress
from tests.helpers import randomize


class Stem(nn.Module):
    """The head of a ResNet: pooling in front of a block, whose sum sees what was pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 16, 3, bias=False), nn.MaxPool2d(3, 2, 1)
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        x = (self.second(self.first(x).relu()) + x).relu()
        return self.fc(self.head(x).relu().mean((2, 3)))


class InvertedResidual(nn.Module):
    """A MobileNetV2 block with its sum, between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.fc(self.last(x).mean((2, 3)))


NETWORKS: dict[str, type[nn.Module]] = {"residual": NETS["residual"], "stem": Stem, "inverted": InvertedResidual}


def executed(path: Path, image: Tensor, folder: Path) -> Counter[str]:
    """How often each kernel ran."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: image.numpy()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize(("net", "convolutions", "sums"), [("residual", 4, 2), ("stem", 4, 1), ("inverted", 5, 1)])
def test_fused_int8_kernels(net: str, convolutions: int, sums: int, opset: int, tmp_path: Path) -> None:
    image, path = torch.randn(4, 3, 16, 16), tmp_path / "net.onnx"
    compress(randomize(NETWORKS[net]()), image).export_model(path, opset=opset)

    kernels = executed(path, image, tmp_path)

    assert kernels["QLinearConv"] == convolutions
    assert kernels["QLinearAdd"] == sums
    assert kernels["MatMulInteger"] == 1
    float_layers = {"Conv", "FusedConv", "ConvInteger", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
    assert float_layers.isdisjoint(kernels)
    # the bias of the linear layer; codes of the input and of the mean, which is taken in float
    assert kernels["Add"] == 1
    assert kernels["QuantizeLinear"] == 2
    assert kernels["DequantizeLinear"] == 1
