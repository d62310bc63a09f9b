# SPDX-License-Identifier: Apache-2.0
"""Is it the channels and bits that a scheme finds, or how it trains them?

What each scheme has found is trained again from the FP32 checkpoint, fixed from the start, for as many epochs as the
scheme had for the search and the fine-tuning together.

    export OMP_NUM_THREADS=1
    python benchmarks/allocations.py --share 1/2 & python benchmarks/allocations.py --share 2/2
"""

import argparse
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import fronts
import numpy as np
import torch
from image_classification import EPOCHS, RATES, pretrained, train
from image_data import Batches, load
from performance_page import markdown_table
from studies import DISTILLATION, Study, scores, spread

from djpq_nncf import create_compressed_model
from djpq_nncf.algorithms._distillation import Distillation
from djpq_nncf.algorithms.djpq._freezing import Decision

STUDY = Study("allocations", ("data", "network", "scheme", "fewer", "teacher", "epochs", "seed"))
PAGE = Path(__file__).parents[1] / "docs" / "allocations.md"
SCHEMES = ("ours", "ours, no margin", "paper", *fronts.FIRST_STAGES)


class Allocation(NamedTuple):
    """Which channels stay, by group, and bit-widths in the order of the quantizers."""

    keep: dict[str, np.ndarray]
    bits: np.ndarray


@contextmanager
def recorded() -> Iterator[list[Allocation]]:
    """What is decided within the context."""
    found: list[Allocation] = []
    make = Decision.make

    def record(self: Decision) -> tuple[np.ndarray, np.ndarray]:
        keep, bits = make(self)
        groups = {name: self._analysis.groups[name].channels for name in self._gates}
        found.append(Allocation({name: keep[own.start : own.stop] for name, own in groups.items()}, bits))
        return keep, bits

    with mock.patch.object(Decision, "make", record):
        yield found


@contextmanager
def imposed(allocation: Allocation) -> Iterator[None]:
    """Decide this within the context."""

    def decide(self: Decision) -> tuple[np.ndarray, np.ndarray]:
        keep = np.ones(self._analysis.channel_count, dtype=bool)
        for name, kept in allocation.keep.items():
            own = self._analysis.groups[name].channels
            keep[own.start : own.stop] = kept
        return keep, allocation.bits

    with mock.patch.object(Decision, "make", decide):
        yield


def measure(data: str, network: str, scheme: str, fewer: int, teacher: int, epochs: int, seed: int) -> dict[str, Any]:
    """Run a scheme, and then train what it found again."""
    with recorded() as found:
        first = fronts.measure(data, network, scheme, fewer, teacher, seed, epochs, fronts.RATE[network])
    if first == fronts.OUT_OF_REACH:
        return first
    # of two stages the first decides on channels, the second on bits
    allocation = Allocation(found[0].keep, found[-1].bits)
    torch.manual_seed(seed)
    batches = Batches(load(data), seed)
    config = {"seed": seed, "compression": {"algorithm": "djpq", "target": {"bops_ratio": 1 / fewer}}}
    original = pretrained(network, data)
    ctrl, model = create_compressed_model(original, config, init_data=batches)
    with imposed(allocation):
        ctrl.freeze(weights_trained=True)
    if teacher:
        ctrl.terms.append(Distillation(model, original, DISTILLATION))
    train(model, batches, epochs, fronts.RATE[network] * RATES[network], ctrl)
    reached = ctrl.statistics().djpq.bops_ratio
    if abs(reached / first["bops_ratio"] - 1) > 1e-6:
        raise RuntimeError(f"{scheme} found {first['bops_ratio']}, and its channels and bits are {reached}")
    again = {f"{key}_again": lost for key, lost in scores(ctrl.model, network, data).items()}
    keep = {name: np.flatnonzero(kept).tolist() for name, kept in allocation.keep.items()}
    return {**first, **again, "keep": keep, "bits": allocation.bits.tolist()}


Runs = dict[tuple[Any, ...], dict[int, dict[str, Any]]]
"""Finished runs by data set, network, scheme, ``fewer``, teacher and epochs, and then by seed."""


def page() -> str:
    """All finished runs as Markdown."""
    runs: Runs = {}
    for key, result in STUDY.finished().items():
        if not fronts.OUT_OF_REACH.items() <= result.items():
            runs.setdefault(key[:6], {})[int(key[6])] = result
    columns = ("lost_test", "lost_test_again", "lost_validation", "lost_validation_again")
    rows = [
        [
            *(f"{network} on {data}", f"1/{fewer}", _training(teacher, epochs), scheme, str(len(found))),
            f"{np.mean([run['macs_ratio'] for run in found.values()]):.2f}",
            *(spread(run[column] for run in found.values()) for column in columns),
        ]
        for (data, network, scheme, fewer, teacher, epochs), found in runs.items()
    ]
    losses = ["as found", "trained again", "validation", "again"]
    header = ["network", "BOPs", "training", "found by", "seeds", "MACs", *losses]
    return (
        "# What is found, and how it is trained\n\n"
        "Written by `python benchmarks/allocations.py`: points of accuracy lost by a scheme, and by its channels and\n"
        "bits when they are fixed from the start and trained from the same FP32 checkpoint for all of the epochs. So\n"
        "the search costs nothing in the second, and its rows differ in what was found alone. Learning rates are\n"
        f"those of [results.md](results.md). On {STUDY.machines()}.\n\n"
        f"{markdown_table(header, rows, text_columns=4)}\n"
        "How far two of the same seed agree. Channels: those that both keep, of those that either keeps. Bit-widths:\n"
        "how many are the same, out of those below 8 bits in either (what costs nothing has 8).\n\n"
        f"{_agreement(runs)}"
    )


def _training(teacher: float | str, epochs: float | str) -> str:
    return f"{epochs} epochs{', teacher' if teacher else ''}"


def _agreement(runs: Runs) -> str:
    """Of our scheme, now and before, with each of the others, over the seeds that both have."""
    rows = []
    for (key, ours), (other, found) in itertools.product(runs.items(), runs.items()):
        data, network, scheme, fewer, teacher, epochs = other
        seeds = ours.keys() & found.keys()
        if not key[2].startswith("ours") or scheme.startswith("ours") or key[:2] + key[3:] != other[:2] + other[3:]:
            continue
        if not seeds:
            continue
        both = either = same = compared = 0
        for mine, theirs in ((ours[seed], found[seed]) for seed in seeds):
            for name, kept in mine["keep"].items():
                both += len(set(kept) & set(theirs["keep"][name]))
                either += len(set(kept) | set(theirs["keep"][name]))
            pairs = [(a, b) for a, b in zip(mine["bits"], theirs["bits"], strict=True) if min(a, b) < 8]
            same, compared = same + sum(a == b for a, b in pairs), compared + len(pairs)
        rows.append(
            [
                f"{network} on {data}",
                f"1/{fewer}",
                _training(teacher, epochs),
                f"{key[2]}; {scheme}",
                f"{both} of {either}",
                f"{same} of {compared}",
            ]
        )
    return markdown_table(["network", "BOPs", "training", "", "channels", "bit-widths"], rows, text_columns=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg7", "resnet20"])
    parser.add_argument("--data", nargs="+", default=["fashion_mnist", "cifar10"])
    parser.add_argument("--fewer", nargs="+", type=int, default=[250])
    schemes = (*SCHEMES, *fronts.SEARCHES)
    parser.add_argument("--schemes", nargs="+", choices=schemes, default=list(SCHEMES), metavar="SCHEME")
    parser.add_argument("--teacher", type=int, choices=(0, 1), default=0)
    parser.add_argument("--epochs", type=int, help="of each training, as many as results.md has if not given")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    chosen = parser.parse_args()
    wanted = [
        (data, network, scheme, fewer, chosen.teacher, chosen.epochs or EPOCHS[data], seed)
        for seed, data, network, fewer, scheme in itertools.product(
            range(chosen.seeds), chosen.data, chosen.networks, chosen.fewer, chosen.schemes
        )
    ]
    STUDY.run(wanted, measure, chosen.share)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
