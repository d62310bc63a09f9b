# SPDX-License-Identifier: Apache-2.0
"""However the element-wise work is done - in pieces, in any memory layout, compiled - the result is the same."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from djpq_nncf.nn import ActivationQuantizer, WeightQuantizer, _loops, quantize_activation, quantize_weight
from tests.nn.helpers import learned_quantize


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "part of another": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("exponent", [None, 0.8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_make_no_difference(layout: str, exponent: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 5, generator=generator, dtype=torch.float64)
    upstream = (
        torch.randn(2, 3, 8, 5, generator=generator, dtype=torch.float64).transpose(0, 1).contiguous().transpose(0, 1)
    )

    def run(values: Tensor, piece: int) -> list[Tensor]:
        monkeypatch.setattr("djpq_nncf.nn._loops._PIECE", piece)
        values = values.detach().requires_grad_()
        scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.07, 0.9)]
        t = None if exponent is None else torch.tensor(exponent, dtype=torch.float64, requires_grad=True)
        result = learned_quantize(values, *scalars, t, 0.0 if t is None else torch.tensor(0.01, dtype=torch.float64))
        wanted = [values, *scalars, *([] if t is None else [t])]
        return [result, *torch.autograd.grad(result, wanted, upstream)]

    for one, other in zip(run(x, 10**6), run(LAYOUTS[layout](x), 7), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(5,), (1,), (5, 1, 1), (4, 5, 1, 1)], ids=str)
@pytest.mark.parametrize("exponent", [None, 0.8])
def test_gate_in_the_quantizer_is_the_gate_before_it(shape: tuple[int, ...], exponent: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 5, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(shape if len(shape) > 2 else (*shape, 1, 1), generator=generator, dtype=torch.float64)
    gate.requires_grad_()
    upstream = torch.randn(4, 5, 3, 2, generator=generator, dtype=torch.float64)
    t = None if exponent is None else scalar(exponent)
    grid = [scalar(0.07), scalar(0.9), *([] if t is None else [t])]
    small = torch.tensor(0.01, dtype=torch.float64)

    def run(result: Tensor) -> list[Tensor]:
        return [result, *torch.autograd.grad(result, [weight, gate, *grid], upstream)]

    inside = run(quantize_weight(weight, grid[0], grid[1], t, small, gate))
    before = run(quantize_weight(weight * gate, grid[0], grid[1], t, small))
    for one, other in zip(inside, before, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_is_eager(dtype: torch.dtype) -> None:
    if _loops.Loop.compiler_works is False:
        pytest.skip("no compiler here")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 30, 5, 5, generator=generator).to(dtype)
    x[0, 0, 0, :4] = torch.tensor([0.0, -0.0, 0.01, 0.9])
    gate = torch.randn(30, 1, 1, generator=generator)
    upstream = torch.randn(6, 30, 5, 5, generator=generator).to(dtype)

    def run(*, compiled: bool) -> list[Tensor]:
        results: list[Tensor] = []
        for kind in ("activation", "weight", "gated weight"):
            values, factors = x.clone().requires_grad_(), gate.clone().requires_grad_()
            grid = [torch.tensor(value, requires_grad=True) for value in (0.07, 0.9, 0.8)]
            if kind == "activation":
                result = quantize_activation(values, grid[0], -grid[2], grid[1], compiled=compiled)
            else:
                small = torch.tensor(0.01)
                result = quantize_weight(
                    values, *grid, small, factors if kind == "gated weight" else None, compiled=compiled
                )
            wanted = [values, *grid, *([factors] if kind == "gated weight" else [])]
            results += [result, *torch.autograd.grad(result, wanted, upstream)]
        return results

    for one, other in zip(run(compiled=True), run(compiled=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3 if dtype == torch.float32 else 1e-2, atol=1e-4)
    assert _loops.Loop.compiler_works


def test_without_a_compiler_it_runs_eagerly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no C++ compiler found\nand more lines")

    monkeypatch.setattr(_loops.Loop, "compiler_works", True)
    for loop in (_loops.clamp_and_round, _loops.map_and_round):
        monkeypatch.setattr(loop, "_compiled", fail)
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        for quantizer in (ActivationQuantizer("symmetric"), WeightQuantizer(learn_exponent=True)):
            expected = quantizer(x)
            quantizer.compiled = True
            torch.testing.assert_close(quantizer(x), expected)
    (record,) = caplog.records
    assert "no C++ compiler found" in record.getMessage()
    assert "more lines" not in record.getMessage()


def test_many_layouts_in_one_process_stay_compiled() -> None:
    """torch gives up after eight, which a few networks exceed, and runs the function as it is from then on."""
    interpreted = 0

    def function(x: Tensor) -> Tensor:
        nonlocal interpreted
        if not torch.compiler.is_compiling():
            interpreted += 1
        return x + 1

    loop = _loops.Loop(function, elementwise=1)
    for dimensions in range(1, 11):
        x = torch.randn((2,) * dimensions)
        torch.testing.assert_close(loop(x, compiled=True), x + 1)
    assert _loops.Loop.compiler_works and not interpreted
