# SPDX-License-Identifier: Apache-2.0
"""From a network with attention to its file: compressed with random bits, compared sample by sample."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from djpq_nncf import create_compressed_model
from djpq_nncf.algorithms.djpq import DJPQController
from djpq_nncf.export._runtime import open_runtime
from tests.hardware import OVERFLOW_FIX


def compress(
    model: nn.Module,
    *inputs: Tensor,
    bits: Iterable[int] = range(3, 9),
    quantized: bool = True,
    overflow_fix: str = OVERFLOW_FIX,
) -> DJPQController:
    """A frozen network, nothing pruned, whose quantizers have bit-widths drawn from ``bits``."""
    quantization = {"enabled": quantized, "beta": 0.0, "overflow_fix": overflow_fix}
    djpq = {"pruning": {"enabled": not quantized, "gamma": 0.0}, "quantization": quantization}
    if quantized:
        del djpq["pruning"]["gamma"]
    config = {"compression": {"algorithm": "djpq", **djpq}}
    batch = inputs[0] if len(inputs) == 1 else dict(zip(_arguments(model), inputs, strict=True))
    controller, _ = create_compressed_model(model.eval(), config, init_data=[batch])
    assert isinstance(controller, DJPQController)
    generator, choices = random.Random(0), list(bits)
    for quantizer in controller._bits.quantizers.values():
        if quantizer.bits is None:
            quantizer.initialize_(float(quantizer.range().detach()), generator.choice(choices))
    controller.freeze()
    return controller


def _arguments(model: nn.Module) -> Sequence[str]:
    code = model.forward.__code__
    return code.co_varnames[1 : code.co_argcount]


@torch.no_grad()
def share_of_equal_samples(path: Path, stripped: GraphModule, inputs: Sequence[Tensor]) -> float:
    """The share of samples for which a file computes the same.

    Runtimes differ in the last bit of an exponential or a mean, and a value on the border between two codes then falls
    to either side: in some samples, and from there on they differ.
    """
    expected = stripped(*inputs).numpy()
    (actual,) = open_runtime(path).run([x.numpy() for x in inputs])
    difference = np.abs(expected - actual).reshape(len(expected), -1).max(axis=1)
    return float((difference < 1e-5 * np.ptp(expected)).mean())
