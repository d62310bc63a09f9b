# SPDX-License-Identifier: Apache-2.0
"""A CPU as the target: pruned and quantized in one training, or pruned in one and then quantized by NNCF without any.

Both prune to the same share of the MACs, with the same epochs, optimizer and learning rates, and both end in 8 bits.
Accuracy is that of the OpenVINO files, by OpenVINO; latency is taken with one thread, all files of a network in turn.

    python benchmarks/cpu_target.py                      # what is missing
    python benchmarks/cpu_target.py --page               # time the files, and write docs/cpu_target.md
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from image_classification import accuracy, pretrained
from image_data import RUNS, load
from performance_page import markdown_table
from studies import Study, fine_tune, spread
from torch import nn

from djpq_nncf import create_compressed_model
from djpq_nncf.benchmark import Calibration, Contestant, latencies, quantize_file
from djpq_nncf.export import Execution, export_model, open_runtime, read_notes

STUDY = Study("cpu_target", ("data", "network", "scheme", "macs", "seed"))
PAGE = Path(__file__).parents[1] / "docs" / "cpu_target.md"
FILES = RUNS / "cpu_target"
NETWORKS = (("cifar10", "vgg7"), ("cifar10", "resnet20"), ("image_folder", "efficientnet_lite0"))
SHARES = (75, 50, 30)
"""Percent of the MACs that are left."""
WHOLE = ("FP32", "NNCF")
PRUNED = ("pruned, then NNCF", "ours")
CALIBRATION = 300
BATCHES = (1, 64)
NO_QUANTIZERS = {"quantization": {"enabled": False}}


def path_of(data: str, network: str, scheme: str, macs: int, seed: int) -> Path:
    """Where the file of a run is."""
    return FILES / f"{network}_{data}_{scheme.replace(', ', '_').replace(' ', '_')}_{macs}_{seed}.xml"


def measure(data: str, network: str, scheme: str, macs: int, seed: int) -> dict[str, Any]:
    """Make the file of one run, and count what OpenVINO gets right with it."""
    FILES.mkdir(parents=True, exist_ok=True)
    path, original = path_of(data, network, scheme, macs, seed), pretrained(network, data)
    target = {"target": {"macs_ratio": macs / 100}}
    if scheme == "ours":
        ctrl = fine_tune(original, network, data, seed, target, device="CPU")
        ctrl.export_model(path)
    elif scheme == "pruned, then NNCF":
        pruned = fine_tune(original, network, data, seed, {**target, **NO_QUANTIZERS})
        write_quantized(pruned.strip(), data, path)
    else:
        captured = as_it_is(original, data)
        export_model(captured, path) if scheme == "FP32" else write_quantized(captured, data, path)
    images = load(data)
    runtime = open_runtime(path, Execution(threads=1))
    predicted = np.concatenate([runtime.run([chunk.numpy()])[0].argmax(1) for chunk in images.test.split(100)])
    right = 100 * float((predicted == images.test_labels.numpy()).mean())
    return {"lost_test": round(accuracy(original, images.test, images.test_labels) - right, 3)}


def as_it_is(original: nn.Module, data: str) -> Any:
    """The network as a graph that can be exported."""
    nothing = {"algorithm": "djpq", "pruning": {"gamma": 0}, **NO_QUANTIZERS}
    ctrl, _ = create_compressed_model(original, {"compression": nothing}, init_data=[load(data).train[:2]])
    ctrl.freeze(weights_trained=False)
    return ctrl.strip()


def write_quantized(model: Any, data: str, path: Path) -> None:
    """INT8 by NNCF's post-training quantization, from training images."""
    whole = path.with_name(f"float_{path.name}")
    export_model(model, whole)
    (port,) = read_notes(whole).inputs
    quantize_file(
        whole, path, Calibration("images", {port: load(data).train[:CALIBRATION].numpy()}), target_device="CPU"
    )


def page(rounds: int) -> str:
    """All finished runs as Markdown; their files are timed."""
    sections = []
    for data, network in NETWORKS:
        runs = {key: result for key, result in STUDY.finished().items() if key[:2] == (data, network)}
        if not runs:
            continue
        kinds = dict.fromkeys(
            (str(key[2]), int(key[3])) for key in sorted(runs, key=lambda key: (-int(key[3]), key[2]))
        )
        images = load(data).test
        times = [
            latencies(
                [Contestant(path_of(data, network, *kind, 0), [images[:batch].numpy()]) for kind in kinds],
                rounds=rounds,
                threads=1,
            )
            for batch in BATCHES
        ]
        slowest = [dict(zip(kinds, taken, strict=True))[("FP32", 100)].median for taken in times]
        rows = []
        for position, (scheme, macs) in enumerate(kinds):
            found = [result for key, result in runs.items() if key[2:4] == (scheme, macs)]
            faster = [f"{before / taken[position].median:.2f}x" for before, taken in zip(slowest, times, strict=True)]
            rows.append([scheme, f"{macs} %", str(len(found)), spread(run["lost_test"] for run in found), *faster])
        header = ["", "MACs", "seeds", "lost", *(f"faster, batch {batch}" for batch in BATCHES)]
        sections.append(f"## {network} on {data}\n\n{markdown_table(header, rows)}")
    return (
        "# A CPU as the target\n\n"
        "Written by `python benchmarks/cpu_target.py --page`: points of test accuracy lost against FP32, by OpenVINO\n"
        f"from the exported files, and how many times faster than FP32 those are with one thread ({rounds} rounds,\n"
        'all files in turn, medians). "Pruned, then NNCF" prunes in float to the same MACs with the same epochs, and\n'
        f"quantizes with NNCF from {CALIBRATION} images. On {STUDY.machines()}.\n\n" + "\n".join(sections)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", choices=[network for _, network in NETWORKS], default=["vgg7", "resnet20"]
    )
    parser.add_argument("--macs", nargs="+", type=int, choices=SHARES, default=list(SHARES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", default="1/1", help="k/n: the k-th of n processes")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--rounds", type=int, default=100)
    chosen = parser.parse_args()
    if chosen.page:
        PAGE.write_text(page(chosen.rounds), encoding="utf-8")
        return
    networks = [pair for pair in NETWORKS if pair[1] in chosen.networks]
    keys = [(*pair, scheme, 100, 0) for pair, scheme in itertools.product(networks, WHOLE)]
    keys += [
        (*pair, scheme, macs, seed)
        for seed, pair, macs, scheme in itertools.product(range(chosen.seeds), networks, chosen.macs, PRUNED)
    ]
    STUDY.run(keys, measure, chosen.share)


if __name__ == "__main__":
    main()
