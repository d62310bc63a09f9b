# SPDX-License-Identifier: Apache-2.0
"""Accuracy against BOPs: uniform bits, quantization alone, two stages, the paper's scheme, and ours.

Every run starts from the same FP32 checkpoint and has the same number of epochs of fine-tuning, the same optimizer and
the same learning rates; each with and without the original as a teacher. Finished runs are kept in
``benchmarks/results``, so that the study can be cut into pieces; two processes can share it.

    export OMP_NUM_THREADS=1
    python benchmarks/fashion_mnist.py --share 1/2 & python benchmarks/fashion_mnist.py --share 2/2
    python benchmarks/fronts.py  # docs/results.md and docs/recipes.md from what is finished
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

STUDY = Study("fronts", ("data", "network", "scheme", "fewer", "teacher", "seed", "epochs", "rate"))
FAST = 4.0
RATE = {"vgg7": FAST, "vgg7_wide": FAST, "resnet20": FAST, "vit": 1.0, "efficientnet_lite0": 1.0}
"""Usual learning rates, in those of `image_classification`: where 4 was tried, most schemes lose less with it."""
DOCS = Path(__file__).parents[1] / "docs"
FEWER = (16, 50, 100, 250, 400)
UNIFORM = {f"{bits}/{bits}": bits for bits in (8, 4, 3, 2)}
# The share of the MACs that pruning leaves before quantization takes the rest.
FIRST_STAGES = {f"two stages, MACs x {share}": share for share in (0.9, 0.75, 0.5, 0.35)}
NO_MARGIN = {"bit_margin": 0.0}
NOISE = {"bit_margin": 0.0, "noise": 0.3}
LEARNED: dict[str, dict[str, Any]] = {
    "quantization alone": {"pruning": {"enabled": False}},
    "paper": {"preset": "paper"},
    "ours": {},
    "ours, powers of two": {"quantization": {"power_of_two": True}},
}
# Not in docs/results.md: other lengths of the search in long trainings, and earlier defaults.
SEARCHES = {f"ours, freeze after {epochs} epochs": epochs for epochs in (2, 8, 32)}
EARLIER: dict[str, dict[str, Any]] = {
    "ours, no margin": {"pruning": NO_MARGIN},
    "ours, noise": {"pruning": NOISE},
    "ours, powers of two, no margin": {"quantization": {"power_of_two": True}, "pruning": NO_MARGIN},
    "ours, powers of two, noise": {"quantization": {"power_of_two": True}, "pruning": NOISE},
}
SCHEMES = (*UNIFORM, *FIRST_STAGES, *LEARNED)
VARIANTS = (*SEARCHES, *EARLIER)
OUT_OF_REACH: dict[str, Any] = {"out_of_reach": True}
"""Result where even the least bit-widths use more than what is asked for."""
NETWORKS = {
    "fashion_mnist": ("vgg7", "resnet20", "vit"),
    "cifar10": ("vgg7", "vgg7_wide", "resnet20"),
    "image_folder": ("efficientnet_lite0",),
}


def keys(seeds: int) -> list[tuple[str, int, int, int]]:
    """Scheme, ``fewer``, teacher and seed of every run that the study may make, those of one seed together."""
    schemes = [
        *((name, 0) for name in UNIFORM),
        *((name, fewer) for fewer in FEWER for name in (*LEARNED, *FIRST_STAGES, *VARIANTS)),
    ]
    return [
        (name, fewer, teacher, seed)
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
    rate: float,
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
            ctrl = tune(original, djpq=_settings(scheme, fewer, epochs), epochs=epochs)
            model, used = ctrl.model, costs(ctrl.statistics().djpq)
    except ConfigError as error:
        if "is out of reach" not in str(error):
            raise
        return OUT_OF_REACH
    return {**scores(model, network, data), **used}


def _settings(scheme: str, fewer: int, epochs: int) -> dict[str, Any]:
    if scheme in UNIFORM:
        bits = {"bits": UNIFORM[scheme]}
        return {"pruning": {"enabled": False}, "quantization": {"weights": bits, "activations": bits}}
    target = {"target": {"bops_ratio": 1 / fewer}}
    if scheme in SEARCHES:
        return {**target, "schedule": {"freeze_epoch": SEARCHES[scheme]}}
    if scheme in EARLIER:
        return {**target, "schedule": {"freeze_epoch": max(1, round(epochs / 3))}, **EARLIER[scheme]}
    return {**target, **LEARNED[scheme]}


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


TITLES = {0: "without a teacher", 1: "with a teacher"}
Runs = dict[tuple[str, int, int], list[dict[str, Any]]]
"""Finished runs of a network on a data set with the usual recipe, by scheme, ``fewer`` and teacher."""


def _usual(data: str, network: str) -> Runs:
    runs: Runs = {}
    for (*of, scheme, fewer, teacher, _seed, epochs, rate), result in STUDY.finished().items():
        if of == [data, network] and scheme in SCHEMES and (epochs, rate) == (EPOCHS[data], RATE[network]):
            runs.setdefault((str(scheme), int(fewer), int(teacher)), []).append(result)
    return runs


def _reached(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in found if not OUT_OF_REACH.items() <= run.items()]


def _with_best_two_stages(runs: Runs) -> Runs:
    """Of the first stages with the most seeds the best by validation, for each budget."""
    result = {key: found for key, found in runs.items() if key[0] not in FIRST_STAGES}
    for fewer, teacher in {key[1:] for key in runs if key[0] in FIRST_STAGES}:
        candidates = [runs[name, fewer, teacher] for name in FIRST_STAGES if (name, fewer, teacher) in runs]
        result["two stages", fewer, teacher] = min(
            candidates, key=lambda found: (-len(found), mean(run["lost_validation"] for run in found))
        )
    return result


def _section(data: str, network: str, runs: Runs) -> str:
    images, original = load(data), pretrained(network, data)
    before = accuracy(original, images.test, images.test_labels)
    reached = {key: some for key, found in runs.items() if (some := _reached(found))}
    # whatever the recipe: with what the first stage leaves it is known before the training
    out_of_reach = {
        key[2:4]
        for key, run in STUDY.finished().items()
        if key[:2] == (data, network) and OUT_OF_REACH.items() <= run.items()
    }
    rows = []
    for fewer, scheme in itertools.product((0, *FEWER), SCHEMES):
        found = [reached.get((scheme, fewer, teacher), []) for teacher in TITLES]
        if any(found):
            anyone = next(filter(None, found))
            rows.append(
                [
                    f"{1 / mean(run['bops_ratio'] for run in anyone):.1f}x",
                    scheme,
                    *(_with_seeds(each) for each in found),
                    f"{mean(run['macs_ratio'] for run in anyone):.2f}",
                ]
            )
        elif (scheme, fewer) in out_of_reach:
            rows.append([f"{fewer}x", scheme, "out of reach", "", ""])
    header = ["BOPs", "scheme", "lost", "with a teacher", "MACs"]
    text = f"## {network} on {data}\n\nFP32: {before:.2f} %.\n\n{markdown_table(header, rows, text_columns=2)}"
    return f"{text}\n![fronts]({_plot(data, network, _with_best_two_stages(reached)).relative_to(DOCS)})\n"


def _with_seeds(runs: list[dict[str, Any]]) -> str:
    return f"{spread(run['lost_test'] for run in runs)} ({len(runs)})" if runs else ""


def _plot(data: str, network: str, runs: Runs) -> Path:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    drawn = [teacher for teacher in TITLES if len({key[1] for key in runs if key[2] == teacher}) > 1]
    figure, several = pyplot.subplots(1, len(drawn), figsize=(5.5 * len(drawn), 4.5), sharey=True, squeeze=False)
    for axes, teacher in zip(several[0], drawn, strict=True):
        for scheme in ("uniform", "quantization alone", "two stages", "paper", "ours", "ours, powers of two"):
            names = UNIFORM if scheme == "uniform" else [scheme]
            found = [each for key, each in runs.items() if key[0] in names and key[2] == teacher]
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
        axes.set(xscale="log", xlabel="times fewer BOPs", ylabel="points of accuracy lost", title=TITLES[teacher])
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    path = DOCS / "images" / f"front_{network}_{data}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def page() -> str:
    """docs/results.md from the runs that are finished."""
    sections = [
        _section(data, network, runs)
        for data, networks in NETWORKS.items()
        for network in networks
        if (runs := _usual(data, network))
    ]
    return (
        "# Accuracy against bit operations\n\n"
        "Written by `python benchmarks/fronts.py` from the runs of `benchmarks/fashion_mnist.py`, `cifar10.py` and\n"
        "`image_folder.py`. Points of test accuracy lost against the FP32 network that all start from, mean and\n"
        "standard deviation over seeds, in brackets how many. All schemes have the same epochs of fine-tuning\n"
        f"({', '.join(f'{name}: {EPOCHS[name]}' for name in NETWORKS)}), optimizer and learning rates; half of the\n"
        "epochs of two stages are pruning, to a share of the MACs. The plots have the best share by validation,\n"
        "out of those with the most seeds. MACs: what is left of them. [recipes.md](recipes.md) has other learning\n"
        "rates, longer trainings and earlier defaults.\n"
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
        "Written by `python benchmarks/fronts.py`: what [results.md](results.md) has, next to runs with other\n"
        "learning rates (times those of `benchmarks/image_classification.py`) and numbers of epochs, with shorter\n"
        "and longer searches, and with earlier defaults: without a margin of bits, and before that also with noise of\n"
        '0.3 in the search ("noise"); these froze after a third of the epochs, however many. Points of test accuracy\n'
        "lost, in brackets the number of seeds. vgg7_wide is vgg7 with twice the channels.\n\n" + "\n".join(sections)
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
            cells = [_with_seeds(reached.get(rate, [])) for rate in rates]
            rows.append([f"1/{fewer}" if fewer else "", str(scheme), "yes" if teacher else "no", str(epochs), *cells])
    header = ["BOPs", "scheme", "teacher", "epochs", *(f"rate x {rate:g}" for rate in rates)]
    return markdown_table(header, rows, text_columns=3) if rows else ""


def main(data: str) -> None:
    """Run what is missing of one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS[data], default=list(NETWORKS[data]))
    parser.add_argument("--fewer", nargs="+", type=int, choices=(0, *FEWER), default=[0, *FEWER])
    parser.add_argument("--schemes", nargs="+", choices=(*SCHEMES, *VARIANTS), default=list(SCHEMES), metavar="SCHEME")
    parser.add_argument("--teachers", nargs="+", type=int, choices=(0, 1), default=[0, 1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help=f"of fine-tuning, {EPOCHS[data]} if not given")
    parser.add_argument("--rate", type=float, help="times the network's learning rate, its usual one if not given")
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    chosen = parser.parse_args()
    epochs = EPOCHS[data] if chosen.epochs is None else chosen.epochs
    if epochs < EPOCHS[data]:
        parser.error(f"--epochs takes at least {EPOCHS[data]}")
    too_long = [scheme for scheme in chosen.schemes if SEARCHES.get(scheme, 0) >= epochs]
    if too_long:
        parser.error(f"{', '.join(too_long)}: give more than {epochs} --epochs")
    if chosen.rate is not None and chosen.rate <= 0:
        parser.error("--rate takes a positive number")
    wanted = [
        (data, network, scheme, fewer, teacher, seed, epochs, RATE[network] if chosen.rate is None else chosen.rate)
        for network in chosen.networks
        for scheme, fewer, teacher, seed in keys(chosen.seeds)
        if scheme in chosen.schemes and fewer in chosen.fewer and teacher in chosen.teachers
    ]
    STUDY.run(wanted, measure, chosen.share)


if __name__ == "__main__":
    (DOCS / "results.md").write_text(page(), encoding="utf-8")
    (DOCS / "recipes.md").write_text(recipes_page(), encoding="utf-8")
