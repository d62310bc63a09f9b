# SPDX-License-Identifier: Apache-2.0
"""The report: what it says, that it holds against odd input, and how it looks to a browser."""

import copy
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from djpq_nncf import create_compressed_model
from djpq_nncf.algorithms import CompressionController
from djpq_nncf.errors import DataError
from djpq_nncf.report import FileCheck, RunReport, write_report
from tests.report.chromium import launched
from tests.run.digits import CONFIG, network

HISTORY: list[dict[str, Any]] = [
    {"event": "original", "epoch": 0, "step": 0, "accuracy": 0.975},
    *(
        {"event": "epoch", "epoch": n, "step": 16 * n, "loss": 2.0 / n, "task_loss": 1.9 / n, "accuracy": 0.9 + n / 100,
         "bops_ratio": 0.05 / n, "bops_ratio_asked": 0.02, **({"strength": 0.1 * n} if n < 3 else {})}
        for n in range(1, 6)
    ),
]  # fmt: skip


# what its box cuts off or what leaves the page, besides the tables that scroll
CUT = """[...document.querySelectorAll('h1, h2, h3, td, th, dd, dt, .bar span, figcaption')]
    .filter(part => !part.closest('.scroll, .values'))
    .filter(part => part.clientWidth && part.scrollWidth > part.clientWidth + 1
        || part.getBoundingClientRect().right > innerWidth)
    .map(part => part.outerHTML)"""


@pytest.fixture(scope="module")
def ctrl() -> CompressionController:
    ctrl, _ = create_compressed_model(network(), CONFIG, init_data=[torch.rand(16, 1, 8, 8)])
    name = max(ctrl.groups, key=lambda name: ctrl.groups[name].size)
    ctrl.groups[name].close([0, 1, 2])
    return ctrl


def draw(ctrl: CompressionController, path: Path) -> None:
    checks = tuple(
        FileCheck(f"compressed.{kind}", "ONNX Runtime 1.32.0", 600, 0.0303, 0.00159, 1.0, 0.95, ("head",))
        for kind in ("xml", "onnx")
    )
    report = ctrl.report_data(title="tests.report.screenshots:network on tests.report.screenshots:loaders")
    write_report(dataclasses.replace(report, checks=checks), path, history=HISTORY)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._continued = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._continued = tag == "wbr"
        if tag in ("tr", "p", "li", "summary", "title", "h1", "h2", "style"):
            self.rows.append("")

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1] += data.strip() if self._continued else f"|{data.strip()}"
        self._continued = False


def parsed(path: Path) -> _Text:
    parser = _Text()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def test_figures_are_those_of_the_network(ctrl: CompressionController, tmp_path: Path) -> None:
    ctrl.report(tmp_path / "report.html", history=HISTORY, title="Digits")
    rows = parsed(tmp_path / "report.html").rows
    # DigitsResNet(8), counted by hand: a stem, three blocks (the second with stride and projection) and a head
    macs = 64 * 9 * 8 + 2 * 64 * 72 * 8 + 16 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16) + 2 * 16 * 9 * 16 * 16 + 160
    weights = 72 + 2 * 576 + 9 * 128 + 9 * 256 + 128 + 2 * 9 * 256 + 160
    text = "\n".join(rows)
    assert f"|BOPs per sample|{macs * 1024 / 1e6:.2f} M|" in text
    assert f"|MACs per sample|{macs / 1e3:.2f} k|" in text
    assert f"|Bits of the weights|{weights * 32 / 1e3:.2f} k|" in text
    assert "|Accuracy|97.50 %|95.00 %|-2.50 points" in rows
    for layer in ctrl.statistics().djpq.layers:
        kept, size = layer.out_channels
        assert any(row.startswith(f"|{layer.name}|") and row.endswith(f"|{kept} of {size}") for row in rows)
    assert re.search(r"\|blocks\S*: 13 of 16", text)
    assert "|head: 10 channels stay" in rows


def test_accuracy_of_a_loop_that_measures_none(ctrl: CompressionController, tmp_path: Path) -> None:
    rows = [{"event": "epoch", "epoch": n, "step": n, "loss": 1.0} for n in (1, 2)]
    ctrl.report(tmp_path / "report.html", history=[HISTORY[0], *rows])
    assert "|Accuracy|97.50 %|not measured" in parsed(tmp_path / "report.html").rows


def test_data_survives_json(ctrl: CompressionController) -> None:
    report = ctrl.report_data(title="x")
    again = RunReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.update(format=0), "format 0, and this version"),
        (lambda data: data.pop("layers"), "damaged: 'layers'"),
        (lambda data: data["layers"][0].pop("macs"), "damaged"),
        (lambda data: data.update(groups=3), "damaged"),
        (lambda data: data.update(layers=[1]), "damaged"),
    ],
)
def test_damaged_data(ctrl: CompressionController, damage: Any, message: str) -> None:
    data = copy.deepcopy(ctrl.report_data().to_dict())
    damage(data)
    with pytest.raises(DataError, match=message):
        RunReport.from_dict(data)


def test_no_data_at_all() -> None:
    with pytest.raises(DataError, match="format None"):
        RunReport.from_dict([])


@pytest.mark.parametrize(
    "history",
    [
        [],
        HISTORY[:2],
        [{"event": "epoch", "step": 1, "loss": None}, {"event": "epoch", "step": 2, "loss": 1.0}],
        [{"event": "epoch", "step": n, "loss": float("nan"), "bops_ratio": 0.0} for n in range(3)],
        [{"event": "epoch", "step": n, "loss": 1.0} for n in range(3)],
        [{"event": "step", "step": n, "loss": 1e-9 * n, "strength": 10.0**-n} for n in range(400)],
    ],
)
def test_any_log(ctrl: CompressionController, tmp_path: Path, history: list[dict[str, Any]]) -> None:
    ctrl.report(tmp_path / "report.html", history=history)
    page = parsed(tmp_path / "report.html")
    coordinates = [value for tag, attributes in page.tags for value in attributes.values() if tag == "circle"]
    assert not any("nan" in (value or "") for value in coordinates)
    assert len(coordinates) < 5 * 200
    if not history:
        assert any("No log" in row for row in page.rows)


def test_names_are_escaped(ctrl: CompressionController, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    report = ctrl.report_data(title=evil)
    layers = tuple(dataclasses.replace(layer, name=evil) for layer in report.layers)
    write_report(dataclasses.replace(report, layers=layers), tmp_path / "r.html", history=[{**HISTORY[1], evil: 1.0}])
    page = parsed(tmp_path / "r.html")
    assert all(tag != "script" for tag, _ in page.tags)
    assert any(evil in row for row in page.rows)


def test_a_folder_that_is_missing(ctrl: CompressionController, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot write the report .*nowhere"):
        ctrl.report(tmp_path / "nowhere" / "report.html")


def test_pictures_have_words(ctrl: CompressionController, tmp_path: Path) -> None:
    """Each chart has a title and a description, each point says its value when hovered, and a table lists it."""
    ctrl.report(tmp_path / "report.html", history=HISTORY)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        (label,) = re.findall(r'<svg [^>]*role="img" aria-labelledby="(\w+ \w+)"', figure)
        for part in label.split():
            (text,) = re.findall(rf'id="{part}">([^<]+)<', figure)
            assert text
        circles = re.findall(r"<circle [^>]*>(.*?)</circle>", figure)
        assert len(circles) >= 2
        listed = {cell for row in re.findall(r"<tr>(.*?)</tr>", figure) for cell in re.findall(r"<td>(.*?)</td>", row)}
        for circle in circles:
            value, step = re.fullmatch(r"<title>[^<]* ([\d.]+(?: %)?), step (\d+)</title>", circle).groups()  # type: ignore[union-attr]
            assert {value, step} <= listed
    for bar in re.findall(r'<div class="bar[^"]*"([^>]*)>', page):
        assert re.match(r' title="[^"]+"', bar)


def test_in_a_browser(ctrl: CompressionController, tmp_path: Path) -> None:
    """Nothing is fetched, nothing sticks out, and axe finds nothing serious; three widths, light, dark and print."""
    from axe_playwright_python.sync_playwright import Axe

    draw(ctrl, tmp_path / "report.html")
    with launched() as browser:
        for width in (360, 375, 768, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            requests: list[str] = []
            complaints: list[str] = []
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
            page.goto(f"file://{tmp_path}/report.html")
            assert page.evaluate("document.querySelectorAll('.scroll').length") == 1  # the table of the epochs
            assert page.evaluate(CUT) == []
            page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            assert len(requests) == 1
            assert not complaints
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for scheme, media in (("light", "screen"), ("dark", "screen"), ("light", "print")):
                page.emulate_media(color_scheme=scheme, media=media)
                found = Axe().run(page).response["violations"]
                assert [(entry["id"], entry["nodes"][0]["html"]) for entry in found] == []


def test_printed(ctrl: CompressionController, tmp_path: Path) -> None:
    """What is folded on the screen is there, without its triangle; charts are in pairs; the bars' tracks are seen."""
    draw(ctrl, tmp_path / "report.html")
    with launched() as browser:
        page = browser.new_page(viewport={"width": 718, "height": 1000})
        page.goto(f"file://{tmp_path}/report.html")
        page.emulate_media(media="print")
        parts = ".epochs td, #origin ~ details pre, #groups ~ details li"
        assert page.evaluate(f"[...document.querySelectorAll('{parts}')].every(part => part.offsetHeight > 0)")
        assert page.evaluate("getComputedStyle(document.querySelector('summary')).listStyleType") == "none"
        tops = page.evaluate("[...document.querySelectorAll('figure')].map(one => one.offsetTop)")
        assert tops[0] == tops[1] < tops[2] == tops[3]
        track = page.evaluate("getComputedStyle(document.querySelector('.track')).backgroundColor")
        assert max(map(int, re.findall(r"\d+", track)[:2])) < 235
