# SPDX-License-Identifier: Apache-2.0
"""Accuracy against BOPs: uniform bits, quantization alone, two stages, the paper's scheme, and ours.

Every run starts from the same FP32 checkpoint and has the same number of epochs of fine-tuning, the same optimizer and
the same learning rates; each with and without the original as a teacher. Finished runs are kept in
``benchmarks/results``, so that the study can be cut into pieces; two processes can share it.

    export OMP_NUM_THREADS=1
    python benchmarks/fashion_mnist.py --share 1/2 & python benchmarks/fashion_mnist.py --share 2/2
    python benchmarks/fronts.py  # docs/results.md from what is finished
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from image_classification import EPOCHS, RATES, accuracy, pretrained
from image_data import load
from performance_page import markdown_table
from studies import Key, Study, costs, fine_tune, scores, spread
from torch import nn

from djpq_nncf.errors import ConfigError

FIELDS = ("data", "network", "scheme", "fewer", "teacher", "seed")
STUDY = Study("fronts", FIELDS)
FAST = 4.0
RECIPES = Study("recipes", (*FIELDS, "epochs", "rate"))
"""The same with other numbers of epochs than the data set's, and so many times the network's learning rate."""
DOCS = Path(__file__).parents[1] / "docs"
FEWER = (16, 50, 100, 250, 400)
UNIFORM = {f"{bits}/{bits}": bits for bits in (8, 4, 3, 2)}
# The share of the MACs that pruning leaves before quantization takes the rest.
FIRST_STAGES = {f"two stages, MACs x {share}": share for share in (0.9, 0.75, 0.5, 0.35)}
# Earlier defaults.
NO_MARGIN = {"bit_margin": 0.0}
NOISE = {"bit_margin": 0.0, "noise": 0.3}
LEARNED: dict[str, dict[str, Any]] = {
    "quantization alone": {"pruning": {"enabled": False}},
    "paper": {"preset": "paper"},
    "ours": {},
    "ours, no margin": {"pruning": NO_MARGIN},
    "ours, noise": {"pruning": NOISE},
    "ours, powers of two": {"quantization": {"power_of_two": True}},
    "ours, powers of two, no margin": {"quantization": {"power_of_two": True}, "pruning": NO_MARGIN},
    "ours, powers of two, noise": {"quantization": {"power_of_two": True}, "pruning": NOISE},
}
OUT_OF_REACH: dict[str, Any] = {"out_of_reach": True}
"""Result where even the least bit-widths use more than what is asked for."""
NETWORKS = {
    "fashion_mnist": ("vgg7", "resnet20", "vit"),
    "cifar10": ("vgg7", "vgg7_wide", "resnet20"),
    "image_folder": ("efficientnet_lite0",),
}


def keys(data: str, network: str, seeds: int) -> list[tuple[str, str, str, int, int, int]]:
    """Every run that the study wants, those of one seed together."""
    schemes = [
        *((name, 0) for name in UNIFORM),
        *((name, fewer) for fewer in FEWER for name in (*LEARNED, *FIRST_STAGES)),
    ]
    return [
        (data, network, name, fewer, teacher, seed)
        for seed, teacher, (name, fewer) in itertools.product(range(seeds), (0, 1), schemes)
    ]


def measure(
    data: str,
    network: str,
    scheme: str,
    fewer: int,
    teacher: int,
    seed: int,
    epochs: int,
    rate: float = 1.0,
) -> dict[str, Any]:
    """One run.

    Args:
        data: name of the data set.
        network: name of the network.
        scheme: one of the study's.
        fewer: how many times fewer BOPs; 0 where the scheme sets the cost.
        teacher: whether there is one.
        seed: of batches and noise.
        epochs: of fine-tuning.
        rate: learning rate, in those of the network.
    """
    original = pretrained(network, data)
    tune = partial(
        fine_tune,
        network=network,
        data=data,
        seed=seed,
        teacher=original if teacher else None,
        training={"lr": rate * RATES[network]},
    )
    try:
        if scheme in FIRST_STAGES:
            model, used = _two_stages(tune, original, FIRST_STAGES[scheme], 1 / fewer, epochs)
        else:
            ctrl = tune(original, djpq=_settings(scheme, fewer), epochs=epochs)
            model, used = ctrl.model, costs(ctrl.statistics().djpq)
    except ConfigError as error:
        if "is out of reach" not in str(error):
            raise
        return OUT_OF_REACH
    return {**scores(model, network, data), **used}


def _settings(scheme: str, fewer: int) -> dict[str, Any]:
    if scheme in UNIFORM:
        bits = {"bits": UNIFORM[scheme]}
        return {"pruning": {"enabled": False}, "quantization": {"weights": bits, "activations": bits}}
    return {"target": {"bops_ratio": 1 / fewer}, **LEARNED[scheme]}


def _two_stages(
    tune: Callable[..., Any], original: nn.Module, share: float, ratio: float, epochs: int
) -> tuple[nn.Module, dict[str, float]]:
    first = epochs // 2
    pruning = {"quantization": {"enabled": False}, "target": {"macs_ratio": share}}
    pruned = tune(original, djpq=pruning, epochs=first)
    left = pruned.statistics().djpq.macs_ratio
    quantization = {"pruning": {"enabled": False}, "target": {"bops_ratio": ratio / left}}
    ctrl = tune(pruned.strip(), djpq=quantization, epochs=epochs - first)
    return ctrl.model, {"bops_ratio": ctrl.statistics().djpq.bops_ratio * left, "macs_ratio": left}


Recipe = tuple[int, float]
"""Teacher, and learning rate in those of the network."""
COLUMNS: dict[Recipe, str] = {
    (0, 1.0): "lost",
    (1, 1.0): "with a teacher",
    (0, FAST): f"{FAST:g} x the rate",
    (1, FAST): f"{FAST:g} x the rate, teacher",
}
TITLES = {**COLUMNS, (0, 1.0): "without a teacher"}
Runs = dict[tuple[str, int, Recipe], list[dict[str, Any]]]
"""Finished runs of a network on a data set, by scheme, ``fewer`` and recipe."""


def _finished(data: str, network: str) -> Runs:
    usual = {(*key, EPOCHS[data], 1.0): result for key, result in STUDY.finished().items()}
    runs: Runs = {}
    for (*of, scheme, fewer, teacher, _seed, epochs, rate), result in {**usual, **RECIPES.finished()}.items():
        if of == [data, network] and epochs == EPOCHS[data] and (teacher, rate) in COLUMNS:
            runs.setdefault((scheme, fewer, (teacher, rate)), []).append(result)
    return runs


def _reached(runs: Runs) -> Runs:
    return {
        key: reached
        for key, found in runs.items()
        if (reached := [run for run in found if not OUT_OF_REACH.items() <= run.items()])
    }


def _with_best_two_stages(runs: Runs) -> Runs:
    """Of the first stages with the most seeds the best by validation, for each budget."""
    result = {key: found for key, found in runs.items() if key[0] not in FIRST_STAGES}
    for fewer, recipe in {key[1:] for key in runs if key[0] in FIRST_STAGES}:
        candidates = [runs[name, fewer, recipe] for name in FIRST_STAGES if (name, fewer, recipe) in runs]
        result["two stages", fewer, recipe] = min(
            candidates, key=lambda found: (-len(found), mean(run["lost_validation"] for run in found))
        )
    return result


def _section(data: str, network: str, runs: Runs) -> str:
    images, original = load(data), pretrained(network, data)
    before = accuracy(original, images.test, images.test_labels)
    reached = _reached(runs)
    columns = [recipe for recipe in COLUMNS if any(key[2] == recipe for key in reached)]
    rows = []
    for fewer, scheme in itertools.product((0, *FEWER), (*UNIFORM, *FIRST_STAGES, *LEARNED)):
        found = [reached.get((scheme, fewer, recipe), []) for recipe in columns]
        if any(found):
            anyone = next(filter(None, found))
            rows.append(
                [
                    f"{1 / mean(run['bops_ratio'] for run in anyone):.1f}x",
                    scheme,
                    *(spread(run["lost_test"] for run in each) if each else "" for each in found),
                    " / ".join(f"{mean(run['macs_ratio'] for run in each):.2f}" if each else "-" for each in found),
                    " / ".join(str(len(each) or "-") for each in found),
                ]
            )
        elif any((scheme, fewer, recipe) in runs for recipe in columns):
            rows.append([f"{fewer}x", scheme, "out of reach", *[""] * (len(columns) + 1)])
    header = ["BOPs", "scheme", *(COLUMNS[recipe] for recipe in columns), "MACs", "seeds"]
    text = f"## {network} on {data}\n\nFP32: {before:.2f} %.\n\n{markdown_table(header, rows, text_columns=2)}"
    return f"{text}\n![fronts]({_plot(data, network, _with_best_two_stages(reached)).relative_to(DOCS)})\n"


def _plot(data: str, network: str, runs: Runs) -> Path:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    drawn = [recipe for recipe in COLUMNS if len({key[1] for key in runs if key[2] == recipe}) > 1]
    figure, several = pyplot.subplots(1, len(drawn), figsize=(5.5 * len(drawn), 4.5), sharey=True, squeeze=False)
    for axes, recipe in zip(several[0], drawn, strict=True):
        for scheme in (
            "uniform",
            "quantization alone",
            "two stages",
            "paper",
            "ours",
            "ours, no margin",
            "ours, noise",
            "ours, powers of two",
            "ours, powers of two, no margin",
        ):
            names = UNIFORM if scheme == "uniform" else [scheme]
            found = [each for key, each in runs.items() if key[0] in names and key[2] == recipe]
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
                axes.errorbar(x, y, [w / 2 for w in wide], label=scheme, marker="o", capsize=3, linewidth=1)
        axes.set(xscale="log", xlabel="times fewer BOPs", ylabel="points of accuracy lost", title=TITLES[recipe])
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    path = DOCS / "images" / f"front_{network}_{data}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _other_recipes() -> str:
    """Next to those of `COLUMNS`, where these have the same seeds."""
    finished = RECIPES.finished()
    others = {key for key in finished if (key[6], (key[4], key[7])) not in {(EPOCHS[key[0]], at) for at in COLUMNS}}
    usual = {(*key, EPOCHS[str(key[0])], 1.0): result for key, result in STUDY.finished().items()}
    runs: dict[Key, dict[float, list[float]]] = {}
    for key, result in {**usual, **finished}.items():
        if key[:6] in {other[:6] for other in others} and not OUT_OF_REACH.items() <= result.items():
            runs.setdefault((*key[:5], key[6]), {}).setdefault(float(key[7]), []).append(result["lost_test"])
    rates = sorted({rate for found in runs.values() for rate in found})
    rows = [
        [f"{network} on {data}", f"1/{fewer}", scheme, "yes" if teacher else "no", str(epochs)]
        + [f"{spread(found[rate])} ({len(found[rate])})" if rate in found else "" for rate in rates]
        for (data, network, scheme, fewer, teacher, epochs), found in sorted(
            runs.items(), key=lambda item: (*item[0][:2], item[0][3], *item[0][4:], item[0][2])
        )
    ]
    header = ["network", "BOPs", "scheme", "teacher", "epochs", *(f"rate x {rate:g}" for rate in rates)]
    return markdown_table(header, rows, text_columns=4)


def page() -> str:
    """docs/results.md from the runs that are finished."""
    sections = [
        _section(data, network, runs)
        for data, networks in NETWORKS.items()
        for network in networks
        if (runs := _finished(data, network))
    ]
    return (
        "# Accuracy against bit operations\n\n"
        "Written by `python benchmarks/fronts.py` from the runs of `benchmarks/fashion_mnist.py`, `cifar10.py` and\n"
        "`image_folder.py`. Points of test accuracy lost against the FP32 network that all start from, mean and\n"
        "standard deviation over seeds (without / with a teacher). All schemes have the same epochs of fine-tuning\n"
        f"({', '.join(f'{name}: {EPOCHS[name]}' for name in NETWORKS)}), optimizer and learning rates; half of the\n"
        "epochs of two stages are pruning, to a share of the MACs. The plots have the best share by validation,\n"
        "out of those with the most seeds. MACs: what is left of them. vgg7_wide is vgg7 with twice the channels.\n"
        f"On {STUDY.machines()}.\n\n" + "\n".join(sections) + "\n"
        "## Other recipes\n\n"
        "Points of test accuracy lost, with other learning rates (times the network's own) and numbers of epochs; in\n"
        "brackets the number of seeds.\n\n"
        f"{_other_recipes()}"
    )


def main(data: str) -> None:
    """Run what is missing of one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS[data], default=list(NETWORKS[data]))
    parser.add_argument("--fewer", nargs="+", type=int, choices=(0, *FEWER), default=[0, *FEWER])
    parser.add_argument("--schemes", nargs="+", default=[*UNIFORM, *LEARNED, *FIRST_STAGES])
    parser.add_argument("--teachers", nargs="+", type=int, choices=(0, 1), default=[0, 1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help=f"of fine-tuning, {EPOCHS[data]} if not given")
    parser.add_argument("--rate", type=float, default=1.0, help="times the network's learning rate")
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    chosen = parser.parse_args()
    wanted = [
        key
        for network in chosen.networks
        for key in keys(data, network, chosen.seeds)
        if key[2] in chosen.schemes and key[3] in chosen.fewer and key[4] in chosen.teachers
    ]
    epochs = EPOCHS[data] if chosen.epochs is None else chosen.epochs
    if epochs < EPOCHS[data]:
        parser.error(f"--epochs takes at least {EPOCHS[data]}")
    if chosen.rate <= 0:
        parser.error("--rate takes a positive number")
    if (epochs, chosen.rate) == (EPOCHS[data], 1.0):
        STUDY.run(wanted, lambda *key: measure(*key, epochs), chosen.share)
        return
    if 0 in chosen.fewer:
        parser.error("other recipes take --fewer without 0")
    RECIPES.run([(*key, epochs, chosen.rate) for key in wanted], measure, chosen.share)


if __name__ == "__main__":
    (DOCS / "results.md").write_text(page(), encoding="utf-8")
