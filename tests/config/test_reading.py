# SPDX-License-Identifier: Apache-2.0
"""Configuration files: what may stand in them, and what is said when they cannot be read."""

import os
from pathlib import Path

import pytest

from djpq_nncf.config import NNCFConfig
from djpq_nncf.errors import ConfigError


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_comments_and_trailing_commas(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        // a line
        {
            /* a block, with "quotes" */
            "compression": [{"algorithm": "djpq", "ignored_scopes": ["a//b"],},],  # not JSON, see below
        }
        """.replace("# not JSON, see below", "// at the end of a line"),
    )
    assert NNCFConfig.from_json(file) == {"compression": [{"algorithm": "djpq", "ignored_scopes": ["a//b"]}]}


def test_path_may_be_a_string_and_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = write(tmp_path, b'\xef\xbb\xbf{"compression": {"algorithm": "djpq"}}')
    assert NNCFConfig.from_json(str(file))["compression"] == {"algorithm": "djpq"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; the least it can hold is"),
        ("// nothing\n", "is not JSON"),
        ('{\n  "compression" {}\n}', "line 2 .*column"),
        ('{"compression": {"algorithm": "djpq"', "is not JSON: line 1"),
        ('{"seed": 1, "seed": 2}', 'Duplicate key "seed"'),
        (b'{"a": "\xff"}', "not text in UTF-8"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"compression": {"algorithm": "djpq"}, "seed": NaN}', r"\$\.seed: NaN .* finite number"),
        ('{"compression": {"algorithm": "djpq"}, "seed": 1e999}', r"\$\.seed: Infinity .* finite number"),
        ("null", r"\$: null is not allowed; give an object"),
    ],
    ids=[
        "empty", "only a comment", "no colon", "truncated", "duplicate key", "not UTF-8", "too deep",
        "NaN", "overflow", "not an object",
    ],
)  # fmt: skip
def test_what_is_in_the_file_is_wrong(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        NNCFConfig.from_json(file)
    assert str(file) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'config\.json" does not exist; check the path'):
        NNCFConfig.from_json(tmp_path / "config.json")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; give the path of a JSON file"):
        NNCFConfig.from_json(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="every file is readable for root")
def test_unreadable_file(tmp_path: Path) -> None:
    file = write(tmp_path, "{}")
    file.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        NNCFConfig.from_json(file)


def test_path_through_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        NNCFConfig.from_json(write(tmp_path, "{}") / "below.json")
