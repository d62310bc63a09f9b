# SPDX-License-Identifier: Apache-2.0
"""``djpq-nncf validate``, and what holds for all commands."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from djpq_nncf.cli import app

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "examples" / "configs").glob("*.json"))


def command(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "djpq_nncf", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("config", CONFIGS, ids=[config.stem for config in CONFIGS])
def test_examples_are_valid(config: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(config)])
    assert result.exit_code == 0
    assert result.stdout == f"{config} is valid (algorithm djpq).\n"


def test_all_mistakes_are_listed_on_stderr(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"compresion": 1, "compression": {"algorithm": "djpq", "target": {"bops_ratio": 2}}}')
    result = command("validate", str(config))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "compression" in result.stderr
    assert "bops_ratio" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_file_is_one_message(tmp_path: Path) -> None:
    result = command("validate", "absent.json", cwd=tmp_path)
    assert result.returncode == 1
    assert "absent.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_torch_is_not_imported_for_help_and_validate() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from djpq_nncf.cli import app\n"
        f"for arguments in (['--help'], ['inspect', '--help'], ['validate', {str(CONFIGS[0])!r}]):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "assert not {'torch', 'nncf', 'openvino', 'onnxruntime'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("name", ["validate", "inspect", "demo"])
def test_help_has_an_example(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"djpq-nncf {name}" in result.stdout
