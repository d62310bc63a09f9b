# SPDX-License-Identifier: Apache-2.0
"""Where a run of the zoo keeps what it measured: one JSON file for each architecture and check."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

RUNS = Path(__file__).parents[2] / "runs" / "zoo"


@contextmanager
def recorded(row: Any, *, keep: bool) -> Iterator[None]:
    """Keep ``row`` (a dataclass with a kind, a name and a failure) once the check is over, passed or not."""
    try:
        yield
    except Exception as error:
        row.failure = f"{type(error).__name__}: {error}"
        raise
    finally:
        if keep:
            path = RUNS / row.kind / f"{row.name.replace(' ', '_')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(row), indent=1) + "\n")


def read_rows(kind: str) -> dict[str, dict[str, Any]]:
    """Rows by name."""
    rows = (json.loads(path.read_text()) for path in sorted((RUNS / kind).glob("*.json")))
    return {row["name"]: row for row in rows}
