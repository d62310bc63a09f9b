# SPDX-License-Identifier: Apache-2.0
"""Tables are text, wherever they are made."""

import pytest
from rich import console

from djpq_nncf.report import render_table


@pytest.mark.parametrize("notebook", [False, True])
def test_a_table_is_text(notebook: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_is_jupyter", lambda: notebook)
    title, rule, row = render_table(["layer", "bits"], [["stem", "8"]]).splitlines()
    assert title.split() == ["layer", "bits"]
    assert set(rule.strip()) == {"─"}
    assert row.split() == ["stem", "8"]
