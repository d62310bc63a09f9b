# SPDX-License-Identifier: Apache-2.0
"""Files of networks with several inputs, structured outputs and sizes that are not fixed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from djpq_nncf.capture import DynamicDims, capture
from djpq_nncf.cost import recount
from djpq_nncf.export import export_model, verify_export
from djpq_nncf.export._runtime import open_runtime

FORMATS = ["xml", "onnx"]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3, padding=1)
        self.depth = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, image: Tensor, depth: Tensor, scale: float = 2.0, unused: Tensor | None = None) -> dict[str, Any]:
        features = self.image(image) * scale + self.depth(depth)
        pooled = nn.functional.avg_pool2d(features, 2)
        return {"features": features, "scales": [pooled, nn.functional.interpolate(pooled, size=image.shape[2:])]}


def images(batch: int, height: int, width: int) -> dict[str, Tensor]:
    return {"image": torch.randn(batch, 3, height, width), "depth": torch.randn(batch, 1, height, width)}


@pytest.mark.parametrize("suffix", FORMATS)
def test_keywords_constants_and_structured_outputs(suffix: str, tmp_path: Path) -> None:
    gm = capture(TwoInputs(), (), {**images(2, 8, 12), "scale": 0.5, "unused": None})
    path = tmp_path / f"net.{suffix}"
    export_model(gm, path)
    runtime = open_runtime(path)
    assert runtime.input_names == ("image", "depth")
    assert runtime.input_shapes == ((None, 3, 8, 12), (None, 1, 8, 12))
    assert verify_export(path, gm, images(3, 8, 12)).max_abs_difference < 1e-5
    outputs = runtime.run([x.numpy() for x in images(3, 8, 12).values()])
    assert [output.shape for output in outputs] == [(3, 4, 8, 12), (3, 4, 4, 6), (3, 4, 8, 12)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_dynamic_image_size(suffix: str, tmp_path: Path) -> None:
    sizes = DynamicDims((2, 3), multiple_of=2)
    inputs = images(2, 8, 12)
    gm = capture(TwoInputs(), tuple(inputs.values()), dynamic={0: sizes, 1: sizes})
    path = tmp_path / f"net.{suffix}"
    export_model(gm, path)
    assert open_runtime(path).input_shapes == ((None, 3, None, None), (None, 1, None, None))
    for other in (images(3, 8, 12), images(1, 20, 6)):
        assert verify_export(path, gm, other).max_abs_difference < 1e-5
    # costs are those of the example
    assert sorted(layer.macs for layer in recount(path).layers) == [96 * 9 * 4, 96 * 9 * 12]


@pytest.mark.parametrize("suffix", FORMATS)
def test_dynamic_sequence_length(suffix: str, tmp_path: Path) -> None:
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
        max_position_embeddings=24,
    )

    def tokens(batch: int, length: int) -> dict[str, Tensor]:
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, length // 2 :] = 0
        return {"input_ids": torch.randint(0, 40, (batch, length)), "attention_mask": mask}

    length = DynamicDims((1,), max=24)
    dynamic = {"input_ids": length, "attention_mask": length}
    gm = capture(BertForSequenceClassification(config), (), tokens(2, 8), dynamic=dynamic)
    path = tmp_path / f"net.{suffix}"
    export_model(gm, path, output_names=["scores"])
    for other in (tokens(3, 8), tokens(1, 17)):
        assert verify_export(path, gm, other).max_abs_difference < 1e-5
    linears = 4 * [8 * 16 * 16] + 2 * [8 * 16 * 32] + [16 * 16, 16 * 2]
    attention = 2 * [8 * 8 * 16]
    assert sorted(layer.macs for layer in recount(path).layers) == sorted(linears + attention)


class Outputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.conv(x)
        kinds = {"twice": {"a": y, "b": y}, "input": {"y": y, "x": x}, "name": {"x": y}, "constant": {"a": y, "b": 3}}
        return kinds[self.kind]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", ["twice", "input", "name", "constant"])
def test_outputs_that_share_a_tensor_or_a_name(kind: str, suffix: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    gm = capture(Outputs(kind), (x,))
    path = tmp_path / f"net.{suffix}"
    export_model(gm, path)
    assert verify_export(path, gm, x).max_abs_difference < 1e-5
