# SPDX-License-Identifier: Apache-2.0
"""The application that the commands belong to."""

import typer

app = typer.Typer(
    name="djpq-nncf",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    app()


@app.callback(
    epilog="Exit codes: 0 done; 1 an error, which says what to do; 2 wrong usage; 3 a check failed (`verify`, "
    "`sweep`); 130 interrupted."
)
def about() -> None:
    """Prune channels and learn bit-widths of a PyTorch network in one training run.

    `validate` checks a config and `inspect` shows what it would do to a network. `compress` trains, exports and reports
    into a run folder, which `export`, `verify`, `benchmark` and `report` then work on; `sweep` does that for several
    budgets, seeds or settings. In a training loop of your own it is four lines: see the README. `demo` shows everything
    once on a small data set.
    """
