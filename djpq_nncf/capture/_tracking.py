# SPDX-License-Identifier: Apache-2.0
"""Follows which submodule a forward pass is in, and which of them do something."""

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
        self.active: set[str] = set()
        """Paths of the modules that ran and returned something else than their first input."""
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
            self._handles.append(module.register_forward_hook(self._leave(path, module)))
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

    def _leave(self, path: str, module: nn.Module) -> Any:
        # A Sequential does nothing that its children do not.
        is_container = isinstance(module, nn.Sequential)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not is_container and (not args or output is not args[0]):
                self.active.add(path)
            # A module that failed inside a try block of its parent never reached this hook.
            while self._stack and self._stack.pop() != path:
                pass

        return hook
