# SPDX-License-Identifier: Apache-2.0
"""Accuracy against BOPs: uniform bits, quantization alone, two stages, the paper's scheme, and ours.

Every run starts from the same FP32 checkpoint and has the same number of epochs of fine-tuning, the same optimizer and
the same learning rates; each with and without the original as a teacher. Finished runs are kept in
``benchmarks/results``, so that the study can be cut into pieces; two processes can share it.

    export OMP_NUM_THREADS=1
    python benchmarks/fashion_mnist.py --share 1/2 & python benchmarks/fashion_mnist.py --share 2/2
    python benchmarks/front_pages.py  # docs/results.md and docs/recipes.md from what is finished
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from image_classification import EPOCHS, RATES, pretrained
from studies import Study, costs, fine_tune, scores
from torch import nn

from djpq_nncf.errors import ConfigError

STUDY = Study("fronts", ("data", "network", "scheme", "fewer", "teacher", "seed", "epochs", "rate"))
FAST = 4.0
RATE = {"vgg7": FAST, "vgg7_wide": FAST, "resnet20": FAST, "vit": 1.0, "efficientnet_lite0": 1.0}
"""Usual learning rates, in those of `image_classification`: where 4 was tried, most schemes lose less with it."""
FEWER = (16, 50, 100, 250, 400)
UNIFORM = {f"{bits}/{bits}": bits for bits in (8, 4, 3, 2)}
# The share of the MACs that pruning leaves before quantization takes the rest, and its share of the epochs.
FIRST_STAGES = {
    **{f"two stages, MACs x {share}": (share, 1 / 2) for share in (0.9, 0.75, 0.5, 0.35)},
    **{f"two stages, MACs x {share} in a quarter": (share, 1 / 4) for share in (0.75, 0.5, 0.35)},
}
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
            model, used = _two_stages(tune, original, *FIRST_STAGES[scheme], 1 / fewer, epochs)
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
    tune: Callable[..., Any], original: nn.Module, share: float, time: float, ratio: float, epochs: int
) -> tuple[nn.Module, dict[str, float]]:
    first = int(time * epochs)
    pruning = {"quantization": {"enabled": False}, "target": {"macs_ratio": share}}
    pruned = tune(original, djpq=pruning, epochs=first)
    left = pruned.statistics().djpq.macs_ratio
    quantization = {"pruning": {"enabled": False}, "target": {"bops_ratio": ratio / left}}
    ctrl = tune(pruned.strip(), djpq=quantization, epochs=epochs - first)
    return ctrl.model, {"bops_ratio": ctrl.statistics().djpq.bops_ratio * left, "macs_ratio": left}


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
