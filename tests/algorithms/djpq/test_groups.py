# SPDX-License-Identifier: Apache-2.0
"""Groups that a person closes by hand, against networks sliced by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djpq_nncf import NNCFConfig, create_compressed_model
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.errors import DjpqError

NOTHING_BY_ITSELF: dict[str, Any] = {
    "pruning": {"gamma": 0},
    "quantization": {"enabled": False},
    "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}},
}
"""Only what is closed by hand goes."""

STREAM, HEADS, WIDTH, HIDDEN = 12, 3, 4, 10


class Transformer(nn.Module):
    """A pre-norm block of ``nn.TransformerEncoderLayer`` between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, STREAM)
        self.block = nn.TransformerEncoderLayer(STREAM, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(STREAM, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class Convolutional(nn.Module):
    """A residual block with a depthwise convolution, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.expand = nn.Conv2d(6, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.head(F.max_pool2d(x, 2).flatten(1))


def randomized(model: nn.Module) -> nn.Module:
    """No vector of zeros or ones, so that a wrong slice shows."""
    for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
        tensor.data = torch.rand_like(tensor) + 0.2 if tensor.dim() == 1 else torch.randn_like(tensor) / 3
    return model.double().eval()


def compress(model: nn.Module, example: Tensor, **djpq: Any) -> DJPQController:
    config = NNCFConfig.from_dict({"compression": {"algorithm": "djpq", **NOTHING_BY_ITSELF, **djpq}})
    controller, _ = create_compressed_model(model, config, example_inputs=(example,))
    assert isinstance(controller, DJPQController)
    return controller


def check(controller: DJPQController, expected: Mapping[str, Tensor], x: Tensor, output: Tensor) -> None:
    controller.freeze()
    stripped = controller.strip()
    actual = stripped.state_dict()
    torch.testing.assert_close({name: actual[name] for name in expected}, dict(expected), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(stripped(x), output)


def kept(closed: list[int], size: int) -> list[int]:
    return [i for i in range(size) if i not in closed]


@pytest.mark.filterwarnings("ignore:Transformer was captured in eval mode")
def test_transformer_sliced_by_hand() -> None:
    x = torch.randn(2, 6, 7, dtype=torch.float64)
    model = randomized(Transformer())
    controller = compress(model, x)
    attention = "block.self_attn.in_proj_weight"
    closed = {
        "embed": [0, 5, 11],
        f"{attention}/attention_heads": [1],
        f"{attention}/query_key_width": [0, 2],
        f"{attention}/value_width": [3],
        "block.linear1": [2, 3, 9],
    }
    assert {name: (group.role, group.size) for name, group in controller.groups.items()} == {
        "embed": ("residual", STREAM),
        f"{attention}/attention_heads": ("attention_heads", HEADS),
        f"{attention}/query_key_width": ("query_key_width", WIDTH),
        f"{attention}/value_width": ("value_width", WIDTH),
        "block.linear1": ("hidden", HIDDEN),
    }
    for name, channels in closed.items():
        controller.groups[name].close(channels)
    s, h, q, v, m = (kept(c, n) for c, n in zip(closed.values(), (STREAM, HEADS, WIDTH, WIDTH, HIDDEN), strict=True))

    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def rows(tensor: Tensor, width: list[int]) -> Tensor:
        """Of [heads * width, ...] the heads that stay, in them some of the width."""
        return tensor.unflatten(0, (HEADS, WIDTH))[h][:, width].flatten(0, 1)

    def fused(tensor: Tensor) -> Tensor:
        parts = tensor.chunk(3)
        return torch.cat([rows(part, width) for part, width in zip(parts, (q, q, v), strict=True)])

    in_weight = fused(state[attention])[:, s]
    in_bias = fused(state["block.self_attn.in_proj_bias"])
    out_weight = rows(state["block.self_attn.out_proj.weight"].T, v).T[s]
    small = {
        "embed.weight": state["embed.weight"][s],
        attention: in_weight,
        "block.self_attn.in_proj_bias": in_bias,
        "block.self_attn.out_proj.weight": out_weight,
        "block.self_attn.out_proj.bias": state["block.self_attn.out_proj.bias"][s],
        "block.linear1.weight": state["block.linear1.weight"][m][:, s],
        "block.linear1.bias": state["block.linear1.bias"][m],
        "block.linear2.weight": state["block.linear2.weight"][s][:, m],
        "block.norm1.weight": state["block.norm1.weight"][s],
        "block.norm2.bias": state["block.norm2.bias"][s],
        "head.weight": state["head.weight"][:, s],
        "head.bias": state["head.bias"],
    }

    def norm(y: Tensor, name: str) -> Tensor:
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return y * state[f"{name}.weight"][s] + state[f"{name}.bias"][s]

    stream = x @ small["embed.weight"].T + state["embed.bias"][s]
    mixed = norm(stream, "block.norm1") @ in_weight.T + in_bias
    shapes = [(len(h), len(q)), (len(h), len(q)), (len(h), len(v))]
    query, key, value = (
        part.unflatten(-1, shape).transpose(1, 2)
        for part, shape in zip(mixed.split([a * b for a, b in shapes], -1), shapes, strict=True)
    )
    scores = (query @ key.transpose(-1, -2) / WIDTH**0.5).softmax(-1)  # the scale is that of the trained network
    attended = (scores @ value).transpose(1, 2).flatten(2)
    stream = stream + attended @ out_weight.T + small["block.self_attn.out_proj.bias"]
    hidden = (norm(stream, "block.norm2") @ small["block.linear1.weight"].T + small["block.linear1.bias"]).relu()
    stream = stream + hidden @ small["block.linear2.weight"].T + state["block.linear2.bias"][s]
    check(controller, small, x, stream.mean(1) @ small["head.weight"].T + small["head.bias"])


def test_convolutional_network_sliced_by_hand() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = randomized(Convolutional())
    controller = compress(model, x)
    assert {name: (group.role, group.size) for name, group in controller.groups.items()} == {
        "stem": ("residual", 6),
        "expand": ("hidden", 8),
    }
    controller.groups["stem"].close([1, 4])
    controller.groups["expand"].close([0, 6, 7])
    s, e = kept([1, 4], 6), kept([0, 6, 7], 8)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    small = {
        "stem.weight": state["stem.weight"][s],
        "stem.bias": state["stem.bias"][s],
        "norm.weight": state["norm.weight"][s],
        "norm.running_mean": state["norm.running_mean"][s],
        "expand.weight": state["expand.weight"][e][:, s],
        "expand.bias": state["expand.bias"][e],
        "depthwise.weight": state["depthwise.weight"][e],
        "depthwise.bias": state["depthwise.bias"][e],
        "project.weight": state["project.weight"][s][:, e],
        "project.bias": state["project.bias"][s],
        "head.weight": state["head.weight"].unflatten(1, (6, 16))[:, s].flatten(1),
        "head.bias": state["head.bias"],
    }

    y = F.conv2d(x, small["stem.weight"], small["stem.bias"], padding=1)
    mean, variance, scale, shift = (
        state[f"norm.{name}"][s].reshape(-1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
    )
    y = (y - mean) / (variance + 1e-5).sqrt() * scale + shift
    z = F.conv2d(y, small["expand.weight"], small["expand.bias"]).clamp(0, 6)
    z = F.conv2d(z, small["depthwise.weight"], small["depthwise.bias"], padding=1, groups=len(e)).clamp(0, 6)
    y = y + F.conv2d(z, small["project.weight"], small["project.bias"])
    output = F.max_pool2d(y, 2).flatten(1) @ small["head.weight"].T + small["head.bias"]
    check(controller, small, x, output)


@pytest.mark.filterwarnings("ignore:Transformer was captured in eval mode")
@pytest.mark.parametrize("role", ["hidden", "residual", "attention_heads", "query_key_width", "value_width"])
def test_a_dimension_can_be_switched_off(role: str) -> None:
    controller = compress(
        Transformer(), torch.randn(2, 6, 7), pruning={"gamma": 0, "dimensions": {role: False}}
    )  # fmt: skip
    assert role not in {group.role for group in controller.groups.values()}
    assert len(controller.groups) == 4
    reason = f"'pruning.dimensions.{role}' is off"
    entries = [entry for entry in controller.statistics().djpq.frozen_channels if entry.reason == reason]
    expected = {
        "hidden": [f"block.linear1: {HIDDEN} channels stay"],
        "residual": [
            f"{name}: {STREAM} channels stay" for name in ("embed", "block.self_attn.out_proj", "block.linear2")
        ],
        "attention_heads": [f"block.self_attn.in_proj_weight: {HEADS} attention heads stay"],
        "query_key_width": [f"block.self_attn.in_proj_weight: {WIDTH} channels of queries and keys stay"],
        "value_width": [f"block.self_attn.in_proj_weight: {WIDTH} channels of values stay"],
    }[role]
    assert [str(entry) for entry in entries] == [f"{entry}, {reason}" for entry in expected]
    text = controller.statistics().to_str()
    assert all(f"  {entry}, {reason}\n" in text + "\n" for entry in expected)


def test_a_group_tells_where_its_channels_live() -> None:
    group = compress(Convolutional(), torch.randn(2, 3, 8, 8)).groups["expand"]
    assert [(member.layer, member.parameter, member.dim, member.multiplicity) for member in group.members] == [
        ("depthwise", "depthwise.bias", 0, 1),
        ("depthwise", "depthwise.weight", 0, 1),
        ("expand", "expand.bias", 0, 1),
        ("expand", "expand.weight", 0, 1),
        ("project", "project.weight", 1, 1),
    ]
    group.close([2])
    assert repr(group) == "PrunableGroup('expand', hidden, 7 of 8 channels open)"
    first, *others = str(group).splitlines()
    assert first == "expand (hidden): 7 of 8 channels open"
    assert "  project.weight, dimension 1: 1 slice per channel" in others


def test_slices_of_a_flattened_channel() -> None:
    group = compress(Convolutional(), torch.randn(2, 3, 8, 8)).groups["stem"]
    assert "  head.weight, dimension 1: 16 slices per channel" in group.describe().splitlines()


def test_closing_what_cannot_be_closed() -> None:
    group = compress(Convolutional(), torch.randn(2, 3, 8, 8)).groups["expand"]
    for indices, message in (([8], "channels \\[8\\] do not exist"), (range(8), "at least one of 8")):
        with pytest.raises(DjpqError, match=f"Channel group 'expand': .*{message}"):
            group.close(indices)
    assert group.open_channels == tuple(range(8))
