# SPDX-License-Identifier: Apache-2.0
"""Stands for ``djpq-nncf compress`` in tests: makes the same folder in no time, with the standard library alone.

``FAKE`` names a folder: ``finished`` in it is a finished run to copy, ``begun`` and ``ended`` get a line for each run.
While ``hold`` is there, runs do not end. Runs with seed 13 fail.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from pathlib import Path


def main(config: Path, run: Path) -> int:
    fake = Path(os.environ["FAKE"])
    seed = json.loads(config.read_text())["seed"]
    time.sleep(0.1)  # imports
    run.mkdir(exist_ok=True)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        note(fake / "begun", run.name)
        manifest = json.loads((fake / "finished" / "run.json").read_text())
        if not (run / "run.json").exists():
            (run / "run.json").write_text(json.dumps({**manifest, "status": "training"}))
        if seed == 13:
            print("Error: seed 13 is out of reach.\nWarning: a semaphore leaked\n╰──╯")  # noqa: T201
            return 1
        while (fake / "hold").exists():
            time.sleep(0.02)
        ratio = 0.01 * (seed + 1)
        rows = [
            {"event": "original", "step": 0, "accuracy": 0.9},
            {"event": "epoch", "step": 1, "accuracy": 0.8 + ratio, "bops_ratio": ratio, "macs_ratio": 0.5,
             "size_ratio": 0.1},
        ]  # fmt: skip
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for path in (fake / "finished").glob("*.json"):
            shutil.copy(path, run)
        settings = {**manifest["settings"], "config": json.loads(config.read_text())}
        (run / "run.json").write_text(json.dumps({**manifest, "settings": settings}))
        note(fake / "ended", run.name)
    return 0


def note(path: Path, name: str) -> None:
    with path.open("a") as stream:
        stream.write(f"{name}\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[3])))
