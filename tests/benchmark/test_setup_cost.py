# SPDX-License-Identifier: Apache-2.0
"""benchmarks/setup_cost.py finds every stage."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_stage_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import performance_page
    import setup_cost

    page: dict[str, str] = {}
    monkeypatch.setattr(setup_cost, "write_section", page.__setitem__)
    monkeypatch.setattr(setup_cost, "machine", lambda: "a machine")
    monkeypatch.setattr(sys, "argv", ["setup_cost.py", "--networks", "vit1", "vit2", "--rounds", "1"])
    setup_cost.main()
    header, _, first, second = page["Set-up"].splitlines()[-4:]
    stages = ("capture", "analysis", "placement", "insertion", "initialisation")
    assert header.split(" | ")[2:7] == list(stages)
    assert header in capsys.readouterr().out
    shallow, deep = (int(line.split(" | ")[1]) for line in (first, second))
    assert 40 < shallow < deep < 2 * shallow
    cost = setup_cost.measure("vit1", 64)
    assert set(cost.stages) == set(stages)
    assert 0 < sum(cost.stages.values()) < cost.total
    assert performance_page.PAGE.name == "performance.md"
