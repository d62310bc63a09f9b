# SPDX-License-Identifier: Apache-2.0
"""The page of a sweep: what it says, that it holds against odd input, and how it looks to a browser."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from djpq_nncf.sweep import RunOutcome, Trial, best_run, over_seeds, seed_table, write_sweep_page
from djpq_nncf.sweep._chart import sweep_chart

BUDGETS = {"0.05": (0.0499, 0.1), "0.02": (0.0198, 0.35), "0.01": (0.00999, 0.62), "0.005": (0.00498, 1.9)}
FAILURES = {
    "bops_ratio=1e-06,seed=0": "Error: $.compression.target.bops_ratio: 1e-06 is out of reach. Ask for more than "
    "that. (exit code 1; all of it in /somewhere/that/is/a/long/way/down/the/tree/output/bops_ratio=1e-06,seed=0.txt)"
}


def outcome(folder: Path, name: str, bops: float, lost: float | None) -> RunOutcome:
    return RunOutcome(name, folder / "runs" / name, bops, 0.52, 0.1, None if lost is None else 0.76 - lost / 100, lost)


def sweep_of_seeds(folder: Path) -> tuple[list[Trial], list[RunOutcome]]:
    trials, outcomes = [], []
    for budget, (bops, lost) in BUDGETS.items():
        for seed in range(3):
            settings = (("compression.target.bops_ratio", f"bops_ratio={budget}"), ("seed", f"seed={seed}"))
            trials.append(Trial(",".join(text for _, text in settings), {}, settings))
            outcomes.append(outcome(folder, trials[-1].name, bops, round(lost + 0.12 * (seed - 1), 2)))
    return trials, outcomes


def write(folder: Path) -> Path:
    trials, outcomes = sweep_of_seeds(folder)
    for entry in outcomes[:-1]:
        entry.path.mkdir(parents=True)
        (entry.path / "report.html").write_text("report")
    return write_sweep_page(
        outcomes,
        folder,
        failures=FAILURES,
        seeds=over_seeds(trials, outcomes),
        best=best_run(outcomes, most_lost=0.5),
        most_lost=0.5,
    )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attrs if tag == "a" and name == "href"]


def test_what_it_says(tmp_path: Path) -> None:
    page = write(tmp_path).read_text(encoding="utf-8")
    links = _Links()
    links.feed(page)
    # of each run whose report is there, and of the best
    assert len(links.targets) == 12
    assert links.targets[0] == "runs/bops_ratio%3D0.01%2Cseed%3D0/report.html"
    assert page.count('<span class="tag picked">best</span>') == 1
    assert page.count('<span class="tag">front</span>') == 4
    assert page.count("<title>bops_ratio") == 12
    assert "Best with at most 0.5 points lost" in page
    assert "1.90 ± 0.12" in page
    assert "Ask for more than that." in page
    assert page.count('class="limit"') == 2


@pytest.mark.parametrize(
    ("figures", "dots"),
    [
        ([(0.02, 0.1), (0.01, 0.3), (0.01, 0.2), (0.005, 0.3)], 4),
        ([(0.02, 0.1)], 0),
        ([(0.1, None)] * 2, 0),
        ([(0.02, 0.1)] * 2, 2),
        ([(0.02, 0.0)] * 2, 2),
        ([(1e-5, 60.0), (0.9, -3.0), (0.1, None)], 2),
        ([], 0),
    ],
)
def test_any_figures(tmp_path: Path, figures: list[tuple[float, float | None]], dots: int) -> None:
    outcomes = [outcome(tmp_path, f"<script>{number}", *given) for number, given in enumerate(figures)]
    page = write_sweep_page(outcomes, tmp_path).read_text(encoding="utf-8")
    assert page.count("<title>&lt;script") == dots
    assert "<script" not in page
    assert "http:" not in page
    assert not re.search(r'="-?(nan|inf)', page)


def test_axes_have_a_few_labels(tmp_path: Path) -> None:
    for costs in ((0.02, 0.021), (0.05, 0.005), (1e-5, 0.9), (0.0625, 0.03)):
        for losses in ((0.0, 0.0), (0.1, 0.12), (-3.0, 60.0)):
            figures = zip(costs, losses, strict=True)
            chart = sweep_chart([outcome(tmp_path, "x", bops, lost) for bops, lost in figures])
            assert chart is not None
            assert 1 <= len(chart.costs) <= 5
            assert 2 <= len(chart.losses) <= 7
            assert all(0 <= tick.at <= 100 for tick in (*chart.costs, *chart.losses))
            assert all(0 < place < 100 for point in chart.points for place in (point.x, point.y))


def test_over_seeds(tmp_path: Path) -> None:
    trials, outcomes = sweep_of_seeds(tmp_path)
    summaries = over_seeds(trials, outcomes[:-2])
    assert [(summary.name, summary.runs) for summary in summaries] == [
        ("bops_ratio=0.01", 3),
        ("bops_ratio=0.02", 3),
        ("bops_ratio=0.05", 3),
    ]
    lost = summaries[0].lost
    assert lost is not None
    assert (round(lost.mean, 6), round(lost.deviation, 6)) == (0.62, 0.12)
    assert "+0.62 ± 0.12" in seed_table(summaries)
    seeds_alone = [Trial(f"seed={n}", {}, (("seed", f"seed={n}"),)) for n in range(2)]
    (alone,) = over_seeds(seeds_alone, [outcome(tmp_path, trial.name, 0.1, None) for trial in seeds_alone])
    assert (alone.name, alone.lost) == ("all runs", None)
    assert over_seeds([Trial("x", {}, (("lr", "x"),))], [outcome(tmp_path, "x", 0.1, 0.1)]) == []


def test_in_a_browser(tmp_path: Path) -> None:
    """Nothing is fetched, nothing sticks out, and axe finds nothing serious; three widths, light, dark and print."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium")
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    path = write(tmp_path)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (360, 768, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            requests: list[str] = []
            complaints: list[str] = []
            page.on("request", lambda request, requests=requests: requests.append(request.url))
            page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
            page.goto(path.as_uri())
            assert len(requests) == 1
            assert not complaints
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            # labels keep their size and their distance, and the chart takes the width of the table
            boxes = [box for entry in page.query_selector_all(".plot text") if (box := entry.bounding_box())]
            assert all(box["height"] > 11 for box in boxes)
            assert not any(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
            figure, table = (page.query_selector(name).bounding_box() for name in ("figure", "table"))
            assert (figure["x"], figure["width"]) == (table["x"], table["width"])
            for scheme, media in (("light", "screen"), ("dark", "screen"), ("light", "print")):
                page.emulate_media(color_scheme=scheme, media=media)
                found = Axe().run(page).response["violations"]
                assert [(entry["id"], entry["nodes"][0]["html"]) for entry in found] == []
        browser.close()


def _overlap(a: dict[str, float], b: dict[str, float]) -> bool:
    return all(a[at] < b[at] + b[size] and b[at] < a[at] + a[size] for at, size in (("x", "width"), ("y", "height")))
