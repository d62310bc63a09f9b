# SPDX-License-Identifier: Apache-2.0
"""Commands that make a run folder or work on one. What takes long to import is imported inside."""

from pathlib import Path
from typing import Annotated

import typer

from djpq_nncf.cli._app import app
from djpq_nncf.cli._errors import reports_errors, termination_interrupts
from djpq_nncf.cli._sweep_arguments import SweepCommand, check_compress_arguments

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `compress` made.")]
_IMAGES = "Options of image folders"
_MEAN, _DEVIATION = "0.485,0.456,0.406", "0.229,0.224,0.225"


@app.command()
@reports_errors
def compress(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="JSON file; comments are allowed.")],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="`package.module:factory`, called without arguments; or `torchvision:NAME`, with --checkpoint.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="An image folder: `train/` and `val/` with a folder for each class, or the classes alone. Or "
            "`package.module:function`, which returns batches (inputs, labels) to train and to validate with.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; the same command continues there.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="State dict of the trained network, .safetensors or .pth, where MODEL does not bring it.",
            show_default=False,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="FUNCTION",
            help="`package.module:function`, a training of your own, called with a `CompressionRun`. Default: that "
            "of a classifier.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[float, typer.Option(metavar="RATE", min=0, help="Learning rate of the weights.")] = 1e-3,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Default: `cuda` where there is one.", show_default=False)
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard too.")] = False,
    batch_size: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images of a step.", rich_help_panel=_IMAGES)
    ] = 64,
    image_size: Annotated[
        int, typer.Option(metavar="PIXELS", min=1, help="Height and width.", rich_help_panel=_IMAGES)
    ] = 224,
    mean: Annotated[
        str, typer.Option(metavar="R,G,B", help="Mean of the pixels, which are 0 to 1.", rich_help_panel=_IMAGES)
    ] = _MEAN,
    deviation: Annotated[
        str, typer.Option(metavar="R,G,B", help="Their standard deviation.", rich_help_panel=_IMAGES)
    ] = _DEVIATION,
    augment: Annotated[
        bool, typer.Option(help="Crop and flip the training images at random.", rich_help_panel=_IMAGES)
    ] = True,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Processes that load images.", rich_help_panel=_IMAGES)
    ] = 0,
) -> None:
    r"""Compress a trained network: train, freeze, export OpenVINO IR and ONNX, verify both, write the report.

    Everything goes into the folder RUN: `config.json`, `run.json` (settings, versions), `log.jsonl`,
    `checkpoint.safetensors` after each epoch, `compressed.xml/.bin/.onnx`, `fp32.*`, `report.html`. Interrupted, the
    same command continues after the last complete epoch, and arrives where it would have without.

    A network of torchvision, on photos in folders:

        djpq-nncf compress c.json --out runs/first --data photos \
          --model torchvision:resnet18 --checkpoint resnet18.pth

    Network, batches and training of your own, in mine.py:

        djpq-nncf compress c.json --out runs/own \
          --model mine:make --data mine:load --train mine:train
    """
    if ":" in data and not Path(data).is_dir():
        _refuse_image_options(context)

    from djpq_nncf.config import NNCFConfig
    from djpq_nncf.run import RunSettings, compress_run

    settings = RunSettings(
        config=dict(NNCFConfig.from_json(config)),
        model=model,
        data=data,
        weights=None if checkpoint is None else str(checkpoint),
        train=train,
        lr=lr,
        batch_size=batch_size,
        image_size=image_size,
        mean=_numbers("--mean", mean),
        deviation=_numbers("--deviation", deviation),
        augment=augment,
    )
    compress_run(out, settings, device=device, workers=workers, tensorboard=tensorboard, say=typer.echo)


def _refuse_image_options(context: typer.Context) -> None:
    """A function makes its batches itself: what was said about those of an image folder would go unheard."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and getattr(parameter, "rich_help_panel", None) == _IMAGES:
            raise typer.BadParameter(
                "is of image folders, and --data is a function.", context, param_hint=parameter.opts[0]
            )


@app.command()
@reports_errors
def export(
    run: Run,
    onnx: Annotated[bool, typer.Option(help="Write `compressed.onnx`.")] = True,
    openvino: Annotated[bool, typer.Option(help="Write `compressed.xml` and `.bin`.")] = True,
    opset: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of ONNX, for older runtimes; see docs/export.md.", show_default=False),
    ] = None,
    packed_weights: Annotated[
        bool, typer.Option("--packed-weights", help="Pack weights into 4 or 2 bits: smaller, and slower on CPUs.")
    ] = False,
) -> None:
    """Write the files of a run again, with other options, from its last checkpoint.

    The files are verified, and the report is brought up to date. For example:

        djpq-nncf export runs/first --no-openvino --opset 17
    """
    from djpq_nncf.run import export_run

    suffixes = tuple(suffix for suffix, wanted in ((".xml", openvino), (".onnx", onnx)) if wanted)
    if not suffixes:
        raise typer.BadParameter("there is nothing left to write.", param_hint="--no-onnx --no-openvino")
    if opset is not None and not onnx:
        raise typer.BadParameter("is of ONNX, which --no-onnx leaves out.", param_hint="--opset")
    export_run(run, suffixes=suffixes, opset=opset, packed_weights=packed_weights, say=typer.echo)


@app.command()
@reports_errors
def verify(
    run: Run,
    tolerance: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, help="Largest difference allowed, as a share of the output's range."),
    ] = 0.02,
) -> None:
    """Run the exported files of a run and compare them with PyTorch on validation data; exits with 3 if they differ.

    The report is brought up to date. For example:

        djpq-nncf verify runs/first --tolerance 0.01
    """
    from djpq_nncf.run import verify_run

    verifications = verify_run(run, say=typer.echo)
    off = [entry.path for entry in verifications if not entry.max_relative_difference <= tolerance]
    if off:
        typer.echo(f"Differs by more than --tolerance {tolerance}: {', '.join(off)}", err=True)
        raise typer.Exit(3)


@app.command()
@reports_errors
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: `report.html` in RUN.", show_default=False)
    ] = None,
) -> None:
    """Draw the report of a finished run again, from what it wrote: one HTML page that needs no network.

    For example:

        djpq-nncf report runs/first --out first.html
    """
    from djpq_nncf.run import write_run_report

    typer.echo(f"Wrote {write_run_report(run, out)}")


@app.command(cls=SweepCommand)
@reports_errors
def sweep(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="JSON file that all runs start from.")],
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="OPTIONS OF compress",
            help="Behind `--`, for all runs: --model, --data, --checkpoint, ...; see `djpq-nncf compress --help`.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the sweep; the same command continues there.")],
    budgets: Annotated[
        str | None, typer.Option(metavar="B,B", help="Values of `target.bops_ratio`.", show_default=False)
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="S,S", help="Values of `seed`.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=V,V",
            help="Values of any key, by its path from the root of the config; may be repeated.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 1,
    most_lost: Annotated[
        float | None,
        typer.Option(help="Pick the run of fewest BOPs that loses at most so many points.", show_default=False),
    ] = None,
    most_bops: Annotated[
        float | None,
        typer.Option(min=0, help="Pick the most accurate run with at most this share of the BOPs.", show_default=False),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Share the runs with the same command on other machines through this Optuna storage, a file or the "
            "URL of a database (extra `sweep`); FOLDER has to be shared too.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compress once for every combination of the values given, show the front, and pick a run.

    Runs are processes of their own: one that fails does not take the others along, and the command then exits with 3.
    Started again, it leaves out what is finished and continues the rest. `sweep.html` in FOLDER shows the front, with
    links to the reports in `runs/NAME`.

    Example:
    `djpq-nncf sweep c.json --out runs/sweep --budgets 0.02,0.01,0.005 --seeds 0,1 --jobs 2 --most-lost 0.5
    -- --model torchvision:resnet18 --checkpoint resnet18.pth --data photos`
    """
    check_compress_arguments(context, arguments)
    from djpq_nncf.cli._sweep import SweepRequest, sweep_configs

    request = SweepRequest(
        config, tuple(arguments), out, budgets, seeds, tuple(settings or ()), jobs, most_lost, most_bops, storage
    )
    with termination_interrupts():
        finished = sweep_configs(request, say=typer.echo)
    if not finished:
        raise typer.Exit(3)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a list of numbers such as {_MEAN}.", param_hint=option) from None
