# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests: one thread, and the same random numbers in every run."""

import copy
import functools
from collections.abc import Iterator

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--zoo",
        choices=("small", "full"),
        help="tests/zoo: all architectures, in a small form or as published (default: a small one of each family)",
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def onnx_operators_read_once() -> Iterator[None]:
    """torch parses the sources of 500 functions in each export to ONNX: half of what a small network takes."""
    read = functools.cache(ONNXRegistry.from_torchlib)

    def copied(_: type[ONNXRegistry], opset_version: int) -> ONNXRegistry:
        registry = copy.copy(read(opset_version))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", classmethod(copied))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
