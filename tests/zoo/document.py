# SPDX-License-Identifier: Apache-2.0
"""docs/architectures.md, out of what a full run of the zoo measured."""

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from tests.zoo.refused import NOT_CAPTURED
from tests.zoo.registry import ZOO
from tests.zoo.removal import REMOVAL_TOLERANCE, SEEDS
from tests.zoo.rows import read_rows
from tests.zoo.scaling import ScalingRow

Row = dict[str, Any]

_INTRODUCTION = """\
# Architectures

Written by `make zoo`, which runs `tests/zoo` on every architecture below: its graph is captured and compared with the
model; random channels of every group are closed, in {seeds} seeds and in half of them nearly all, and the network
without them is compared with the gated one; the smaller network is exported, as it is and with 8 bits, and the files
are compared with PyTorch. Weights are random, of torchvision the architectures are those published; of Hugging Face
the classes are, with random configurations where size is a matter of scale only (see `tests/zoo/models/`).

Run on {machine}. Times are CPU seconds of one thread, of the
analysis the least of three.

## Pruning

- **groups**: channel groups (one gate each) and the channels in them that can be removed independently.
- **MACs, parameters**: share in a row or column of a weight that can be removed. MACs are those of convolutions and
  linear layers at the input size given; together with products of activations they are what torch counts.
- **error**: largest difference of an output element between removed and gated network, relative to the largest
  element; at most {tolerance:.0e}, in float32 or, where marked, in float64.
- **stays**: output channels that no group holds, by reason.

Lowest share of MACs of a network without products of activations (CNNs): {cnn}. Of a network with such
products (transformers among them): {transformer}. Largest share of the time of the capture that an analysis took:
{ratio:.0%}.
"""

_SCALING = """
## Time of the analysis

At 64 x 64 pixels, the least of three.
"""

_EXPORT = """
## Files

A quarter of every group's channels removed, small members of the same classes; written to OpenVINO IR and ONNX, read
back and run. Largest difference from PyTorch, relative to the range of the output, and at 8 bits the share of
multiply-accumulates in INT8 kernels. At 8 bits steps are powers of two and biases short fractions, so that sums are
exact: networks without softmax, means or other rounded functions agree to the last bit, in others values on the border
between two codes fall to either side.
"""

_REFUSED = """
## What libraries refuse

Whole detectors of torchvision: how many boxes survive suppression is decided by values. The networks in them
(`(raw)` above) are captured.
"""


def missing_or_failed() -> list[str]:
    """What keeps the page from being true: architectures without a row, and failures."""
    problems = []
    for kind, names in (("removal", ZOO), ("export", ZOO), ("refused", NOT_CAPTURED)):
        rows = read_rows(kind)
        problems += [f"{kind} of {name}: not run" for name in names if name not in rows]
        problems += [
            f"{kind} of {name}: {rows[name]['failure']}" for name in names if rows.get(name, {}).get("failure")
        ]
    return problems


def architectures_page(scaling: Sequence[ScalingRow]) -> str:
    """The page as Markdown."""
    removal = _in_order(read_rows("removal"), ZOO)
    shares = [(row["shares"]["prunable_macs"], row) for row in removal]
    parts = [
        _INTRODUCTION.format(
            seeds=len(SEEDS["full"]),
            machine=_machine(),
            tolerance=REMOVAL_TOLERANCE,
            cnn=_lowest(pair for pair in shares if not pair[1]["shares"]["product_macs"]),
            transformer=_lowest(pair for pair in shares if pair[1]["shares"]["product_macs"]),
            ratio=max(row["analysis_seconds"] / row["capture_seconds"] for row in removal),
        ),
        _table(
            "architecture | input | groups | MACs | parameters | nodes | capture s | analysis s | error | stays",
            "--|--|--:|--:|--:|--:|--:|--:|--:|--",
            map(_removal_cells, removal),
        ),
        _SCALING,
        _table(
            "network | nodes | capture s | analysis s | µs a node",
            "--|--:|--:|--:|--:",
            (
                (
                    row.name,
                    str(row.nodes),
                    f"{row.capture_seconds:.2f}",
                    f"{row.analysis_seconds:.3f}",
                    f"{1e6 * row.analysis_seconds / row.nodes:.0f}",
                )
                for row in scaling
            ),
        ),
        _EXPORT,
        _export_table(_in_order(read_rows("export"), ZOO)),
        _REFUSED,
        _table(
            "model | torch.export says", "--|--", map(_refusal_cells, _in_order(read_rows("refused"), NOT_CAPTURED))
        ),
    ]
    return "\n".join(parts)


def _in_order(rows: dict[str, Row], names: Iterable[str]) -> list[Row]:
    return [rows[name] for name in names if name in rows and not rows[name]["failure"]]


def _removal_cells(row: Row) -> tuple[str, ...]:
    shares = row["shares"]
    error = f"{row['removal_error']:.0e}" + (" (float64)" if row["precision"] == "float64" else "")
    return (
        row["name"],
        row["inputs"],
        f"{row['groups']} ({row['channels']})",
        _percent(shares["prunable_macs"]),
        _percent(shares["prunable_parameters"]),
        str(row["nodes"]),
        f"{row['capture_seconds']:.1f}",
        f"{row['analysis_seconds']:.2f}",
        error,
        _stays(row["frozen"]),
    )


def _stays(frozen: list[Row]) -> str:
    """Reasons without the places, with the number of channels."""
    channels: Counter[str] = Counter()
    for reason in frozen:
        text = re.sub(r"^aten::(\S+) at '[^']*'", r"`\1`", reason["reason"])
        text = re.sub(r"^'[^']*' ", "", text)
        channels["outputs" if text == "is an output of the network" else text] += reason["channels"]
    return "; ".join(f"{text}: {count}" for text, count in channels.most_common())


def _export_table(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row["errors"]))
    refused = [(row["name"], runtime, text) for row in rows for runtime, text in row["refused"].items()]
    table = _table(
        " | ".join(["architecture", "input", *columns]),
        "|".join(["--", "--", *["--:"] * len(columns)]),
        ((row["name"], row["inputs"], *(_export_cell(row, column) for column in columns)) for row in rows),
    )
    if refused:
        table += "\n" + _table("architecture | format | its library says", "--|--|--", refused)
    return table


def _export_cell(row: Row, column: str) -> str:
    if column not in row["errors"]:
        return "refused"
    share = row["int8_shares"][column]
    return f"{row['errors'][column]:.0e}" + (f", INT8 {_percent(share)}" if share else "")


def _refusal_cells(row: Row) -> tuple[str, str]:
    return row["name"], f"`{row['library_error'][:200]}`"


def _lowest(pairs: Iterable[tuple[float, Row]]) -> str:
    share, row = min(pairs, key=lambda pair: pair[0])
    return f"{_percent(share)} ({row['name']})"


def _percent(share: float) -> str:
    return "100 %" if share == 1 else f"{min(100 * share, 99.9):.1f} %"


def _table(header: str, alignment: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {header} |", f"|{alignment}|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _machine() -> str:
    packages = ("torch", "torchvision", "transformers", "nncf", "openvino", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
