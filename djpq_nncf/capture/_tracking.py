# SPDX-License-Identifier: Apache-2.0
"""Follows which submodule a forward pass is in."""

from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class ModuleTracker:
    """Context manager that knows the path of the module being run; after an error, where it happened.

    >>> with ModuleTracker(model) as tracker:
    ...     model(x)                # raises inside model.layer1
    >>> tracker.path
    'layer1'
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack: list[str] = []
        self._handles: list[RemovableHandle] = []

    @property
    def path(self) -> str:
        """Dotted path of the innermost module that was entered and not left; '' for the model itself."""
        return self._stack[-1] if self._stack else ""

    def __enter__(self) -> "ModuleTracker":
        for path, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leave(path)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._stack.append(path)

        return hook

    def _leave(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # A module that failed inside a try block of its parent never reached this hook.
            while self._stack and self._stack.pop() != path:
                pass

        return hook
