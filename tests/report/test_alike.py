# SPDX-License-Identifier: Apache-2.0
"""Paths that differ in numbers only, told once."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from djpq_nncf.report._alike import Alike, collapse, merge_alike


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (["a.0", "a.1", "a.2"], ["a.{0-2}"]),
        (["a.2", "b", "a.0", "a.1", "a.7"], ["a.{0-2,7}", "b"]),
        (["layers.9.fc", "layers.10.fc", "layers.11.fc"], ["layers.{9-11}.fc"]),
        (["layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2"], ["layer1.{0-1}.bn{1-2}"]),
        (["layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1"], ["layer1.0.bn{1-2}", "layer1.1.bn1"]),
        (["a.0", "a.0.1", "a.1"], ["a.{0-1}", "a.0.1"]),
        (["a.0", "a.0"], ["a.0"]),
        (["a.007", "a.008"], ["a.007", "a.008"]),
        ([], []),
    ],
)
def test_collapse(paths: list[str], expected: list[str]) -> None:
    assert collapse(paths) == expected


def expand(path: str) -> list[str]:
    """What a shell makes of the braces."""
    parts = re.split(r"\{([\d,-]+)\}", path)
    choices = [
        [part]
        if position % 2 == 0
        else [
            str(number)
            for span in part.split(",")
            for first, _, last in [span.partition("-")]
            for number in range(int(first), int(last or first) + 1)
        ]
        for position, part in enumerate(parts)
    ]
    return ["".join(choice) for choice in itertools.product(*choices)]


PATHS = st.lists(
    st.builds(
        lambda parts: ".".join(parts),
        st.lists(st.sampled_from(["block", "conv1", "conv2", "0", "1", "2", "10", "11"]), min_size=1, max_size=4),
    ),
    max_size=20,
)


@given(PATHS)
def test_every_path_is_told_once(paths: list[str]) -> None:
    told = [path for one in collapse(paths) for path in expand(one)]
    assert sorted(told) == sorted(set(paths))


def test_things_merge_with_what_lies_in_the_same_block() -> None:
    items = [Alike.one("fc", f"layers.{i}.fc1", f"layers.{i}.fc2", "head") for i in range(3)]
    (merged,) = merge_alike(items)
    assert merged.paths == ("layers.{0-2}.fc1", "layers.{0-2}.fc2", "head")
    assert merged.names == ("layers.0.fc1", "layers.1.fc1", "layers.2.fc1")


@pytest.mark.parametrize(
    "second",
    [
        Alike.one("other", "layers.1.fc1", "layers.1.fc2"),
        Alike.one("fc", "layers.1.fc1", "layers.2.fc2"),
        Alike.one("fc", "layers.1.fc1", "layers.0.fc2"),
        Alike.one("fc", "blocks.1.fc1", "blocks.1.fc2"),
        Alike.one("fc", "layers.1.fc1"),
    ],
    ids=["kind", "another block", "the same block", "name", "fewer"],
)
def test_what_differs_stays_apart(second: Alike) -> None:
    items = [Alike.one("fc", "layers.0.fc1", "layers.0.fc2"), second]
    assert merge_alike(items) == items
