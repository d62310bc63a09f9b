# SPDX-License-Identifier: Apache-2.0
"""Run folders of another version, damaged ones, and full disks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from djpq_nncf.errors import RunError
from djpq_nncf.run import RunFolder, compress_run, export_run, verify_run, write_run_report
from tests.run.conftest import quiet
from tests.run.tiny import SETTINGS


def manifest(**changes: Any) -> str:
    settings = {**SETTINGS.to_dict(), **changes}
    return json.dumps({"format": 1, "status": "trained", "settings": settings})


def test_a_run_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 0, "status": "training"}')
    for use in (lambda: compress_run(tmp_path, SETTINGS, say=quiet), lambda: verify_run(tmp_path)):
        with pytest.raises(RunError, match=r"another version .*\(format 0, this one reads 1\)"):
            use()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "\xff",
        '{"format": 1}',
        '{"format": 1, "status": "begun", "settings": {}}',
        '{"format": 1, "status": "trained", "settings": {}}',
        '{"format": 1, "status": "trained", "settings": []}',
        manifest(momentum=0.9),
        manifest(mean=None),
        manifest(deviation=[0, 0, 0]),
    ],
)
def test_a_damaged_run(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin1")
    with pytest.raises(RunError, match=r"run\.json is damaged \(.*Begin the run anew in another folder"):
        export_run(tmp_path)


@pytest.mark.parametrize("use", [export_run, verify_run, write_run_report])
def test_no_run(use: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        use(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("use", [export_run, verify_run, write_run_report])
def test_a_run_that_is_not_finished(use: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(SETTINGS)
    folder.checkpoint.touch()
    with pytest.raises(RunError, match=r"is not finished.*Run the same `djpq-nncf compress` again"):
        use(tmp_path)
    assert not folder.exported


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": 0}', '{"format": 1, "layers": []}'])
def test_a_report_that_was_lost_is_written_again(
    content: str | None, finished: RunFolder, tmp_path: Path, without_files: None
) -> None:
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "copy"))
    folder.report_data.unlink()
    if content is not None:
        folder.report_data.write_text(content)
    assert folder.status == "trained"
    with pytest.raises(RunError, match="Run the same `djpq-nncf compress` again; it continues"):
        write_run_report(folder.path)
    compress_run(folder.path, SETTINGS, say=quiet)
    assert folder.status == "finished"
    write_run_report(folder.path)


def test_an_interruption_while_it_is_begun_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between any two files, the folder is still one to begin in."""
    replace, left = Path.replace, [0]

    def stop(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    folder = RunFolder(tmp_path)
    for files in (0, 1):
        left[0] = files
        folder.check(SETTINGS)
        with pytest.raises(KeyboardInterrupt):
            folder.begin(SETTINGS)
    left[0] = 2
    folder.check(SETTINGS)
    folder.begin(SETTINGS)
    assert folder.settings == SETTINGS
    assert (tmp_path / "config.json").is_file()


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"No space left on device\. Free some space; the same command continues"):
        folder.write("report.json", {})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append({"event": "epoch", "step": 1})
    with folder.log_file.open("a") as stream:
        stream.write('{"event": "epo')
    assert folder.read_log() == [{"event": "epoch", "step": 1}]
    folder.cut_log(1)
    folder.append({"event": "epoch", "step": 2})
    assert [row["step"] for row in folder.read_log()] == [1, 2]


@pytest.mark.parametrize("line", ["3", "null", "[1]", '"epoch"', "{"])
def test_a_line_that_is_no_row(line: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log_file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(RunError, match=r"log\.jsonl, line 2 is damaged .*Remove that line"):
        folder.read_log()
