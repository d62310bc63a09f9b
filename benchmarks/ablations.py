# SPDX-License-Identifier: Apache-2.0
"""Which choices matter: the defaults against the same run with one of them changed.

Each finished run is stored, so that an interrupted study continues where it was; two processes can share it.

    export OMP_NUM_THREADS=1
    python benchmarks/ablations.py --share 1/2 & python benchmarks/ablations.py --share 2/2
"""

import argparse
import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import fronts
import measured_bits
import numpy as np
import torch
from image_classification import EPOCHS, RATES, pretrained
from image_data import DATA
from image_networks import NETWORKS
from performance_page import markdown_table
from studies import DISTILLATION, Key, Study, costs, fine_tune, scores, spread
from torch import Tensor, nn

from djpq_nncf.algorithms.djpq import DJPQController, _freezing, _scheduler
from djpq_nncf.nn import WeightQuantizer, _functional

FIELDS = ("data", "network", "fewer", "choice", "seed")
STUDY = Study("ablations", FIELDS)
EARLIER = {
    "ablations_sixth": "Bit-widths could sink to their least in the search.",
    "ablations_fifth": "Noise of 0.3 on the channels in the search, and a learning rate of 0.003.",
    "ablations_fourth": "No noise on the channels in the search; with a teacher, squared derivatives were not divided.",
    "ablations_third": "Steps and ranges were learned, not levels and scales, both 5 times as fast as the weights.",
    "ablations_second": "Learned gates (the information bottleneck), which weighed 0.5, and a learning rate of 0.001.",
    "ablations_first": "As before, but gates weighed 2, and the freeze came after 60 % of the epochs.",
}
IN_FRONTS = {
    "defaults": ("ours", 0),
    "pruning off (DQ)": ("quantization alone", 0),
    "no margin of bits": ("ours, no margin", 0),
    "with a teacher": ("ours", 1),
    "with a teacher, pruning off": ("quantization alone", 1),
}
"""Choices that the study of fronts has measured too: its scheme, and whether there was a teacher."""
PAGE = Path(__file__).parents[1] / "docs" / "ablations.md"


def nearest_lower(choices: Any, amounts: Any, budget: Any, *, tolerance: float) -> Any:
    """Round all bit-widths to the nearest, then lower one after the other, the widest first, until the budget holds."""
    bits = np.array(
        [min(allowed, key=lambda b: abs(b - at)) for at, allowed in
         zip(choices.learned, choices.admissible, strict=True)], dtype=np.int64,
    )  # fmt: skip
    while budget.use(choices, amounts, bits) > 1:
        lower = [max((b for b in allowed if b < at), default=0)
                 for at, allowed in zip(bits, choices.admissible, strict=True)]  # fmt: skip
        movable = [i for i, b in enumerate(lower) if b]
        if not movable:
            break
        widest = max(movable, key=lambda i: bits[i])
        bits[widest] = lower[widest]
    return bits


def equalized(model: nn.Module) -> nn.Module:
    """The same network with output channels of equal size in every convolution before a BatchNorm, which evens it out.

    With one step for each weight tensor that is what a step for each output channel would be.
    """
    layers = list(model.modules())
    for layer, batchnorm in itertools.pairwise(layers):
        if isinstance(layer, nn.Conv2d) and isinstance(batchnorm, nn.BatchNorm2d):
            size = layer.weight.detach().flatten(1).norm(dim=1)
            size = (size / size.mean()).clamp_min(1e-3)
            layer.weight.data /= size.reshape(-1, 1, 1, 1)
            batchnorm.running_mean /= size
            batchnorm.running_var /= size.square()
    return model


_quantize = WeightQuantizer.forward


def four_levels(self: WeightQuantizer, weight: Tensor, gate: Tensor | None = None) -> Tensor:
    """Weights of 2 bits, once that is fixed, on -3/2, -1/2, 1/2 and 3/2 of a step: all four values that 2 bits hold."""
    if self.bits != 2:
        return _quantize(self, weight, gate)
    weight = weight if gate is None else weight * gate
    step = self.range() * 1.245 / 1.5  # what rounds normal values with least squared error, as `normal_range`
    position = (weight / step).clamp(-1.5, 1.5)
    code = (position.detach().floor().clamp(-2, 1) + 0.5) * (weight != 0)  # zero: of a channel that is closed
    quantized: Tensor = step * (position + (code - position).detach())  # straight-through
    return quantized


@contextmanager
def patched(**values: Any) -> Iterator[None]:
    """Other values for constants of the library that are no settings."""
    places = {
        "highest_strength": (_scheduler, "_HIGHEST_STRENGTH"),
        "choose_bits": (_freezing, "choose_bits"),
        "normal_range": (_functional, "normal_range"),
        "quantize_weight": (WeightQuantizer, "forward"),
        "freeze": (DJPQController, "freeze"),
    }
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch.object(*places[name], value))
        yield


def both_bits(**settings: int) -> dict[str, Any]:
    """The same for weights and activations."""
    return {"quantization": {"weights": settings, "activations": settings}}


CHOICES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "pruning off (DQ)": {"pruning": {"enabled": False}},
    "learned exponent": {"quantization": {"weights": {"learn_exponent": True}}},
    "symmetric activations": {"quantization": {"activations": {"mode": "symmetric"}}},
    "start at 8 bits": both_bits(initial_bits=8),
    "start at 4 bits": both_bits(initial_bits=4),
    "ranges of all values": {"initializer": {"range": {"type": "min_max"}}},
    "learned gates (information bottleneck)": {"pruning": {"criterion": "information_bottleneck"}},
    "noise of 0.3 in the search": {"pruning": {"noise": 0.3}},
    "no margin of bits": {"pruning": {"bit_margin": 0.0}},
    "a margin of half a bit": {"pruning": {"bit_margin": 0.5}},
    "channels go at 0.3 of their worth": {"pruning": {"threshold": 0.3}},
    "channels go at 3 times their worth": {"pruning": {"threshold": 3.0}},
    "channels not weighted by cost": {"pruning": {"cost_weighted": False}},
    "bits learn as fast as weights": {"quantization": {"lr_multiplier": 1.0}},
    "bits learn 3 times as fast": {"quantization": {"lr_multiplier": 3.0}},
    "bits learn 10 times as fast": {"quantization": {"lr_multiplier": 10.0}},
    "ranges learn 3 times as fast": {"quantization": {"range_lr_multiplier": 3.0}},
    "ranges do not follow bits": {"patched": {"normal_range": torch.ones_like}},
    "four levels for weights of 2 bits": {"patched": {"quantize_weight": four_levels}},
    "no ramp": {"schedule": {"ramp": 0.0}},
    "ramp over all of the joint phase": {"schedule": {"ramp": 1.0}},
    "freeze after a sixth": {"freeze_share": 1 / 6},
    "freeze after half": {"freeze_share": 1 / 2},
    "freeze after two thirds": {"freeze_share": 2 / 3},
    "a step for each output channel": {"prepared": equalized},
    "blocks of 1 channel": {"pruning": {"round_to": 1}},
    "bits lowered by width alone": {"patched": {"choose_bits": nearest_lower}},
    "bits exchanged by measured loss": {"patched": {"freeze": measured_bits.freeze}},
    "BatchNorm not re-estimated": {"initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}},
    "weights decay by 1e-4": {"training": {"weight_decay": 1e-4}},
    "SGD with momentum": {"training": {"optimizer": partial(torch.optim.SGD, momentum=0.9), "lr": 0.1}},
    "with a teacher": {"teacher": {}},
    "with a teacher, T = 4": {"teacher": {"temperature": 4.0}},
    "with a teacher of weight 4": {"teacher": {"scale": 4.0}},
    "with a teacher, pruning off": {"teacher": {}, "pruning": {"enabled": False}},
    "with a teacher of weight 4, pruning off": {"teacher": {"scale": 4.0}, "pruning": {"enabled": False}},
}


def measure(data: str, network: str, fewer: int, choice: str, seed: int) -> dict[str, Any]:
    """One fine-tuning to a ``fewer``-th of the BOPs."""
    options = dict(CHOICES[choice])
    constants = options.pop("patched", {})
    teacher: dict[str, Any] | None = options.pop("teacher", None)
    training = {"lr": fronts.FAST * RATES[network], **options.pop("training", {})}
    epochs = EPOCHS[data]
    schedule = {"epochs": epochs, **options.pop("schedule", {})}
    if "freeze_share" in options:
        schedule["freeze_epoch"] = round(options.pop("freeze_share") * epochs)
    original = options.pop("prepared", lambda model: model)(pretrained(network, data))
    djpq = {"target": {"bops_ratio": 1 / fewer}, "schedule": schedule, **options}
    with patched(**constants):
        ctrl = fine_tune(
            *(original, network, data, seed, djpq),
            teacher=None if teacher is None else original,
            distillation=replace(DISTILLATION, **(teacher or {})),
            training=training,
        )
        return {**scores(ctrl.model, network, data), **costs(ctrl.statistics().djpq)}


def page() -> str:
    """All finished runs as Markdown."""
    machines = STUDY.machines() or Study(next(iter(EARLIER)), FIELDS).machines()
    return (
        "# Ablations\n\n"
        "Written by `python benchmarks/ablations.py`: the defaults, and the same with one choice changed. Points of\n"
        "accuracy lost against the FP32 network that all start from, mean and standard deviation over seeds; defaults\n"
        "are chosen by the validation split, which orders the rows. What [recipes.md](recipes.md) has too is the same\n"
        f"runs. On {machines}.\n\n"
        f"{_tables(_with_fronts(STUDY.finished()))}\n"
        "# Before\n\n"
        "The same with the defaults that these runs led away from, the latest first.\n\n"
        + "\n".join(f"{what}\n\n{_tables(Study(name, FIELDS).finished())}" for name, what in EARLIER.items())
    )


def _with_fronts(finished: dict[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """With the choices that were measured there, at the same places."""
    places = {key[:3] for key in finished}
    result = dict(finished)
    for (data, network, scheme, fewer, teacher, seed, *recipe), run in fronts.STUDY.finished().items():
        if (data, network, fewer) not in places or recipe != [EPOCHS[str(data)], fronts.FAST]:
            continue
        for choice, at in IN_FRONTS.items():
            if (scheme, teacher) == at and "lost_test" in run:
                result.setdefault((data, network, fewer, choice, seed), run)
    return result


def _tables(finished: dict[Key, dict[str, Any]]) -> str:
    """A table for each place, the choice that lost least in validation first."""
    by_choice: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, result in finished.items():
        by_choice.setdefault(key[:-1], []).append(result)
    ordered = sorted(by_choice.items(), key=lambda item: float(np.mean([run["lost_validation"] for run in item[1]])))
    tables = []
    for at in dict.fromkeys(key[:3] for key in by_choice):
        rows = [
            [
                str(key[3]),
                str(len(runs)),
                spread(run["lost_validation"] for run in runs),
                spread(run["lost_test"] for run in runs),
                f"{np.mean([run['macs_ratio'] for run in runs]):.2f}",
                f"{np.mean([run['seconds'] for run in runs]):.0f}",
            ]
            for key, runs in ordered
            if key[:3] == at
        ]
        data, network, fewer = at
        header = ["choice", "seeds", "lost, validation", "lost, test", "MACs", "seconds"]
        tables.append(f"## {network} on {data}, 1/{fewer} of the BOPs\n\n{markdown_table(header, rows)}")
    return "\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="CHOICE")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["vgg7", "resnet20"])
    parser.add_argument("--data", nargs="+", choices=DATA, default=["fashion_mnist", "cifar10"])
    parser.add_argument("--fewer", nargs="+", type=int, default=[200], help="how many times fewer BOPs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    arguments = parser.parse_args()
    keys = itertools.product(
        range(arguments.seeds), arguments.data, arguments.networks, arguments.fewer, arguments.only
    )
    STUDY.run([(data, net, fewer, choice, seed) for seed, data, net, fewer, choice in keys], measure, arguments.share)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
