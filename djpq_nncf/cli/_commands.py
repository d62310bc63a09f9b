# SPDX-License-Identifier: Apache-2.0
"""Commands around a training. What takes long to import (torch, NNCF) is imported by the commands that need it."""

from pathlib import Path
from typing import Annotated

import typer

from djpq_nncf.cli._app import app
from djpq_nncf.cli._errors import reports_errors
from djpq_nncf.errors import DataError


@app.command(
    epilog='The least a config can hold: `{"compression": {"algorithm": "djpq"}}`. docs/configuration.md '
    "lists every key."
)
@reports_errors
def validate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="JSON file; comments are allowed.")],
) -> None:
    """Check a config: says that it is valid, or lists every mistake and exits with code 1.

    For example:

        djpq-nncf validate examples/configs/resnet18_djpq.json
    """
    from djpq_nncf.config import NNCFConfig

    parsed = NNCFConfig.from_json(config)
    names = ", ".join(entry["algorithm"] for entry in parsed.algorithms)
    typer.echo(f"{config} is valid (algorithm {names}).")


@app.command()
@reports_errors
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="`package.module:factory`, a function or class that returns the network when called without "
            "arguments (the current folder is searched too), or `torchvision:NAME`; or an exported .xml or .onnx file.",
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="JSON file; without it DJPQ with its defaults.", show_default=False),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="Shape of the input, batch first; needed where the config has no input_info, and used instead of it.",
            metavar="N,C,H,W",
            show_default=False,
        ),
    ] = None,
    groups: Annotated[bool, typer.Option("--groups", help="Print the channel groups alone.")] = False,
    dot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the channel groups as a Graphviz graph too; `dot -Tsvg FILE` draws it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    r"""Show what a config does to a network, without data and without training; or what an exported file holds.

    Of a network prints MACs and BOPs of each layer, the channel groups (what is pruned together) as a tree with the
    channels that stay and the reason, and the quantizers. Of a file the layers with bit-widths and MACs, and what it
    says about its origin: versions, config, channels kept.

    For example:

        djpq-nncf inspect torchvision:resnet18 c.json
        djpq-nncf inspect mine:make --input-shape 1,3,32,32
        djpq-nncf inspect torchvision:vit_b_16 \
          --input-shape 1,3,224,224 --groups --dot groups.dot
        djpq-nncf inspect compressed.xml
    """
    from djpq_nncf.cli._model import is_file

    if is_file(model):
        if groups or config or input_shape or dot:
            raise DataError(f"'{model}' is an exported file: inspect it without a config and without options.")
        from djpq_nncf.cli._inspect_file import inspect_file

        typer.echo(inspect_file(Path(model)))
        return
    from djpq_nncf.cli._inspect import inspect_model
    from djpq_nncf.cli._model import parse_shape
    from djpq_nncf.run import load_model

    network = load_model(model)
    inspection = inspect_model(network, config, None if input_shape is None else parse_shape(input_shape))
    if dot is not None:
        inspection.write_dot(dot)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    typer.echo(inspection.groups() if groups else inspection.report(model, parameters, config))


@app.command()
@reports_errors
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders that `compress` made, of which the network before and after is timed; exported .xml "
            "(OpenVINO) or .onnx (ONNX Runtime) files, as they are; and networks, as `package.module:factory` or "
            "`torchvision:NAME`, of which FP32, NNCF's INT8 and ours are made.",
        ),
    ],
    input_shape: Annotated[
        str | None,
        typer.Option(help="Shape of the input of a network, or of a file with free sizes.", metavar="N,C,H,W"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Compress networks with this config, without training; else every layer in 8 bits."
        ),
    ] = None,
    prune: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=0.99,
            help="Remove this share of each channel group at random, 0.5 for half; may be repeated.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Samples for INT8 of a network: .npy with [samples, ...], or .npz with an array for each input. "
            "Default: noise, with which it is as fast and not as accurate.",
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="RUNTIME", help="`openvino` or `onnxruntime`; default both. May be repeated."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Batch size; default 1. May be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="How often each is measured.")] = 20,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: as many as PyTorch takes.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the files that are made of networks here.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON too.")] = None,
) -> None:
    r"""Time networks in OpenVINO and ONNX Runtime, all in turn: before and after `compress`, or FP32, INT8 and ours.

    Prints median and quartiles of the latency of one request and of the throughput of several, and their ratios to
    FP32 in the same runtime. Accuracy is not measured.

    For example:

        djpq-nncf benchmark runs/first --batch 1 --batch 8 --json latency.json
        djpq-nncf benchmark fp32.xml compressed.xml
        djpq-nncf benchmark torchvision:resnet18 \
          --input-shape 1,3,224,224 --prune 0 --prune 0.5
    """
    from djpq_nncf.cli._benchmark import Request, benchmark_models

    request = Request(
        models=tuple(models),
        input_shape=input_shape,
        config=config,
        shares=tuple(prune or (0.0,)),
        calibration=calibration,
        runtimes=tuple(runtime or ()),
        batch_sizes=tuple(batch or (1,)),
        rounds=rounds,
        threads=threads,
        out=out,
        json=json,
    )
    typer.echo(benchmark_models(request, say=lambda line: typer.echo(line, err=True)))


@app.command()
@reports_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the exported files.")] = Path("runs/demo"),
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON file, such as a changed copy of examples/configs/digits_djpq.json.", show_default=False
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Length of each of the two trainings; by default what the demo's config says.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Of weights and order of samples; by default what the config says.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a small residual network on handwritten digits, compress it, and measure it before and after.

    Takes about a minute. Writes OpenVINO IR and ONNX files, runs both, and prints one table.

    For example:

        djpq-nncf demo --out runs/demo --seed 1
    """
    from djpq_nncf.cli._demo import demo_to_str
    from djpq_nncf.demo import run_demo

    outcome = run_demo(out, config=config, epochs=epochs, seed=seed, say=typer.echo)
    typer.echo(demo_to_str(outcome, out, config=config))
