# SPDX-License-Identifier: Apache-2.0
"""Small networks, one for each way in which channels depend on each other, and random states for them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from djpq_nncf.algorithms.djpq import CompressedNetwork, DJPQSettings, insert_gates_and_quantizers
from djpq_nncf.algorithms.djpq._initialization import initialize_activation_ranges, initialize_weight_ranges
from djpq_nncf.capture import capture
from djpq_nncf.config import NNCFConfig
from djpq_nncf.nn import Gate
from djpq_nncf.passes import kept_channels, remove

SIZE = 8
"""Height and width of the images that the small networks take."""


def images(batch: int = 2, size: int = SIZE, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def settings_of(**djpq: Any) -> DJPQSettings:
    """Settings of a config with these entries."""
    config = NNCFConfig.from_dict({"compression": {"algorithm": "djpq", **djpq}})
    return DJPQSettings.from_dict(config.algorithms[0])


def insert_into(model: nn.Module, *example: Tensor, **djpq: Any) -> CompressedNetwork:
    """Capture and insert gates and quantizers, without a controller."""
    return insert_gates_and_quantizers(capture(model.eval(), example), settings_of(**djpq))


PRUNING_ONLY: dict[str, Any] = {"quantization": {"enabled": False}}
QUANTIZATION_ONLY: dict[str, Any] = {"pruning": {"enabled": False}}


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorm parameters and statistics that map zero to something else; biases likewise."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            module.bias.normal_(0, 0.3, generator=generator)
    return model


@torch.no_grad()
def random_gates(gates: Mapping[str, Gate], seed: int, *, nearly_all: bool) -> None:
    """Open every gate anew, draw its means, and close some of its channels: at least one, or all but one or two."""
    generator = torch.Generator().manual_seed(seed)
    for gate in gates.values():
        gate.open.fill_(True)
        sign = torch.randint(0, 2, (gate.size,), generator=generator) * 2 - 1
        gate.mu.copy_((torch.rand(gate.size, generator=generator) + 0.5) * sign)
        if nearly_all:
            count = gate.size - int(torch.randint(1, 3, (), generator=generator))
        else:
            count = int(torch.randint(1, gate.size, (), generator=generator)) if gate.size > 1 else 0
        gate.close(torch.randperm(gate.size, generator=generator)[: max(count, 0)])


@torch.no_grad()
def open_gates(gates: Mapping[str, Gate]) -> None:
    """As they are inserted: every channel open, every factor one."""
    for gate in gates.values():
        gate.open.fill_(True)
        gate.mu.fill_(1.0)
        gate.close([])  # says that all are open


def other_batch(inputs: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
    """Random inputs with another number of samples; indices stay within those of the example."""
    generator = torch.Generator().manual_seed(size)

    def draw(example: Tensor) -> Tensor:
        shape = (size, *example.shape[1:])
        if example.is_floating_point():
            return torch.randn(shape, generator=generator).to(example.dtype)
        return torch.randint(0, int(example.max()) + 1, shape, generator=generator)

    return tuple(draw(example) for example in inputs)


def kept_by_hand(network: CompressedNetwork) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters and buffers without the channels closed now, counted index by index."""
    closed = {
        group.channels[position]
        for name, group in network.analysis.groups.items()
        for position, is_open in enumerate(network.gates[name].open.tolist())
        if not is_open
    }
    shapes = {}
    for name, value in network.model.state_dict().items():
        if not name.startswith("compression"):
            known = network.analysis.parameter_labels.get(name, [None] * value.dim())
            shapes[name] = tuple(
                size if ids is None else sum(closed.isdisjoint(index) for index in ids.tolist())
                for size, ids in zip(value.shape, known, strict=True)
            )
    return shapes


def strip(network: CompressedNetwork) -> GraphModule:
    """The network without the channels that are closed now."""
    return remove(network.model, network.analysis, kept_channels(network.analysis, network.gates))


@torch.no_grad()
def assert_same_outputs(
    expected: nn.Module,
    actual: nn.Module,
    *inputs: Tensor,
    tolerance: float = 1e-9,
    may_be_constant: bool = False,
) -> None:
    """Two networks compute the same in eval mode, relative to the largest output.

    The tolerance is for double precision: what differs there is wrong, not rounded. Constant outputs would prove
    little, so that they have to be allowed.
    """
    outputs = tree_leaves(expected.eval()(*inputs))
    others = tree_leaves(actual.eval()(*inputs))
    assert len(outputs) == len(others)
    for one, other in zip(outputs, others, strict=True):
        assert other.shape == one.shape
        assert one.isfinite().all()
        assert may_be_constant or one.std() > 0
        assert (other - one).abs().max() <= tolerance * one.abs().max()


@torch.no_grad()
def random_bits(network: CompressedNetwork, seed: int, calibration: Tensor) -> None:
    """Give every quantizer a range that fits the data and a fixed bit-width from 2 to 8."""
    initializer = settings_of(initializer={"range": {"type": "min_max"}}).initializer
    initialize_weight_ranges(network.model, network.weight_quantizers, 8, initializer)
    initialize_activation_ranges(network.model, network.activation_quantizers, 8, [calibration], initializer)
    generator = torch.Generator().manual_seed(seed)
    for quantizer in (*network.weight_quantizers.values(), *network.activation_quantizers.values()):
        quantizer.fix_bits(int(torch.randint(2, 9, (), generator=generator)))


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outputs)
    )


class Plain(nn.Module):
    """Convolutions in a row, then a linear layer on the flattened 4 x 4 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(8 * (SIZE // 2) ** 2, 12)
        self.dropout = nn.Dropout(0.2)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.pool(torch.tanh(self.conv2(x)))
        return self.fc2(self.dropout(F.silu(self.fc1(x.flatten(1)))))


class IdentityResidual(nn.Module):
    """A block whose sum ties the stem with the block's last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 7, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.relu(x + y).mean((2, 3)))


class ProjectionResidual(nn.Module):
    """A block whose shortcut is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.bn3(self.shortcut(x))
        return self.fc(F.adaptive_avg_pool2d(F.relu(y), 1).flatten(1))


class Bottleneck(nn.Module):
    """Narrow, convolve, widen, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 8)
        self.reduce = _conv_bn(8, 4, 1)
        self.middle = _conv_bn(4, 5)
        self.expand = _conv_bn(5, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.expand(F.relu(self.middle(F.relu(self.reduce(x)))))
        return self.fc(x.mean((2, 3)))


class DepthwiseSeparable(nn.Module):
    """A depthwise convolution with two outputs for each input channel, between pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = _conv_bn(3, 6, 1)
        self.depthwise = _conv_bn(6, 12, 3, groups=6)
        self.project = _conv_bn(12, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        return self.fc(self.project(x).mean((2, 3)))


class Grouped(nn.Module):
    """Two convolution groups, which stay equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.grouped(F.relu(self.stem(x)))).mean((2, 3)))


class Concat(nn.Module):
    """Two producers in front of one consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.join = nn.Conv2d(10, 5, 3, padding=1)
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.fc(F.relu(self.join(x)).mean((2, 3)))


class ConcatSplit(nn.Module):
    """What was joined from 4 and 6 channels is parted into 3 and 7."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(7, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        a, b = torch.sigmoid(x).split([3, 7], 1)
        return self.fc((self.first(a) * self.second(b)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels scaled by what two convolutions make of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv_bn(3, 8)
        self.squeeze = nn.Conv2d(8, 3, 1)
        self.excite = nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc((x * scale).mean((2, 3)))


class PreActivation(nn.Module):
    """BatchNorm between the concatenation and its consumer, as in DenseNet: closed channels do not stay zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(10)
        self.conv2 = nn.Conv2d(10, 5, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        y = self.conv1(F.relu(self.bn1(x)))
        x = self.conv2(F.relu(self.bn2(torch.cat([x, y], 1))))
        return self.fc(F.relu(self.bn3(x)).mean((2, 3)))


class SharedWeight(nn.Module):
    """One convolution applied to its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.stem(x))))
        return self.fc(F.relu(self.shared(x)).mean((2, 3)))


class SharedNorm(nn.Module):
    """One BatchNorm behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.a = nn.Conv2d(6, 4, 1)
        self.b = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.left(x)), self.norm(self.right(x))
        return self.fc(torch.cat([self.a(F.relu(a)), self.b(F.relu(b))], 1).mean((2, 3)))


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: strided slices, and zeros for the channels that are new."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 6)
        self.conv1 = _conv_bn(6, 10, stride=2)
        self.conv2 = _conv_bn(10, 10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut).mean((2, 3)))


class Movement(nn.Module):
    """Channels through views, permutations, slices, upsampling, a learned scale and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1))
        self.prelu = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.conv2 = nn.Conv2d(4, 7, 1)
        self.conv3 = nn.Conv2d(2, 7, 1)
        self.mixer = nn.Linear(7, 9)
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.prelu(self.conv1(x) * self.scale), scale_factor=2.0)
        x = self.up(x)
        x = self.conv2(x[:, 2:]) + self.conv3(x[:, :2])
        x = x.view(x.shape[0], 7, -1).permute(0, 2, 1)
        x = F.gelu(self.mixer(x))
        return self.fc(x.transpose(1, 2).reshape(-1, 9, 16, 16).amax((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "identity_residual": IdentityResidual,
    "projection_residual": ProjectionResidual,
    "bottleneck": Bottleneck,
    "depthwise_separable": DepthwiseSeparable,
    "grouped": Grouped,
    "concat": Concat,
    "concat_split": ConcatSplit,
    "squeeze_excite": SqueezeExcite,
    "pre_activation": PreActivation,
    "shared_weight": SharedWeight,
    "shared_norm": SharedNorm,
    "padded_shortcut": PaddedShortcut,
    "movement": Movement,
}


FEW_INVERTED_RESIDUALS = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 96, 1, 1]]
"""Stages of a short MobileNetV2: expansion, width, blocks, stride."""


class VGG7(nn.Sequential):
    """The paper's network for CIFAR-10, 2 x 128C3 - MP - 2 x 256C3 - MP - 2 x 512C3 - MP - 1024FC - 10."""

    def __init__(self, width: int = 128) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for outputs in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [*_conv_bn(channels, outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Linear(16 * channels, 8 * width), nn.ReLU(), nn.Linear(8 * width, 10)]
        super().__init__(*layers)
