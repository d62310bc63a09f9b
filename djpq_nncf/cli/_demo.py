# SPDX-License-Identifier: Apache-2.0
"""What the demo says when it is done."""

import shutil
import sys
from pathlib import Path

from djpq_nncf.demo import Outcome, demo_config


def demo_to_str(outcome: Outcome, out: Path, *, config: Path | None = None) -> str:
    """The table, the files, and what to do next. ``config``: what the demo ran with, None for its own."""
    # `make demo` leaves the command in .venv/bin, where no shell looks for it
    installed = shutil.which("djpq-nncf") or Path(sys.argv[0]).name != "djpq-nncf"
    command = "djpq-nncf" if installed else sys.argv[0]
    return "\n".join(
        [
            "",
            outcome.comparison.to_str(),
            "",
            "Latencies are medians on one thread, both networks taken in turn.",
            "",
            f"Files in {out}:",
            "  report.html            where channels and bits went, and how; open it in a browser",
            "  compressed.xml, .bin   OpenVINO IR",
            "  compressed.onnx        ONNX with QDQ nodes",
            "  fp32.xml, .bin, .onnx  the network before compression",
            "  layers.txt             bit-widths and channels of each layer",
            "  results.json           the figures of the table",
            "",
            "Next:",
            f"  change the config      copy {config or demo_config()}",
            f"  and run again          {command} demo --config FILE --out FOLDER",
            f"  look at your network   {command} inspect your_package.module:factory --input-shape 1,3,224,224",
            f"  compress it            {command} compress --help, or four lines in your training loop, see README.md",
        ]
    )
