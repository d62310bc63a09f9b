# SPDX-License-Identifier: Apache-2.0
"""Help in a terminal of 80 columns, and shell completion."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from djpq_nncf.cli import app

COMMANDS = ["validate", "inspect", "benchmark", "demo", "compress", "export", "verify", "report"]


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_cut_off(name: str) -> None:
    assert "…" not in printed(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_stand_on_lines_of_their_own(name: str) -> None:
    lines = [line.strip() for line in printed(name).splitlines()]
    assert any(line.startswith(f"djpq-nncf {name} ") for line in lines)


def test_all_commands_are_listed() -> None:
    text = printed()
    for name in (*COMMANDS, "sweep", "Exit codes: 0 done"):
        assert name in text


def test_completion_is_offered() -> None:
    assert {"--install-completion", "--show-completion"} <= set(printed().split())
    completed = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['djpq-nncf']; from djpq_nncf.cli import main; main()"],
        env={
            **os.environ,
            "_DJPQ_NNCF_COMPLETE": "complete_bash",
            "COMP_WORDS": "djpq-nncf ve",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.split() == ["verify"], completed.stderr
