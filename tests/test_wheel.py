# SPDX-License-Identifier: Apache-2.0
"""The wheel is complete: built, installed in an environment of its own, used from another folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

USE = """
import json, sys
import djpq_nncf.config as config
print(json.dumps({
    "package": config.__file__,
    "schemas": str(config.schemas_folder()),
    "ratio": config.NNCFConfig.from_json(sys.argv[1]).algorithms[0]["target"]["bops_ratio"],
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the variables that would lead Python back to this checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=REPOSITORY)
    (file,) = folder.glob("djpq_nncf-*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel, and sees the dependencies installed beside the tests."""
    folder = tmp_path_factory.mktemp("environment").resolve()
    venv.create(folder, symlinks=os.name != "nt")
    run(
        *(sys.executable, "-m", "pip", "--python", _python(folder), "install"),
        *("--quiet", "--no-index", "--no-deps", wheel),
        cwd=folder,
    )
    # Python reads .pth files of its own site-packages only: the folder named here lends its packages, but its
    # own .pth files, and with them an editable installation of this checkout, have no effect.
    (_site_packages(folder) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def _python(environment: Path) -> Path:
    return Path(sysconfig.get_path("scripts", "venv", {"base": str(environment)})) / "python"


def _site_packages(environment: Path) -> Path:
    base = str(environment)
    return Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))


def test_wheel_holds_schemas_types_and_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for schema in (REPOSITORY / "schemas").rglob("*.json"):
        assert f"djpq_nncf/{schema.relative_to(REPOSITORY).as_posix()}" in names
    assert "djpq_nncf/py.typed" in names
    assert "djpq_nncf/demo/digits_djpq.json" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "examples", "docs"))]


def test_config_is_validated_from_another_folder(environment: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"compression": {"algorithm": "djpq", "target": {"bops_ratio": 0.01}}}  // a comment')
    said = json.loads(run(_python(environment), "-I", "-c", USE, config.name, cwd=tmp_path))
    assert said["ratio"] == 0.01
    for place in (said["package"], said["schemas"]):
        assert Path(place).resolve().is_relative_to(environment)


def test_command_runs_from_another_folder(environment: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"compression": {"algorithm": "djpq"}}')
    run(_python(environment).parent / "djpq-nncf", "validate", config.name, cwd=tmp_path)
