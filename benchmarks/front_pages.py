# SPDX-License-Identifier: Apache-2.0
"""docs/results.md and docs/recipes.md, from the runs of the fronts that are finished."""

import itertools
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from fronts import FEWER, FIRST_STAGES, NETWORKS, OUT_OF_REACH, RATE, SCHEMES, STUDY, UNIFORM, VARIANTS
from image_classification import EPOCHS, accuracy, pretrained
from image_data import load
from performance_page import markdown_table
from studies import Key, Study, spread

DOCS = Path(__file__).parents[1] / "docs"
FP32 = Study("fp32", ("data", "network"))
DRAWN = ("uniform", "quantization alone", "two stages", "paper", "ours", "ours, powers of two")


class Training(NamedTuple):
    """A column of docs/results.md: whether there is a teacher, and epochs in the usual ones."""

    column: str
    title: str
    teacher: int
    times: int


TRAININGS = (
    Training("lost", "without a teacher", 0, 1),
    Training("with a teacher", "with a teacher", 1, 1),
    Training("in 4 times the epochs", "with a teacher, 4 times the epochs", 1, 4),
)
Runs = dict[tuple[str, int, Training], list[dict[str, Any]]]
"""Finished runs of a network on a data set with the usual rate, by scheme, ``fewer`` and training."""


def _usual(data: str, network: str) -> Runs:
    trainings = {(training.teacher, training.times * EPOCHS[data]): training for training in TRAININGS}
    runs: Runs = {}
    for (*of, scheme, fewer, teacher, _seed, epochs, rate), result in STUDY.finished().items():
        training = trainings.get((int(teacher), int(epochs)))
        if of == [data, network] and scheme in SCHEMES and rate == RATE[network] and training:
            runs.setdefault((str(scheme), int(fewer), training), []).append(result)
    return runs


def _reached(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in found if not OUT_OF_REACH.items() <= run.items()]


def _with_best_two_stages(runs: Runs) -> Runs:
    """Of the first stages with the most seeds the best by validation, for each budget."""
    result = {key: found for key, found in runs.items() if key[0] not in FIRST_STAGES}
    for fewer, training in {key[1:] for key in runs if key[0] in FIRST_STAGES}:
        candidates = [runs[name, fewer, training] for name in FIRST_STAGES if (name, fewer, training) in runs]
        result["two stages", fewer, training] = min(
            candidates, key=lambda found: (-len(found), mean(run["lost_validation"] for run in found))
        )
    return result


def _fp32(data: str, network: str) -> float:
    """Test accuracy in percent, measured once: not every checkpoint is in the repository."""
    FP32.run([(data, network)], _measure_fp32)
    return float(FP32.finished()[data, network]["accuracy"])


def _measure_fp32(data: str, network: str) -> dict[str, float]:
    images = load(data)
    return {"accuracy": accuracy(pretrained(network, data), images.test, images.test_labels)}


def _section(data: str, network: str, runs: Runs) -> str:
    reached = {key: some for key, found in runs.items() if (some := _reached(found))}
    # whatever the recipe: with what the first stage leaves it is known before the training
    out_of_reach = {
        key[2:4]
        for key, run in STUDY.finished().items()
        if key[:2] == (data, network) and OUT_OF_REACH.items() <= run.items()
    }
    rows = []
    for fewer, scheme in itertools.product((0, *FEWER), SCHEMES):
        found = [reached.get((scheme, fewer, training), []) for training in TRAININGS]
        if any(found):
            anyone = next(filter(None, found))
            rows.append(
                [
                    f"{1 / mean(run['bops_ratio'] for run in anyone):.1f}x",
                    scheme,
                    *(_with_seeds(each, "lost_test") for each in found),
                    _macs(found),
                ]
            )
        elif (scheme, fewer) in out_of_reach:
            rows.append([f"{fewer}x", scheme, "out of reach", *[""] * len(TRAININGS)])
    header = ["BOPs", "scheme", *(training.column for training in TRAININGS), "MACs"]
    before = _fp32(data, network)
    text = f"## {network} on {data}\n\nFP32: {before:.2f} %.\n\n{markdown_table(header, rows, text_columns=2)}"
    several = [training for training in TRAININGS if len({key[1] for key in reached if key[2] == training}) > 1]
    if not several:
        return text
    plot = _plot(data, network, _with_best_two_stages(reached), several)
    return f"{text}\n![fronts]({plot.relative_to(DOCS)})\n"


def _with_seeds(runs: list[dict[str, Any]], *losses: str) -> str:
    return f"{' / '.join(spread(run[loss] for run in runs) for loss in losses)} ({len(runs)})" if runs else ""


def _macs(found: list[list[dict[str, Any]]]) -> str:
    return ", ".join(f"{mean(run['macs_ratio'] for run in runs):.2f}" for runs in found if runs)


def _plot(data: str, network: str, runs: Runs, trainings: list[Training]) -> Path:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fronts"  # the same runs, the same file
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    size = (5.5 * len(trainings), 4.5)
    figure, several = pyplot.subplots(1, len(trainings), figsize=size, sharey=True, squeeze=False)
    for axes, training in zip(several[0], trainings, strict=True):
        for number, scheme in enumerate(DRAWN):
            names = UNIFORM if scheme == "uniform" else [scheme]
            found = [each for key, each in runs.items() if key[0] in names and key[2] == training]
            points = sorted(
                (
                    1 / mean(run["bops_ratio"] for run in each),
                    mean(run["lost_test"] for run in each),
                    max(run["lost_test"] for run in each) - min(run["lost_test"] for run in each),
                )
                for each in found
            )
            if points:
                x, y, wide = zip(*points, strict=True)
                axes.errorbar(
                    x, y, [w / 2 for w in wide], label=scheme, color=f"C{number}", marker="o", capsize=3, linewidth=1
                )
        axes.set(xscale="log", xlabel="times fewer BOPs", ylabel="points of accuracy lost", title=training.title)
        axes.xaxis.set_major_locator(FixedLocator(FEWER))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend()
    axes.invert_yaxis()  # of all: they share it
    figure.tight_layout()
    path = DOCS / "images" / f"front_{network}_{data}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def results_page() -> str:
    """docs/results.md from the runs that are finished."""
    sections = [
        _section(data, network, runs)
        for data, networks in NETWORKS.items()
        for network in networks
        if (runs := _usual(data, network))
    ]
    return (
        "# Accuracy against bit operations\n\n"
        "Written by `python benchmarks/front_pages.py` from the runs of `benchmarks/fashion_mnist.py`, `cifar10.py`\n"
        "and `image_folder.py`. Points of test accuracy lost against the FP32 network that all start from, mean and\n"
        "standard deviation over seeds, in brackets how many. All schemes have the same optimizer, learning rates and\n"
        f"epochs of fine-tuning ({', '.join(f'{name}: {EPOCHS[name]}' for name in NETWORKS)}; four times as many,\n"
        "with a teacher, in the last column of losses). Two stages prune to a share of the MACs in half of the\n"
        "epochs, or in a quarter. The plots have the best of these by validation, out of those with the most seeds.\n"
        "MACs: what is left of them, one figure for each column of losses that has one; BOPs: in the first of these.\n"
        "[recipes.md](recipes.md) has other learning rates and lengths, earlier defaults, and losses in validation.\n"
        f"On {STUDY.machines()}.\n\n" + "\n".join(sections)
    )


def recipes_page() -> str:
    """docs/recipes.md from the runs that are finished."""
    runs: dict[Key, dict[float, list[dict[str, Any]]]] = {}
    for (data, network, scheme, fewer, teacher, _seed, epochs, rate), result in STUDY.finished().items():
        key = (data, network, fewer, teacher, epochs, scheme)
        runs.setdefault(key, {}).setdefault(float(rate), []).append(result)
    sections = []
    for data, networks in NETWORKS.items():
        for network in networks:
            table = _recipes({key[2:]: found for key, found in runs.items() if key[:2] == (data, network)})
            if table:
                sections.append(f"## {network} on {data}\n\n{table}")
    return (
        "# Other recipes\n\n"
        "Written by `python benchmarks/front_pages.py`: what [results.md](results.md) has, next to runs with other\n"
        "learning rates (times those of `benchmarks/image_classification.py`) and numbers of epochs, with shorter\n"
        "and longer searches, and with earlier defaults: without a margin of bits, and before that also with noise of\n"
        '0.3 in the search ("noise"); these froze after a third of the epochs, however many. Points of test accuracy\n'
        "lost in test and, behind the stroke, in validation, in brackets the number of seeds. MACs: what is left of\n"
        "them, one figure for each rate that has one. vgg7_wide is vgg7 with twice the channels.\n\n"
        + "\n".join(sections)
    )


def _recipes(runs: dict[Key, dict[float, list[dict[str, Any]]]]) -> str:
    """By ``fewer``, teacher, epochs and scheme, and then by rate."""
    order = [*SCHEMES, *VARIANTS]
    rates = sorted({rate for found in runs.values() for rate in found})
    rows = []
    for key, found in sorted(runs.items(), key=lambda item: (*item[0][:3], order.index(str(item[0][3])))):
        fewer, teacher, epochs, scheme = key
        reached = {rate: _reached(some) for rate, some in found.items()}
        if any(reached.values()):
            by_rate = [reached.get(rate, []) for rate in rates]
            cells = [_with_seeds(each, "lost_test", "lost_validation") for each in by_rate]
            of = [f"1/{fewer}" if fewer else "", str(scheme), "yes" if teacher else "no", str(epochs)]
            rows.append([*of, *cells, _macs(by_rate)])
    header = ["BOPs", "scheme", "teacher", "epochs", *(f"rate x {rate:g}" for rate in rates), "MACs"]
    return markdown_table(header, rows, text_columns=3) if rows else ""


if __name__ == "__main__":
    (DOCS / "results.md").write_text(results_page(), encoding="utf-8")
    (DOCS / "recipes.md").write_text(recipes_page(), encoding="utf-8")
