# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md is what the schemas say."""

import subprocess
import sys
from pathlib import Path

from djpq_nncf.config._reference import reference_page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_page(), "run `make docs`"


def test_page_names_keys_with_default_and_unit() -> None:
    assert "| `steps_per_epoch` | an integer of at least 1, or null | `null` |" in reference_page()
    assert "### `quantization.weights`" in reference_page()


def test_module_writes_the_page(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    subprocess.run([sys.executable, "-m", "djpq_nncf.config", str(file)], check=True, cwd=PAGE.parents[1])
    assert file.read_text(encoding="utf-8") == reference_page()
