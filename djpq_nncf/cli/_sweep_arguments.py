# SPDX-License-Identifier: Apache-2.0
"""How the arguments of ``djpq-nncf sweep`` are shown, and those checked that it passes on to ``compress``."""

import uuid
from collections.abc import Sequence

import typer
from typer.core import TyperCommand, TyperGroup


class SweepCommand(TyperCommand):
    """Says in the usage line what stands on either side of ``--``."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return ["CONFIG --out FOLDER [OPTIONS] -- --model MODEL --data DATA [OPTIONS OF compress]"]


def check_compress_arguments(context: typer.Context, arguments: Sequence[str]) -> None:
    """Parse what ``compress`` will get before any run begins.

    Args:
        context: of the command ``sweep``.
        arguments: for ``compress`` besides config and folder.

    Raises:
        typer.BadParameter: they give a folder too.
        UsageError: of the parser; they are wrong in another way.
    """
    group = context.parent.command if context.parent is not None else None
    assert isinstance(group, TyperGroup)
    own = uuid.uuid4().hex
    given = ["CONFIG", "--out", own, *arguments]
    with group.commands["compress"].make_context("compress", given, parent=context.parent) as parsed:
        if str(parsed.params["out"]) != own:
            raise typer.BadParameter(
                "it stands in front of `--`, and each run gets a folder in it.", context, param_hint="--out"
            )
