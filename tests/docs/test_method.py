# SPDX-License-Identifier: Apache-2.0
"""Code in docs/method.md runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet

from djpq_nncf import create_compressed_model

PAGE = Path(__file__).parents[2] / "docs" / "method.md"


@pytest.mark.filterwarnings("ignore:The model is frozen without init_data")
def test_pruning_by_hand() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    original = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    names: dict[str, Any] = {
        "create_compressed_model": create_compressed_model,
        "model": original,
        "images": torch.randn(2, 3, 32, 32),
    }
    exec(compile(code, str(PAGE), "exec"), names)
    kept = [channel for channel in range(64) if channel not in (3, 17)]
    state = original.state_dict()
    expected = {name: state[name] for name in state if name in dict(original.named_parameters())}
    for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
        expected[f"layer1.0.{name}"] = expected[f"layer1.0.{name}"][kept]
    expected["layer1.0.conv2.weight"] = expected["layer1.0.conv2.weight"][:, kept]
    torch.testing.assert_close(dict(names["small"].named_parameters()), expected, rtol=0, atol=0)
