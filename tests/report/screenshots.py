# SPDX-License-Identifier: Apache-2.0
"""Pictures for docs/report.md: ``python -m tests.report.screenshots docs/images`` (`make screenshots`).

Compresses the digits of scikit-learn in runs/screenshots, a few minutes, and draws only where that is done already.
"""

import dataclasses
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import Browser
from rich.console import Console
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from djpq_nncf.demo import Batches, DigitsResNet, load_digits_data, train
from djpq_nncf.report import RunReport, write_report
from djpq_nncf.run import RunFolder, RunSettings, compress_run
from djpq_nncf.run._monitor_text import Progress
from tests.report.chromium import launched

RUN = Path("runs/screenshots")
CONFIG = {
    "target_device": "ANY",
    "input_info": {"sample_size": [1, 1, 8, 8]},
    "compression": {"algorithm": "djpq", "target": {"bops_ratio": 0.02}, "schedule": {"epochs": 20}},
}
PAPER = 718  # pixels of A4 at 96 per inch, less the margins
PICTURES = {  # width, height, colours, medium
    "report_phone": (375, 1500, "light", "screen"),
    "report_tablet": (768, 1500, "light", "screen"),
    "report_desktop": (1280, 1700, "light", "screen"),
    "report_dark": (1280, 1700, "dark", "screen"),
    "report_print": (PAPER, 1700, "light", "print"),
}


def network() -> DigitsResNet:
    return DigitsResNet(16)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    data = load_digits_data()
    training = TensorDataset(data.train_images, data.train_labels)
    return DataLoader(training, 32, shuffle=True, drop_last=True), DataLoader(
        TensorDataset(data.test_images, data.test_labels), 200
    )


def compressed() -> RunFolder:
    weights = RUN / "trained.safetensors"
    if not weights.is_file():
        torch.manual_seed(0)
        RUN.mkdir(parents=True, exist_ok=True)
        data, trained = load_digits_data(), network()
        train(trained, Batches(data.train_images, data.train_labels, 32), epochs=10)
        save_file(trained.state_dict(), weights)
    settings = RunSettings(
        CONFIG, f"{__spec__.name}:network", f"{__spec__.name}:loaders", weights=str(weights.resolve())
    )
    return compress_run(RUN / "run", settings)


def picture(browser: Browser, report: Path, name: str) -> Image.Image:
    width, height, colours, medium = PICTURES[name]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.emulate_media(color_scheme=colours, media=medium)  # type: ignore[arg-type]
    page.goto(report.resolve().as_uri())
    image = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return image


def terminal(rows: Sequence[Mapping[str, Any]]) -> str:
    """The progress as it stood in the middle of the search, as SVG that fetches no fonts."""
    searched = [row for row in rows if "strength" in row]
    row = searched[len(searched) // 2]
    scalars: dict[str, float] = {}
    for earlier in rows[: rows.index(row) + 1]:
        scalars.update({name: value for name, value in earlier.items() if isinstance(value, float)})
    last = rows[-1]
    share = row["step"] / last["step"]
    progress = Progress(
        row["epoch"], last["epoch"], row["step"], last["step"], "pruning and quantization", row["seconds"],
        row["seconds"] * (1 / share - 1), scalars,
    )  # fmt: skip
    console = Console(file=io.StringIO(), record=True, width=80, force_terminal=True, color_system="truecolor")
    console.print("$ djpq-nncf compress digits.json --model ... --data ... --out runs/digits", highlight=False)
    console.print(progress)
    svg = console.export_svg(title="djpq-nncf compress")
    return re.sub(r"@font-face {.*?}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


def main(out: Path) -> None:
    folder = compressed()
    report = RUN / "report.html"
    data = RunReport.from_dict(json.loads(folder.report_data.read_text(encoding="utf-8")))
    rows = list(folder.read_log())
    write_report(dataclasses.replace(data, title="Handwritten digits"), report, history=rows)
    (out / "report_terminal.svg").write_text(terminal(rows), encoding="utf-8")
    with launched() as browser:
        for name in PICTURES:
            image = picture(browser, report, name).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
            image.save(out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
