# SPDX-License-Identifier: Apache-2.0
"""ResNet18 and MobileNetV2 on ImageNet as in Wang et al. (2020), Appendix B.3: SGD, 20 epochs, 8-bit inputs.

The strengths, the multipliers of the learning rates and the initial bit-widths are in configs/*.json. What the
appendix leaves open is momentum 0.9, no weight decay, a cosine learning rate, 64 images per process.

    torchrun --nproc-per-node 4 examples/imagenet.py /data/imagenet --model resnet18 --weights resnet18.pth

The data folder holds train/ and val/ with one folder of images per class. Started again with the same arguments, the
script continues from the last epoch that was completed.
"""

import argparse
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision import datasets, models, transforms

from djpq_nncf import (
    CompressionController,
    DjpqError,
    NNCFConfig,
    create_compressed_model,
    load_checkpoint,
    save_checkpoint,
    verify_export,
)
from djpq_nncf.errors import DataError

CONFIGS = Path(__file__).parent / "configs"
LEARNING_RATES = {"resnet18": 1e-3, "mobilenet_v2": 1e-4}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started; alone without torchrun."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def start(cls) -> "Process":
        count = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if count > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(int(os.environ.get("RANK", "0")), count, device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        if self.is_first:
            print(text, flush=True)

    def sum(self, values: Tensor) -> Tensor:
        if self.count > 1:
            dist.all_reduce(values)
        return values


def load_data(
    arguments: argparse.Namespace, process: Process
) -> tuple[DataLoader[Any], DistributedSampler[Any], DataLoader[Any]]:
    """Loader and sampler of this process's share of the training images, and loader of its share of the others."""
    for part in ("train", "val"):
        if not (arguments.data / part).is_dir():
            raise DataError(f"{arguments.data} has no folder {part}/. It holds train/ and val/, one folder per class.")
    size = arguments.image_size
    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    augmented = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *normalise])
    centred = transforms.Compose([transforms.Resize(size * 256 // 224), transforms.CenterCrop(size), *normalise])
    try:
        train = datasets.ImageFolder(arguments.data / "train", augmented)
        val = datasets.ImageFolder(arguments.data / "val", centred)
    except FileNotFoundError as error:
        raise DataError(f"{error} Each class has a folder of its own, in train/ and in val/.") from error
    if train.classes != val.classes:
        raise DataError(f"train/ and val/ of {arguments.data} hold different classes.")
    sampler: DistributedSampler[Any] = DistributedSampler(
        train, process.count, process.rank, seed=arguments.seed, drop_last=True
    )
    options: dict[str, Any] = {
        "batch_size": arguments.batch_size,
        "num_workers": arguments.workers,
        "pin_memory": process.device.type == "cuda",
    }
    train_loader = DataLoader(train, sampler=sampler, drop_last=True, **options)
    if not len(train_loader):
        raise DataError(
            f"{arguments.data}/train holds {len(train)} images: too few for {process.count} processes with "
            f"--batch-size {arguments.batch_size}."
        )
    share = Subset(val, range(process.rank, len(val), process.count))
    return train_loader, sampler, DataLoader(share, **options)


def make_model(name: str, classes: int, weights: Path | None) -> nn.Module:
    """The network of torchvision, with the parameters in a file where one is given.

    Raises:
        DataError: the file cannot be read, or belongs to another network.
    """
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    if weights is None:
        return model
    try:
        if weights.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(weights)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # each format has errors of its own
        raise DataError(f"The weights in {weights} do not fit {name} with {classes} classes: {error}") from error
    return model


def make_config(arguments: argparse.Namespace) -> NNCFConfig:
    """The config, with what was given on the command line."""
    config = NNCFConfig.from_json(arguments.config or CONFIGS / f"{arguments.model}_djpq.json")
    config["seed"] = arguments.seed
    config["input_info"] = {"sample_size": [1, 3, arguments.image_size, arguments.image_size]}
    schedule = config["compression"].setdefault("schedule", {})
    if arguments.epochs is not None:
        schedule["epochs"] = arguments.epochs
        schedule.pop("freeze_epoch", None)
    if arguments.steps is not None:
        schedule["steps_per_epoch"] = arguments.steps
    return NNCFConfig.from_dict(config)


def set_learning_rate(optimizer: torch.optim.Optimizer, rates: list[float], progress: float) -> None:
    """A cosine from each group's own rate to zero."""
    factor = 0.5 * (1 + math.cos(math.pi * progress))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Any], process: Process) -> float:
    """Top-1 accuracy over the shares of all processes, 0 to 1."""
    model.eval()
    right = torch.zeros(2, device=process.device)
    for images, labels in batches:
        predicted = model(images.to(process.device)).argmax(1)
        right += torch.tensor([(predicted == labels.to(process.device)).sum(), len(labels)], device=process.device)
    correct, total = process.sum(right).tolist()
    return correct / max(total, 1)


def train_epoch(
    ctrl: CompressionController,
    model: nn.Module,
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    *,
    start: float,
    share: float,
    process: Process,
    autocast: bool,
) -> None:
    """One epoch; it begins at ``start`` (0 to 1) of the training, and each step is ``share`` of it."""
    model.train()
    for number, (images, labels) in enumerate(batches):
        set_learning_rate(optimizer, rates, start + number * share)
        ctrl.scheduler.step()
        with torch.autocast(process.device.type, torch.bfloat16, enabled=autocast):
            outputs = model(images.to(process.device, non_blocking=True))
        loss = F.cross_entropy(outputs.float(), labels.to(process.device, non_blocking=True)) + ctrl.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number % 100 == 0:
            process.say(f"  step {number}: loss {loss.item():.4f}")


def run(arguments: argparse.Namespace, process: Process) -> None:
    torch.manual_seed(arguments.seed)
    config = make_config(arguments)
    train_batches, sampler, val_batches = load_data(arguments, process)
    model = make_model(arguments.model, len(train_batches.dataset.classes), arguments.weights)  # type: ignore[attr-defined]
    if arguments.weights is None:
        process.say("No --weights: this starts from random ones, which is only good for trying the script.")
    model.to(process.device)
    process.say(f"FP32 accuracy: {evaluate(model, val_batches, process):.2%}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint_file = arguments.out / "checkpoint.safetensors"
    checkpoint = load_checkpoint(checkpoint_file) if checkpoint_file.is_file() else None
    ctrl, compressed = create_compressed_model(
        model, config, checkpoint.compression_state if checkpoint else None, init_data=train_batches
    )
    ctrl.distributed()
    lr = LEARNING_RATES[arguments.model] if arguments.lr is None else arguments.lr
    groups = ctrl.param_groups(lr=lr)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    first_epoch = 0
    if checkpoint is not None:
        checkpoint.restore(ctrl, optimizer)
        first_epoch = checkpoint.extra["epochs_done"]
        process.say(f"Continuing {checkpoint_file} after {first_epoch} epochs.")
    parallel: nn.Module = compressed
    if process.count > 1:
        # gates and learned step sizes leave the graph when they are frozen
        devices = [process.device] if process.device.type == "cuda" else None
        parallel = DistributedDataParallel(compressed, device_ids=devices, find_unused_parameters=True)

    epochs = config.epochs
    steps = min(len(train_batches), arguments.steps or len(train_batches))
    for epoch in range(first_epoch, epochs):
        sampler.set_epoch(epoch)
        ctrl.scheduler.epoch_step()
        train_epoch(
            ctrl,
            parallel,
            islice(train_batches, steps),
            optimizer,
            rates,
            start=epoch / epochs,
            share=1 / (epochs * steps),
            process=process,
            autocast=arguments.autocast,
        )
        accuracy = evaluate(compressed, val_batches, process)
        statistics = ctrl.statistics().djpq
        process.say(
            f"Epoch {epoch + 1} of {epochs}, {ctrl.compression_stage().value}: accuracy {accuracy:.2%}, "
            f"BOPs {1 / statistics.bops_ratio:.1f}x fewer, MACs {1 / statistics.macs_ratio:.2f}x fewer"
        )
        if process.is_first:
            save_checkpoint(checkpoint_file, ctrl, optimizer, {"epochs_done": epoch + 1})
    if process.is_first:
        finish(ctrl, val_batches, arguments.out)


def finish(ctrl: CompressionController, val_batches: Iterable[Any], out: Path) -> None:
    """Print the layers, write the files and check them on a few batches."""
    print(ctrl.statistics().to_str())
    stripped = ctrl.strip().cpu()
    samples = [images for images, _ in islice(val_batches, 4)]
    for name in ("model.xml", "model.onnx"):
        ctrl.export_model(out / name)
        print(verify_export(out / name, stripped, samples).to_str())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/ and val/, one folder of images per class")
    parser.add_argument("--model", choices=sorted(LEARNING_RATES), default="resnet18")
    parser.add_argument("--weights", type=Path, help="state dict of the trained network, .pth or .safetensors")
    parser.add_argument("--config", type=Path, help="default: configs/MODEL_djpq.json beside this file")
    parser.add_argument("--out", type=Path, default=Path("runs/imagenet"), help="folder for checkpoint and files")
    parser.add_argument("--lr", type=float, help="of the weights; default: 1e-3 for resnet18, 1e-4 for mobilenet_v2")
    parser.add_argument("--epochs", type=int, help="instead of the config's")
    parser.add_argument("--steps", type=int, help="per epoch, to try the script; default: all images")
    parser.add_argument("--batch-size", type=int, default=64, help="per process")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=4, help="processes that load images, per process")
    parser.add_argument("--autocast", action="store_true", help="forward pass in bfloat16 where that is safe")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    process = Process.start()
    try:
        run(arguments, process)
    except DjpqError as error:
        raise SystemExit(f"Error: {error}") from None
    finally:
        if process.count > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
