# SPDX-License-Identifier: Apache-2.0
"""Dynamic sizes: one graph for all of them, or an error that says which do not fit and why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from djpq_nncf.capture import DynamicDims, InputSpec, capture
from djpq_nncf.errors import CaptureError
from tests.capture.helpers import assert_promised_form, assert_same_behaviour

IMAGE = DynamicDims((2, 3))
X = torch.randn(2, 2, 16, 16)


class Forward(nn.Module):
    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.conv(x))


def upsampled(x: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(x, 3, 2), size=x.shape[-2:], mode="bilinear").flatten(2).mean(1)


def pads_to_four(x: Tensor) -> Tensor:
    if x.shape[2] % 4:
        x = F.pad(x, (0, 0, 0, 4 - x.shape[2] % 4))
    return x * 2


def small_only(x: Tensor) -> Tensor:
    return x * 2 if x.shape[2] <= 20 else x


def square_only(x: Tensor) -> Tensor:
    return x * 2 if x.shape[2] == x.shape[3] else x


def loops(x: Tensor) -> Tensor:
    for row in range(x.shape[2]):
        x = x + row
    return x


def splits(x: Tensor) -> Tensor:
    return sum(part.mean(2) for part in x.split(8, 2))


def flattens(x: Tensor) -> Tensor:
    return x.flatten(1) @ torch.ones(2 * 16 * 16, 3)


def halves_and_doubles(x: Tensor) -> Tensor:
    return x + F.interpolate(F.max_pool2d(x, 2), scale_factor=2)


def shrinks(x: Tensor) -> Tensor:
    return F.conv2d(x, torch.ones(2, 2, 14, 14))


def at(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(3, 2, *size) for size in sizes]


@pytest.mark.parametrize(
    ("body", "dynamic", "others"),
    [
        (upsampled, IMAGE, at((16, 16), (9, 40), (31, 8))),
        (pads_to_four, DynamicDims((2, 3), multiple_of=4), at((8, 20), (64, 16))),
        (pads_to_four, DynamicDims((3,)), at((16, 21), (16, 5))),
        (small_only, DynamicDims((2, 3), max=20), at((20, 3), (9, 20))),
        (halves_and_doubles, DynamicDims((2, 3), multiple_of=2), at((2, 30), (22, 8))),
        (lambda x: x + x.transpose(2, 3), IMAGE, at((5, 5), (20, 20))),
        # below the size of the example a model may fail unless told where to begin
        (shrinks, IMAGE, at((14, 15), (30, 21))),
    ],
    ids=["interpolate", "multiple", "one-dimension", "at-most", "even", "square", "fails-below"],
)
def test_other_sizes(body: Callable[..., Tensor], dynamic: DynamicDims, others: list[Tensor]) -> None:
    model = Forward(body)
    gm = capture(model, (X,), dynamic={0: dynamic})
    assert_promised_form(gm)
    for x in others:
        assert_same_behaviour(model, gm, (x,))


@pytest.mark.parametrize(
    ("body", "dynamic", "expected"),
    [
        (pads_to_four, IMAGE, ["x.shape[2] = ", "(x.shape[2] % 4) == 0", "test_dynamic.py:", "multiple_of"]),
        (small_only, IMAGE, ["x.shape[2] <= 20", "if x.shape[2] <= 20", "max"]),
        (square_only, IMAGE, ["unequal sizes", "x.shape[2] == x.shape[3]"]),
        (loops, IMAGE, ["other sizes of x.shape[2] than the example's 16", "x.shape[2] == 16", "dimension 2 out"]),
        (splits, IMAGE, ["x.shape[2] = 17", "does not do what the model does", "leave the dimension out"]),
        (flattens, DynamicDims((2,)), ["other sizes of x.shape[2]", "(32*x.shape[2]) == 512"]),
        (flattens, IMAGE, ["itself fails with x.shape[2] = 17", "cannot be multiplied"]),
        (halves_and_doubles, IMAGE, ["itself fails with x.shape[2] = 17", "multiple_of"]),
        (shrinks, DynamicDims((2, 3), min=8), ["itself fails", "Kernel size"]),
    ],
    ids=["branch", "limit", "not-square", "loop", "split", "fixed", "flatten", "odd", "too-small"],
)
def test_sizes_a_model_does_not_allow(body: Callable[..., Tensor], dynamic: DynamicDims, expected: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Forward(body), (X,), dynamic={0: dynamic})
    message = str(caught.value)
    for part in ["Forward", *expected]:
        assert part in message
    assert len(message) < 600 and "\n" not in message


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ({1: IMAGE}, ["input 1", "[0]", "position"]),
        ({"x": IMAGE}, ["input 'x'", "[0]"]),
        ({0: DynamicDims((4,))}, ["Input 0", "(2, 2, 16, 16)", "no dimension 4", "1 to 3"]),
        ({0: DynamicDims((0,))}, ["no dimension 0", "always is"]),
        ({0: DynamicDims((2,), min=17)}, ["dimension 2", "has 16", "min"]),
    ],
    ids=["position", "name", "rank", "batch", "example"],
)
def test_dimensions_the_example_does_not_have(dynamic: Any, expected: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Forward(upsampled), (X,), dynamic=dynamic)
    assert all(part in str(caught.value) for part in expected)


@pytest.mark.parametrize("sizes", [{"min": 9, "max": 8}, {"multiple_of": 0}, {"min": 5, "max": 7, "multiple_of": 8}])
def test_sizes_that_do_not_exist(sizes: dict[str, int]) -> None:
    with pytest.raises(CaptureError, match="No size fits"):
        DynamicDims((2,), **sizes)


def test_an_input_of_size_one() -> None:
    with pytest.raises(CaptureError, match="dimension 2 is dynamic, but the example has 1 there"):
        capture(Forward(upsampled), (X[:, :, :1],), dynamic={0: IMAGE})


def test_shapes_are_those_of_the_example() -> None:
    gm = capture(Forward(upsampled), (X,), dynamic={0: IMAGE})
    assert gm.meta["djpq_inputs"] == (InputSpec("x", (2, 2, 16, 16), torch.float32, dynamic=IMAGE),)
    (output,) = gm.graph.output_node().args[0]
    assert output.meta["val"].shape == (2, 256)
    again = capture(gm, (torch.randn(2, 2, 8, 12),))
    assert again.meta["djpq_inputs"][0].dynamic == IMAGE
    (output,) = again.graph.output_node().args[0]
    assert output.meta["val"].shape == (2, 96)
    with pytest.raises(CaptureError, match=r"\(2, 3\) of input 'x'.*\(1, 2\).*original"):
        capture(gm, (X,), dynamic={0: DynamicDims((1, 2))})


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, images: dict[str, Tensor], *, scale: Tensor) -> dict[str, Tensor]:
        return {"out": self.conv(images["depth"]) + images["colour"] * scale}


def test_sizes_that_inputs_share() -> None:
    def inputs(batch: int, height: int) -> tuple[dict[str, Tensor], Tensor]:
        images = {"depth": torch.randn(batch, 1, height, 8), "colour": torch.randn(batch, 2, height, 8)}
        return images, torch.rand(batch, 1, height, 1)

    height = DynamicDims((2,))
    images, scale = inputs(2, 12)
    gm = capture(TwoInputs(), (images,), {"scale": scale}, dynamic={0: height, "scale": height})
    images, scale = inputs(3, 20)
    assert gm(images, scale=scale)["out"].shape == (3, 2, 20, 8)
    assert [spec.dynamic.dims for spec in gm.meta["djpq_inputs"]] == [(2,)] * 3


def test_resnet() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    gm = capture(model, (torch.randn(2, 3, 64, 64),), dynamic={0: IMAGE})
    assert_same_behaviour(model, gm, (torch.randn(3, 3, 49, 96),))


def test_segmentation() -> None:
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    gm = capture(model, (torch.randn(2, 3, 32, 32),), dynamic={0: IMAGE})
    x = torch.randn(3, 3, 49, 24)
    assert_same_behaviour(model, gm, (x,))
    assert gm.eval()(x)["out"].shape == (3, 3, 49, 24)


def test_sequence_length() -> None:
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
        max_position_embeddings=24,
    )
    model = BertForSequenceClassification(config)

    def tokens(batch: int, length: int) -> dict[str, Tensor]:
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, length // 2 :] = 0
        return {"input_ids": torch.randint(0, 40, (batch, length)), "attention_mask": mask}

    length = DynamicDims((1,), max=24)
    gm = capture(model, (), tokens(2, 8), dynamic=dict.fromkeys(("input_ids", "attention_mask"), length))
    for kwargs in (tokens(3, 24), tokens(1, 5)):
        assert_same_behaviour(model, gm, (), kwargs)
    with pytest.raises(CaptureError, match=r"itself fails with input_ids.shape\[1\] = 25, attention_mask.shape"):
        capture(model, (), tokens(2, 24), dynamic=dict.fromkeys(("input_ids", "attention_mask"), DynamicDims((1,))))
