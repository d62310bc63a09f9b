# SPDX-License-Identifier: Apache-2.0
"""What the demo says when it is done."""

from pathlib import Path

from djpq_nncf.demo import Outcome, demo_config


def demo_to_str(outcome: Outcome, out: Path) -> str:
    """The table, the files, and what to do next."""
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
            f"  change the config      {demo_config()}",
            "  and run again          djpq-nncf demo --config FILE --out FOLDER",
            "  look at your network   djpq-nncf inspect your_package.module:factory --input-shape 1,3,224,224",
            "  compress it            djpq-nncf compress --help, or four lines in your training loop, see README.md",
        ]
    )
