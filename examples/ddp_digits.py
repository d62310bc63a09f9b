# SPDX-License-Identifier: Apache-2.0
"""Compression in several processes: the handwritten digits of scikit-learn with DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/ddp_digits.py --bops-ratio 0.02

Without torchrun one process trains on the same batches, and comes to the same network up to rounding errors. This one
has no BatchNorm, whose statistics would be those of each process's share; on GPUs convert one that has with
torch.nn.SyncBatchNorm. At the end the processes compare gates, quantizers, weights and statistics bit for bit.
"""

import argparse
import itertools
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from djpq_nncf import CompressionController, DjpqError, create_compressed_model, save_checkpoint, verify_export
from djpq_nncf.demo import Batches, ImageData, accuracy, load_digits_data, train


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def disagreements(ctrl: CompressionController, device: torch.device) -> int:
    """How many numbers of the model and of its statistics differ from those of process 0, over all processes."""
    statistics = ctrl.statistics().djpq
    layers = [[x.weight_bits, x.activation_bits, *x.in_channels, *x.out_channels] for x in statistics.layers]
    ratios = list(statistics.ratios.values())
    values = [*ctrl.model.state_dict().values(), torch.tensor(layers), torch.tensor(ratios)]
    different = torch.zeros((), dtype=torch.long, device=device)
    for value in values:
        first = value.to(device, copy=True)
        dist.broadcast(first, src=0)
        different += (first != value.to(device)).sum()
    dist.all_reduce(different)
    return int(different)


def run(arguments: argparse.Namespace, device: torch.device) -> None:
    rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if arguments.batch_size % count:
        raise SystemExit(f"Error: --batch-size {arguments.batch_size} cannot be shared by {count} processes.")
    share = arguments.batch_size // count
    torch.manual_seed(arguments.seed)
    data = load_digits_data()
    original = network(arguments.width)
    train(original, Batches(data.train_images, data.train_labels, 32, seed=arguments.seed), epochs=arguments.epochs)
    if rank == 0:
        print(f"FP32 accuracy: {accuracy(original, data.test_images, data.test_labels):.2%}")
    original.to(device)

    samples = TensorDataset(data.train_images, data.train_labels)
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(
        samples, count, rank, seed=arguments.seed, drop_last=True
    )
    loader = DataLoader(samples, share, sampler=sampler, drop_last=True)
    # the same samples in every process, so that all begin with the same ranges; batches as large as the training's
    first = DataLoader(samples, share)
    config = {
        "seed": arguments.seed,
        "compression": {
            "algorithm": "djpq",
            "target": {"bops_ratio": arguments.bops_ratio},
            "quantization": {"lr_multiplier": arguments.lr_multiplier},
            "pruning": {"noise": arguments.noise},
            "schedule": {"epochs": arguments.epochs, "steps_per_epoch": len(loader)},
        },
    }
    ctrl, model = create_compressed_model(original, config, init_data=first)
    ctrl.distributed()
    model.to(arguments.dtype)
    parallel: nn.Module = model
    if count > 1:
        # gates and bit-widths leave the graph when they are frozen
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.Adam(ctrl.param_groups(lr=arguments.lr))
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        ctrl.scheduler.epoch_step()
        parallel.train()
        for images, labels in itertools.islice(loader, arguments.steps):
            ctrl.scheduler.step()
            loss = F.cross_entropy(parallel(images.to(device, arguments.dtype)), labels.to(device)) + ctrl.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            costs = ctrl.scalars()
            print(f"Epoch {epoch + 1} of {arguments.epochs}: BOPs {costs['bops_ratio']:.4f} of FP32", flush=True)

    if count > 1:
        wrong = disagreements(ctrl, device)
        if wrong:
            raise SystemExit(f"Error: {wrong} numbers differ between the processes.")
        if rank == 0:
            print(f"{count} processes agree bit for bit.")
    if rank == 0:
        save_checkpoint(arguments.out / "checkpoint.safetensors", ctrl, optimizer)
        print(ctrl.statistics().to_str())
        if arguments.dtype == torch.float32:
            finish(ctrl, data, arguments.out)


def finish(ctrl: CompressionController, data: ImageData, out: Path) -> None:
    stripped = ctrl.strip().cpu()
    print(f"Compressed accuracy: {accuracy(stripped, data.test_images, data.test_labels):.2%}")
    for name in ("model.xml", "model.onnx"):
        ctrl.export_model(out / name)
        print(verify_export(out / name, stripped, data.test_images).to_str())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bops-ratio", type=float, default=0.02, help="bit operations, compressed / original")
    parser.add_argument("--epochs", type=int, default=20, help="of each of the two trainings")
    parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
    parser.add_argument("--width", type=int, default=32, help="channels of the first layer")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, help="of each epoch, to stop early; not given: all")
    parser.add_argument("--noise", type=float, default=0.0, help="on the factors of channels in the search")
    parser.add_argument("--lr-multiplier", type=float, help="of the bit-widths; not given: what suits the steps")
    parser.add_argument(
        "--double",
        dest="dtype",
        action="store_const",
        const=torch.float64,
        default=torch.float32,
        help="train in float64, in which the number of processes makes no difference; without files",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ddp"), help="folder for checkpoint and files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        run(arguments, device)
    except DjpqError as error:
        raise SystemExit(f"Error: {error}") from None
    finally:
        if several:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
