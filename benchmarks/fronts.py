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
from pathlib import Path
from statistics import mean
from typing import Any

from image_classification import EPOCHS, accuracy, pretrained
from image_data import load
from performance_page import markdown_table
from studies import Key, Study, costs, fine_tune, scores, spread

from djpq_nncf.errors import ConfigError

FIELDS = ("data", "network", "scheme", "fewer", "teacher", "seed")
STUDY = Study("fronts", FIELDS)
LONGER = Study("longer", (*FIELDS, "epochs"))
"""The same, with more epochs than the data set's."""
DOCS = Path(__file__).parents[1] / "docs"
FEWER = (16, 50, 100, 250, 400)
UNIFORM = {f"{bits}/{bits}": bits for bits in (8, 4, 3, 2)}
# The share of the MACs that pruning leaves before quantization takes the rest.
FIRST_STAGES = {f"two stages, MACs x {share}": share for share in (0.9, 0.75, 0.5)}
LEARNED: dict[str, dict[str, Any]] = {
    "quantization alone": {"pruning": {"enabled": False}},
    "paper": {"preset": "paper"},
    "ours": {},
    "ours, no noise": {"pruning": {"noise": 0.0}},
    "ours, powers of two": {"quantization": {"power_of_two": True}},
    "ours, powers of two, no noise": {"quantization": {"power_of_two": True}, "pruning": {"noise": 0.0}},
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
    data: str, network: str, scheme: str, fewer: int, teacher: int, seed: int, epochs: int | None = None
) -> dict[str, Any]:
    """One run; ``fewer`` 0 where the scheme sets the cost, ``epochs`` those of the data set if not given."""
    epochs = epochs or EPOCHS[data]
    original = pretrained(network, data)
    tutor = original if teacher else None
    if scheme in UNIFORM:
        bits = {"bits": UNIFORM[scheme]}
        fixed = {"pruning": {"enabled": False}, "quantization": {"weights": bits, "activations": bits}}
        ctrl = fine_tune(original, network, data, seed, fixed, epochs=epochs, teacher=tutor)
    elif scheme in FIRST_STAGES:
        return _two_stages(data, network, FIRST_STAGES[scheme], 1 / fewer, teacher, seed, epochs)
    else:
        try:
            djpq = {"target": {"bops_ratio": 1 / fewer}, **LEARNED[scheme]}
            ctrl = fine_tune(original, network, data, seed, djpq, epochs=epochs, teacher=tutor)
        except ConfigError as error:
            return _out_of_reach(error)
    return {**scores(ctrl.model, network, data), **costs(ctrl.statistics().djpq)}


def _out_of_reach(error: ConfigError) -> dict[str, Any]:
    """A result of its own; any other error is a mistake."""
    if "is out of reach" not in str(error):
        raise error
    return OUT_OF_REACH


def _two_stages(
    data: str, network: str, share: float, ratio: float, teacher: int, seed: int, epochs: int
) -> dict[str, Any]:
    original = pretrained(network, data)
    tutor, first = original if teacher else None, epochs // 2
    pruning = {"quantization": {"enabled": False}, "target": {"macs_ratio": share}}
    pruned = fine_tune(original, network, data, seed, pruning, epochs=first, teacher=tutor)
    left = pruned.statistics().djpq.macs_ratio
    quantization = {"pruning": {"enabled": False}, "target": {"bops_ratio": ratio / left}}
    try:
        ctrl = fine_tune(pruned.strip(), network, data, seed, quantization, epochs=epochs - first, teacher=tutor)
    except ConfigError as error:
        return _out_of_reach(error)
    bops_ratio = ctrl.statistics().djpq.bops_ratio * left
    return {**scores(ctrl.model, network, data), "bops_ratio": bops_ratio, "macs_ratio": left}


Runs = dict[tuple[str, int, int], list[dict[str, Any]]]
"""Finished runs of a network on a data set, by scheme, ``fewer`` and teacher."""


def _finished(data: str, network: str) -> Runs:
    runs: Runs = {}
    for key, result in STUDY.finished().items():
        if key[:2] == (data, network) and not OUT_OF_REACH.items() <= result.items():
            runs.setdefault(key[2:5], []).append(result)  # type: ignore[arg-type]
    return runs


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
    rows = []
    for fewer, scheme in itertools.product((0, *FEWER), (*UNIFORM, *FIRST_STAGES, *LEARNED)):
        found = [runs.get((scheme, fewer, teacher), []) for teacher in (0, 1)]
        if not any(found):
            continue
        anyone = found[0] or found[1]
        row = [
            f"{1 / mean(run['bops_ratio'] for run in anyone):.1f}x",
            scheme,
            *(spread(run["lost_test"] for run in each) if each else "" for each in found),
            *(f"{mean(run['macs_ratio'] for run in each):.2f}" if each else "" for each in found),
            " / ".join(str(len(each)) for each in found if each),
        ]
        rows.append(row)
    header = ["BOPs", "scheme", "lost", "lost, teacher", "MACs", "MACs, teacher", "seeds"]
    text = f"## {network} on {data}\n\nFP32: {before:.2f} %.\n\n{markdown_table(header, rows, text_columns=2)}"
    return f"{text}\n![fronts]({_plot(data, network, _with_best_two_stages(runs)).relative_to(DOCS)})\n"


def _plot(data: str, network: str, runs: Runs) -> Path:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, teacher, title in zip(both, (0, 1), ("without a teacher", "with the original as teacher"), strict=True):
        for scheme in (
            "uniform",
            "quantization alone",
            "two stages",
            "paper",
            "ours",
            "ours, no noise",
            "ours, powers of two",
        ):
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
        axes.set(xscale="log", xlabel="times fewer BOPs", ylabel="points of accuracy lost", title=title)
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.tight_layout()
    path = DOCS / "images" / f"front_{network}_{data}.svg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _longer() -> str:
    """What more epochs change, next to the runs of the same seeds with the usual number."""
    usual, longer = STUDY.finished(), LONGER.finished()
    same = {(*key[:6], EPOCHS[str(key[0])]): usual[key[:6]] for key in longer if key[:6] in usual}
    runs: dict[Key, dict[int, list[float]]] = {}
    for key, result in {**longer, **same}.items():
        if not OUT_OF_REACH.items() <= result.items():
            runs.setdefault(key[:5], {}).setdefault(int(key[6]), []).append(result["lost_test"])
    if not runs:
        return ""
    columns = sorted({count for found in runs.values() for count in found})
    rows = [
        [f"{network} on {data}", f"1/{fewer}", scheme, "yes" if teacher else "no"]
        + [f"{spread(found[count])} ({len(found[count])})" if count in found else "" for count in columns]
        for (data, network, scheme, fewer, teacher), found in sorted(runs.items())
    ]
    header = ["network", "BOPs", "scheme", "teacher", *(f"{count} epochs" for count in columns)]
    table = markdown_table(header, rows, text_columns=4)
    return f"## More epochs\n\nPoints of test accuracy lost; in brackets the number of seeds.\n\n{table}"


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
        f"On {STUDY.machines()}.\n\n" + "\n".join(filter(None, [*sections, _longer()]))
    )


def main(data: str) -> None:
    """Run what is missing of one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS[data], default=list(NETWORKS[data]))
    parser.add_argument("--fewer", nargs="+", type=int, choices=(0, *FEWER), default=[0, *FEWER])
    parser.add_argument("--schemes", nargs="+", default=[*UNIFORM, *LEARNED, *FIRST_STAGES])
    parser.add_argument("--teachers", nargs="+", type=int, choices=(0, 1), default=[0, 1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="more than the data set's: a study of its own")
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    chosen = parser.parse_args()
    wanted = [
        key
        for network in chosen.networks
        for key in keys(data, network, chosen.seeds)
        if key[2] in chosen.schemes and key[3] in chosen.fewer and key[4] in chosen.teachers
    ]
    if chosen.epochs is not None and (chosen.epochs <= EPOCHS[data] or 0 in chosen.fewer):
        parser.error(f"--epochs takes more than {EPOCHS[data]}, and --fewer without 0")
    if chosen.epochs is None:
        STUDY.run(wanted, measure, chosen.share)
    else:
        LONGER.run([(*key, chosen.epochs) for key in wanted], measure, chosen.share)


if __name__ == "__main__":
    (DOCS / "results.md").write_text(page(), encoding="utf-8")
