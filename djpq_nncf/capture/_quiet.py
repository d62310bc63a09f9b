# SPDX-License-Identifier: Apache-2.0
"""Keeps what torch.export prints about its own inner workings away from users."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_CHATTY_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export", "torch._dynamo")


def _is_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Silence warnings raised inside torch, its export loggers and the partial graphs it prints on failure.

    Errors pass through, and so do warnings which point at the user's own code.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_no_warning)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", module=r"(torch|copyreg)(\.|$)")
            # Attributed to contextlib; true of nn.LSTM and harmless, as the captured graph has its own tensors.
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_warning)
