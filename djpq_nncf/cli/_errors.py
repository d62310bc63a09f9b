# SPDX-License-Identifier: Apache-2.0
"""What a command does with errors and warnings: one message on stderr, no traceback."""

import functools
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import typer

from djpq_nncf.errors import DjpqError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def reports_errors(command: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let a command print errors of its user and exit with code 1; other errors are bugs and stay as they are."""

    @functools.wraps(command)
    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return command(*args, **kwargs)
            except DjpqError as error:
                typer.echo(f"Error: {error}", err=True)
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                typer.echo("Interrupted. The same command continues a run after its last complete epoch.", err=True)
                raise typer.Exit(130) from error

    return run


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Within the context, SIGTERM does what Ctrl-C does: processes that were begun are ended too."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    typer.echo(f"Warning: {message}", err=True)
