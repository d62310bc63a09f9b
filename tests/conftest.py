# SPDX-License-Identifier: Apache-2.0
"""What holds for all tests: one thread, and the same random numbers in every run."""

from collections.abc import Iterator

import pytest
import torch


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


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
