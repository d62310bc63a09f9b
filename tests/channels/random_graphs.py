# SPDX-License-Identifier: Apache-2.0
"""Random networks out of pieces that move, mix, part and join channels, as programs to be read and run again.

Every value is [batch, channels, 4, 4]. A piece takes some of those made before and makes one or more.
"""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

T = TypeVar("T")

INPUT_CHANNELS = 3
MOST_CHANNELS = 16


@dataclass(frozen=True)
class Value:
    """A tensor of the program: its name and number of channels."""

    name: str
    channels: int

    def __str__(self) -> str:
        return self.name


class Draft:
    """A program in the making."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw
        self.values = [Value("x", INPUT_CHANNELS)]
        self.layers: dict[str, str] = {}
        self.lines: list[str] = []
        self.read: set[Value] = set()

    def choose(self, *options: T) -> T:
        return self._draw(st.sampled_from(options)) if len(options) > 1 else options[0]  # type: ignore[no-any-return]

    def between(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))  # type: ignore[no-any-return]

    def value(self, channels: int | None = None) -> Value | None:
        """One of the latest values, with this number of channels if it is given."""
        fitting = [value for value in self.values[1:] if channels in (None, value.channels)]
        if not fitting:
            return None
        chosen = self.choose(*reversed(fitting[-4:]))
        self.read.add(chosen)
        return chosen

    def divisor(self, number: int, *, least: int = 1) -> int | None:
        """A divisor, if there is one from ``least`` on."""
        divisors = [i for i in range(least, number + 1) if number % i == 0]
        return self.choose(*divisors) if divisors else None

    def layer(self, constructor: str) -> str:
        name = f"l{len(self.layers)}"
        self.layers[name] = constructor
        return f"self.{name}"

    def let(self, expression: str, channels: int) -> None:
        self.values.append(Value(f"v{len(self.values)}", channels))
        self.lines.append(f"{self.values[-1]} = {expression}")

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Forget what a piece read if it made nothing of it."""
        read, made = set(self.read), len(self.values)
        yield
        if len(self.values) == made:
            self.read = read


Piece = Callable[[Draft, Value], None]

PIECES: list[Piece] = []


def piece(function: Piece) -> Piece:
    PIECES.append(function)
    return function


def convolution(d: Draft, v: Value) -> None:
    kernel, outputs, bias = d.choose(1, 3), d.choose(8, 6, 4, 12, 3, 5), d.choose(True, False)
    layer = d.layer(f"nn.Conv2d({v.channels}, {outputs}, {kernel}, padding={kernel // 2}, bias={bias})")
    d.let(f"{layer}({v})", outputs)


@piece
def grouped_convolution(d: Draft, v: Value) -> None:
    groups = d.divisor(v.channels, least=2)
    if groups is not None:
        outputs = groups * d.between(1, min(3, MOST_CHANNELS // groups))
        kind, kernel = d.choose("Conv2d", "ConvTranspose2d"), d.choose(1, 3)
        layer = d.layer(f"nn.{kind}({v.channels}, {outputs}, {kernel}, padding={kernel // 2}, groups={groups})")
        d.let(f"{layer}({v})", outputs)


@piece
def normalisation(d: Draft, v: Value) -> None:
    kind = d.choose("batch", "group", "instance", "layer", "rms", "unit", "softmax")
    if kind == "group":
        d.let(f"{d.layer(f'nn.GroupNorm({d.divisor(v.channels)}, {v.channels})')}({v})", v.channels)
    elif kind in ("batch", "instance"):
        name = {"batch": "BatchNorm2d", "instance": "InstanceNorm2d"}[kind]
        d.let(f"{d.layer(f'nn.{name}({v.channels}, affine=True)')}({v})", v.channels)
    elif kind == "layer":
        layer = d.layer(f"nn.LayerNorm({v.channels})")
        d.let(f"{layer}({v}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", v.channels)
    elif kind == "rms":
        d.let(f"{v} * torch.rsqrt({v}.pow(2).mean(1, keepdim=True) + 0.1)", v.channels)
    elif kind == "unit":
        d.let(f"F.normalize({v}, dim=1, eps=0.1)", v.channels)
    else:
        d.let(f"{v}.softmax(1)", v.channels)


@piece
def activation(d: Draft, v: Value) -> None:
    function = d.choose("torch.sigmoid", "torch.tanh", "F.silu", "F.gelu", "torch.cos", "F.relu")
    d.let(f"{function}({v})", v.channels)


@piece
def pooling(d: Draft, v: Value) -> None:
    d.let(
        d.choose(
            f"F.avg_pool2d({v}, 3, 1, 1)",
            f"F.max_pool2d({v}, 3, 1, 1)",
            f"F.interpolate(F.avg_pool2d({v}, 2), scale_factor=2)",
            f"F.interpolate(F.adaptive_avg_pool2d({v}, 1), size=(4, 4), mode='bilinear')",
        ),
        v.channels,
    )


@piece
def learned_scale(d: Draft, v: Value) -> None:
    shape = d.choose(f"{v.channels}, 1, 1", f"1, {v.channels}, 1, 1", f"{v.channels}, 4, 4")
    parameter = d.layer(f"nn.Parameter(torch.randn({shape}))")
    d.let(f"{v} {d.choose('*', '+')} {parameter}", v.channels)


@piece
def combination(d: Draft, v: Value) -> None:
    other = d.value(v.channels)
    if other is not None:
        kinds = ("{0} + {1}", "{0} * {1}", "{0} * torch.sigmoid({1})", "torch.maximum({0}, {1})")
        d.let(d.choose(*kinds).format(v, other), v.channels)


@piece
def residual(d: Draft, v: Value) -> None:
    outside, inside = (d.layer(f"nn.Conv2d({v.channels}, {v.channels}, 1)") for _ in range(2))
    d.let(f"{v} + {outside}(torch.tanh({inside}({v})))", v.channels)


@piece
def bottleneck(d: Draft, v: Value) -> None:
    width = d.between(2, 6)
    narrow, wide = d.layer(f"nn.Conv2d({v.channels}, {width}, 1)"), d.layer(f"nn.Conv2d({width}, {v.channels}, 1)")
    d.let(f"{v} + {wide}(F.gelu({narrow}({v})))", v.channels)


@piece
def shared_layer(d: Draft, v: Value) -> None:
    """The same weight on its own output."""
    layer = d.layer(f"nn.Conv2d({v.channels}, {v.channels}, 3, padding=1)")
    d.let(f"{layer}(F.silu({layer}({v})))", v.channels)


@piece
def concatenation(d: Draft, v: Value) -> None:
    other = d.value()
    assert other is not None
    if v.channels + other.channels <= MOST_CHANNELS:
        cut = d.between(0, v.channels)
        parts = f"{v}[:, :{cut}], {other}, {v}[:, {cut}:]" if 0 < cut < v.channels else f"{v}, {other}"
        d.let(f"torch.cat([{parts}], 1)", v.channels + other.channels)


@piece
def split(d: Draft, v: Value) -> None:
    if v.channels > 1:
        cut = d.between(1, v.channels - 1)
        d.let(f"{v}.split([{cut}, {v.channels - cut}], 1)[0]", cut)
        d.let(d.choose(f"{v}[:, {cut}:]", f"{v}.split([{cut}, {v.channels - cut}], 1)[1]"), v.channels - cut)


@piece
def chunks(d: Draft, v: Value) -> None:
    if v.channels % 2 == 0:
        d.let(
            d.choose("F.glu({0}, 1)", "{0}.chunk(2, 1)[0] * torch.tanh({0}.chunk(2, 1)[1])").format(v), v.channels // 2
        )


@piece
def strided_slice(d: Draft, v: Value) -> None:
    if v.channels > 1:
        step = d.between(2, 3)
        start = d.between(0, min(step, v.channels) - 1)
        d.let(f"{v}[:, {start}::{step}]", len(range(start, v.channels, step)))


@piece
def one_for_all(d: Draft, v: Value) -> None:
    other = d.value()
    assert other is not None
    single = d.between(0, other.channels - 1)
    taken = d.choose(f"{other}[:, {single}:{single + 1}]", f"{other}[:, {single}].unsqueeze(1)")
    d.let(f"{v} * torch.sigmoid({taken})", v.channels)


@piece
def other_order(d: Draft, v: Value) -> None:
    groups = d.divisor(v.channels)
    d.let(
        d.choose(
            f"{v}.unflatten(1, ({groups}, -1)).transpose(1, 2).flatten(1, 2)",
            f"{v}.view(-1, {groups}, {v.channels // (groups or 1)}, 4, 4).transpose(1, 2).reshape(-1, {v.channels}, 4, 4)",  # noqa: E501
            f"F.channel_shuffle({v}, {groups})",
            f"{v}.flip(1)",
            f"{v}.roll({groups}, 1)",
        ),
        v.channels,
    )


@piece
def copies(d: Draft, v: Value) -> None:
    if 2 * v.channels <= MOST_CHANNELS:
        kind = d.choose(
            "repeat(1, 2, 1, 1)", "repeat_interleave(2, 1)", "unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2)"
        )
        d.let(f"{v}.{kind}", 2 * v.channels)


@piece
def padding(d: Draft, v: Value) -> None:
    before, after = d.between(0, 2), d.between(0, 2)
    if before + after and v.channels + before + after <= MOST_CHANNELS:
        d.let(f"F.pad({v}, (0, 0, 0, 0, {before}, {after}), value=0.5)", v.channels + before + after)


@piece
def torn_reduction(d: Draft, v: Value) -> None:
    heads = d.divisor(v.channels, least=2)
    if heads is not None and heads < v.channels:
        dim = d.choose(1, 2)
        d.let(f"{v}.unflatten(1, ({heads}, -1)).{d.choose('amax', 'mean', 'sum')}({dim})",
              v.channels // heads if dim == 1 else heads)  # fmt: skip


@piece
def torn_softmax(d: Draft, v: Value) -> None:
    heads = d.divisor(v.channels)
    d.let(f"{v}.unflatten(1, ({heads}, -1)).softmax({d.choose(1, 2)}).flatten(1, 2)", v.channels)


@piece
def torn_parts(d: Draft, v: Value) -> None:
    """Heads apart, one of them changed, and together again in some order."""
    heads = d.divisor(v.channels, least=2)
    if heads is not None:
        changed, back = (
            d.between(0, heads - 1),
            d.choose("cat({}, 1)", "stack({}, 1).flatten(1, 2)", "stack({}, 2).flatten(1, 2)"),
        )
        parts = (
            f"[torch.tanh(p) if i == {changed} else p for i, p in enumerate({v}.unflatten(1, ({heads}, -1)).unbind(1))]"
        )
        d.let("torch." + back.format(parts), v.channels)


@piece
def torn_scale(d: Draft, v: Value) -> None:
    """A number for each head, or for each position in one."""
    heads = d.divisor(v.channels)
    assert heads is not None
    shape = d.choose(f"{heads}, 1, 1, 1", f"1, {v.channels // heads}, 1, 1")
    parameter = d.layer(f"nn.Parameter(torch.randn({shape}))")
    d.let(f"({v}.unflatten(1, ({heads}, -1)) * {parameter}).flatten(1, 2)", v.channels)


@piece
def recalibration(d: Draft, v: Value) -> None:
    kind = d.choose("squeeze", "neighbours", "map")
    if kind == "squeeze":
        width = d.between(2, 4)
        squeeze, excite = d.layer(f"nn.Linear({v.channels}, {width})"), d.layer(f"nn.Linear({width}, {v.channels})")
        d.let(f"{v} * torch.sigmoid({excite}(torch.tanh({squeeze}({v}.mean((2, 3))))))[:, :, None, None]", v.channels)
    elif kind == "neighbours":
        layer = d.layer("nn.Conv1d(1, 1, 3, padding=1, bias=False)")
        d.let(f"{v} * torch.sigmoid({layer}({v}.mean((2, 3)).unsqueeze(1))).squeeze(1)[:, :, None, None]", v.channels)
    else:
        layer = d.layer("nn.Conv2d(2, 1, 3, padding=1)")
        maps = f"torch.cat([{v}.mean(1, keepdim=True), {v}.amax(1, keepdim=True)], 1)"
        d.let(f"{v} * torch.sigmoid({layer}({maps}))", v.channels)


@piece
def selective_kernels(d: Draft, v: Value) -> None:
    other = d.value(v.channels)
    if other is not None:
        layer = d.layer(f"nn.Linear({v.channels}, {2 * v.channels})")
        shares = f"{layer}(({v} + {other}).mean((2, 3))).reshape(-1, 2, {v.channels}, 1, 1).softmax(1)"
        d.let(f"(torch.stack([{v}, {other}], 1) * {shares}).sum(1)", v.channels)


@piece
def attention(d: Draft, v: Value) -> None:
    """Positions attend to each other."""
    heads, width, value_width = d.between(1, 3), d.between(1, 4), d.between(1, 4)
    form = d.choose("fused", "separate", "one operator", "in the batch", "einsum", "linear", "shared keys")
    sequence = f"{v}.flatten(2).transpose(1, 2)"
    if form == "fused":
        layer = d.layer(f"nn.Linear({v.channels}, {3 * heads * width})")
        torn = f"{layer}({sequence}).reshape(-1, 16, 3, {heads}, {width}).permute(2, 0, 3, 1, 4).unbind(0)"
        d.lines.append(f"q, k, v = {torn}")
        value_width = width
    else:
        shared = 1 if form == "shared keys" else heads
        for name, count, size in (("q", heads, width), ("k", shared, width), ("v", shared, value_width)):
            layer = d.layer(f"nn.Linear({v.channels}, {count * size})")
            d.lines.append(f"{name} = {layer}({sequence}).view(-1, 16, {count}, {size}).transpose(1, 2)")
    scores = "q @ k.transpose(2, 3)"
    mixed = {
        "one operator": "F.scaled_dot_product_attention(q, k, v)",
        "in the batch": "torch.bmm(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).softmax(-1), "
        f"v.flatten(0, 1)).unflatten(0, (-1, {heads}))",
        "einsum": "torch.einsum('bhqk,bhkd->bhqd', torch.einsum('bhqd,bhkd->bhqk', q, k).softmax(-1), v)",
        "linear": "q.softmax(-1) @ (k.softmax(-2).transpose(2, 3) @ v)",
    }.get(form, f"({scores}).softmax(-1) @ v")
    d.lines.append(f"y = ({mixed}).transpose(1, 2).reshape(-1, 16, {heads * value_width})")
    if heads * value_width == v.channels and d.choose(True, False):
        d.let(f"{v} + y.transpose(1, 2).unflatten(2, (4, 4))", v.channels)
    elif d.choose(True, False):
        layer = d.layer(f"nn.Linear({heads * value_width}, {v.channels})")
        d.let(f"{v} + {layer}(y).transpose(1, 2).unflatten(2, (4, 4))", v.channels)
    else:
        d.let("y.transpose(1, 2).unflatten(2, (4, 4))", heads * value_width)


@piece
def channel_attention(d: Draft, v: Value) -> None:
    """Channels of one value attend to those of another."""
    other = d.value()
    assert other is not None
    product = d.choose("torch.einsum('bchw,bdhw->bcd', {0}, {1})", "{0}.flatten(2) @ {1}.flatten(2).transpose(1, 2)")
    d.let(f"(({product.format(v, other)}).softmax(-1) @ {other}.flatten(2)).unflatten(2, (4, 4))", v.channels)


@piece
def in_the_batch(d: Draft, v: Value) -> None:
    """Every channel, or every group of them, as a sample."""
    groups = d.divisor(v.channels)
    assert groups is not None
    outputs = d.between(1, max(1, MOST_CHANNELS // groups // 2))
    layer = d.layer(f"nn.Conv2d({v.channels // groups}, {outputs}, 3, padding=1)")
    d.let(f"torch.tanh({layer}({v}.reshape(-1, {v.channels // groups}, 4, 4))).reshape(-1, {groups * outputs}, 4, 4)",
          groups * outputs)  # fmt: skip


@piece
def mixed_positions(d: Draft, v: Value) -> None:
    """From here on positions are channels too."""
    form = d.choose("columns", "rows", "all", "convolved")
    if form == "columns":
        d.let(f"{d.layer('nn.Linear(4, 4)')}({v})", v.channels)
    elif form == "rows":
        d.let(f"{d.layer('nn.Linear(4, 4)')}({v}.transpose(2, 3)).transpose(2, 3)", v.channels)
    elif form == "all":
        d.let(f"{d.layer('nn.Linear(16, 16)')}({v}.flatten(2)).unflatten(2, (4, 4))", v.channels)
    else:
        layer = d.layer("nn.Conv2d(4, 4, 3, padding=1)")
        d.let(f"{layer}({v}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", v.channels)


@piece
def turned(d: Draft, v: Value) -> None:
    """Four channels are as good as four rows."""
    if v.channels == 4:
        d.let(f"{v}.permute({d.choose('0, 2, 1, 3', '0, 3, 1, 2', '0, 2, 3, 1', '0, 1, 3, 2')})", 4)


@piece
def flattened(d: Draft, v: Value) -> None:
    outputs = d.between(1, 4)
    layer = d.layer(f"nn.Linear({16 * v.channels}, {16 * outputs})")
    order = d.choose("", ".permute(0, 2, 3, 1)")
    d.let(f"{layer}({v}{order}.flatten(1)).view(-1, {outputs}, 4, 4)", outputs)


@piece
def pixels(d: Draft, v: Value) -> None:
    if v.channels % 4 == 0 and d.choose(True, False):
        d.let(f"F.avg_pool2d(F.pixel_shuffle({v}, 2), 2)", v.channels // 4)
    elif 4 * v.channels <= MOST_CHANNELS:
        d.let(f"F.interpolate(F.pixel_unshuffle({v}, 2), scale_factor=2)", 4 * v.channels)


@piece
def outer_product(d: Draft, v: Value) -> None:
    other = d.value()
    assert other is not None
    if v.channels * other.channels <= MOST_CHANNELS:
        d.let(f"({v}[:, :, None] * {other}[:, None]).flatten(1, 2)", v.channels * other.channels)


@piece
def parameter_product(d: Draft, v: Value) -> None:
    outputs = d.between(2, 6)
    if d.choose(True, False):
        matrix = d.layer(f"nn.Parameter(torch.randn({v.channels}, {outputs}))")
        d.let(f"({v}.permute(0, 2, 3, 1) @ {matrix}).permute(0, 3, 1, 2)", outputs)
    else:
        matrix = d.layer(f"nn.Parameter(torch.randn({outputs}, {v.channels}))")
        d.let(f"torch.einsum('bchw,dc->bdhw', {v}, {matrix})", outputs)


@piece
def without_rule(d: Draft, v: Value) -> None:
    d.let(f"{v}.cumsum(1)", v.channels)


HEADS = (*3 * ("pooled",), *2 * ("flattened",), *3 * ("convolved",), "as it is")


def finish(d: Draft) -> list[str]:
    """What nothing reads is the output: through a last layer, or as it is."""
    unread = [value for value in d.values[1:] if value not in d.read]
    outputs = []
    for value in unread:
        kind = d.choose(*HEADS)
        if kind == "pooled":
            outputs.append(f"{d.layer(f'nn.Linear({value.channels}, 3)')}({value}.mean((2, 3)))")
        elif kind == "flattened":
            outputs.append(f"{d.layer(f'nn.Linear({16 * value.channels}, 3)')}({value}.flatten(1))")
        elif kind == "convolved":
            outputs.append(f"{d.layer(f'nn.Conv2d({value.channels}, 3, 1)')}({value})")
        else:
            outputs.append(str(value))
    return outputs


class RandomNetwork(nn.Module):
    """A program; its text is what a failing test prints."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        namespace: dict[str, Any] = {"nn": nn, "torch": torch, "F": F}
        exec(source, namespace)
        namespace["build"](self)
        self._forward = namespace["forward"]

    def forward(self, x: torch.Tensor) -> Any:
        return self._forward(self, x)

    def __repr__(self) -> str:
        return f"\n{self.source}"


@st.composite
def networks(draw: Callable[[st.SearchStrategy[Any]], Any], most_pieces: int = 6) -> RandomNetwork:
    """Random networks that start with a convolution."""
    d = Draft(draw)
    convolution(d, d.values[0])
    for _ in range(d.between(most_pieces // 2, most_pieces)):
        with d.trial():
            source = d.value()
            assert source is not None
            if d.choose(*3 * (False,), True):
                convolution(d, source)  # else little would be left that can go
            else:
                d.choose(*PIECES)(d, source)
    outputs = finish(d)
    built = "\n".join(f"self.{name} = {constructor}" for name, constructor in d.layers.items())
    lines = "\n".join([*d.lines, f"return {', '.join(outputs)},"])
    source = f"def build(self):\n{textwrap.indent(built, '    ')}\n\ndef forward(self, x):\n{textwrap.indent(lines, '    ')}\n"  # noqa: E501
    torch.manual_seed(0)
    return RandomNetwork(source)
