# SPDX-License-Identifier: Apache-2.0
"""Dynamic sizes: does what torch.export saw at one size hold at the others?

torch.export keeps a size symbolic and notes what it assumed about it. An assumption made where the model's own
Python code branches is baked into the graph, so it has to hold for every size the caller wants.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.printers import PythonPrinter

from djpq_nncf.capture._inputs import DynamicDims, Example
from djpq_nncf.errors import CaptureError

_TORCH = Path(torch.__file__).parent
# Python code that stands for a model's: what it decides is decided for good.
_TRACED = (_TORCH / "nn", _TORCH / "functional.py")
_MAX_SIZES = 64
_MAX_REASON = 160


@dataclass(frozen=True)
class _Size:
    """A dynamic dimension: ``symbol`` is its own, ``value`` what it is once equal sizes have been merged."""

    leaf: int
    dim: int
    text: str
    example: int
    dynamic: DynamicDims
    symbol: sympy.Symbol
    value: sympy.Expr


class DynamicSizes:
    """The dynamic sizes of an exported program and what is assumed about them.

    Args:
        nodes: placeholders of the program, one for each leaf of the example.
        example: what it was exported with.
    """

    def __init__(self, nodes: Sequence[fx.Node], example: Example) -> None:
        self._example = example
        self._sizes: list[_Size] = []
        self._hints: dict[sympy.Symbol, sympy.Integer] = {}
        self._environment: ShapeEnv | None = None
        for position, (node, leaf) in enumerate(zip(nodes, example.leaves(), strict=True)):
            value = node.meta.get("val")
            shape: tuple[Any, ...] = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
            for dim, size in enumerate(shape):
                if isinstance(size, torch.SymInt):
                    self._environment = size.node.shape_env
                    self._hints[size.node._expr] = sympy.Integer(leaf.shape[dim])
                if dim in example.dynamic[position].dims:
                    self._add(position, dim, f"{node.name}.shape[{dim}]", leaf.shape[dim], size)

    def refuse_limits(self, model: str) -> None:
        """Raise a CaptureError if the graph holds for fewer sizes than are wanted."""
        for size in self._sizes:
            if size.value.is_Integer:
                self._refuse_fixed(model, size)
        for expression, frame in self._decisions():
            if self._ties_one_input(expression):
                self._refuse_decision(model, expression, frame, "unequal sizes")
            for values in self._assignments(expression.free_symbols):
                if expression.xreplace(values) == sympy.false:
                    self._refuse_decision(model, expression, frame, self._describe(values))

    def other_examples(self) -> Iterator[tuple[str, Example, bool]]:
        """The example at a few other sizes: words for them, the example, and whether the model has to take them.

        Every dimension is at another size where possible. A model may refuse to go below the size of the example
        unless the caller said from where on it is to work.
        """
        roots = self._roots()
        if not roots:
            return
        choices = {root: self._choices(root) for root in roots}
        for pick in (_larger, _smaller):
            chosen = {
                root: pick(choices[root], int(self._hints[root]), distance)
                for distance, root in enumerate(roots, start=1)
            }
            values = self._values(chosen)
            if values is None or values == self._values({}):
                continue
            leaves = self._example.leaves()
            for size in self._sizes:
                leaves[size.leaf] = _resize(leaves[size.leaf], size.dim, int(values[size.symbol]))
            needed = pick is _larger or all(size.dynamic.min is not None for size in self._sizes)
            yield self._describe(values), self._example.with_leaves(leaves, self._example.batch), needed

    def _add(self, leaf: int, dim: int, text: str, example: int, size: Any) -> None:
        symbolic = isinstance(size, torch.SymInt)
        symbol = size.node._expr if symbolic else sympy.Symbol(text)
        value = size.node.expr if symbolic else sympy.Integer(size)
        self._hints[symbol] = sympy.Integer(example)
        self._sizes.append(_Size(leaf, dim, text, example, self._example.dynamic[leaf], symbol, value))

    def _guards(self) -> list[Any]:
        return [] if self._environment is None else list(self._environment.guards)

    def _decisions(self) -> Iterator[tuple[Any, Any]]:
        """Conditions on the dynamic sizes where Python code of the model, not of torch, branched."""
        symbols = {size.symbol for size in self._sizes}
        seen = set()
        for guard in self._guards():
            frame = guard.sloc.framework_loc
            path = Path(getattr(frame, "filename", ""))
            internal = path.is_relative_to(_TORCH) and not any(path.is_relative_to(traced) for traced in _TRACED)
            if not internal and guard.expr not in seen and guard.expr.free_symbols & symbols:
                seen.add(guard.expr)
                yield guard.expr, frame

    def _roots(self) -> list[sympy.Symbol]:
        """Symbols that can be chosen freely; the other sizes follow from them."""
        return list(dict.fromkeys(size.symbol for size in self._sizes if size.value == size.symbol))

    def _choices(self, root: sympy.Symbol) -> list[int]:
        example = int(self._hints[root])
        dynamic = next(size.dynamic for size in self._sizes if size.symbol == root)
        return [size for size in dynamic.nearby(example) if self._values({root: size}) is not None]

    def _values(self, chosen: Mapping[sympy.Symbol, int]) -> dict[sympy.Symbol, sympy.Integer] | None:
        """Every symbol's value, or None where a size that follows is not one that is wanted."""
        values = self._hints | {root: sympy.Integer(size) for root, size in chosen.items()}
        for size in self._sizes:
            value = size.value.xreplace(values)
            if not value.is_Integer or (value != size.example and int(value) not in size.dynamic):
                return None
            values[size.symbol] = value
        return values

    def _assignments(self, symbols: set[sympy.Symbol]) -> Iterator[dict[sympy.Symbol, sympy.Integer]]:
        involved = {root for size in self._sizes if size.symbol in symbols for root in size.value.free_symbols}
        roots = [root for root in self._roots() if root in involved]
        columns = {root: _sample(self._choices(root), int(self._hints[root])) for root in roots}
        together = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]
        for chosen in [*({root: size} for root in roots for size in columns[root]), *together]:
            values = self._values(chosen)
            if values is not None:
                yield values

    def _refuse_fixed(self, model: str, size: _Size) -> None:
        blamed, symbols = None, {size.symbol}
        for guard in self._guards():
            if isinstance(guard.expr, sympy.Eq) and guard.expr.free_symbols & symbols:
                blamed, symbols = guard, symbols | guard.expr.free_symbols
        because = "" if blamed is None else f": it needs {self._print(blamed.expr)}{_at(blamed.sloc.framework_loc)}"
        raise CaptureError(
            f"{model} does not take other sizes of {size.text} than the example's {size.example}{because}. Leave "
            f"dimension {size.dim} out of the dynamic ones, or take the size from the input in forward()."
        )

    def _ties_one_input(self, expression: Any) -> bool:
        """Two sizes of one tensor are equal; of different inputs (tokens and their mask) they are meant to be."""
        owners = [size.leaf for size in self._sizes if size.symbol in expression.args]
        return isinstance(expression, sympy.Eq) and len(owners) == 2 and owners[0] == owners[1]

    def _refuse_decision(self, model: str, expression: Any, frame: Any, text: str) -> None:
        raise CaptureError(
            f"{model} takes another way for {text} than for the example, so that one graph does not hold for both: "
            f"the example has {self._print(expression)}{_at(frame)}. Limit the sizes with multiple_of, min or max, "
            "or leave the dimension out of the dynamic ones."
        )

    def _describe(self, values: Mapping[sympy.Symbol, sympy.Integer]) -> str:
        changed = [size for size in self._sizes if values[size.symbol] != size.example]
        return ", ".join(f"{size.text} = {values[size.symbol]}" for size in changed)

    def _print(self, expression: Any) -> str:
        names = {size.symbol: sympy.Symbol(size.text) for size in self._sizes}
        text = str(PythonPrinter().doprint(expression.xreplace(names)))
        return text if len(text) <= _MAX_REASON else text[:_MAX_REASON] + "..."


def _at(frame: Any) -> str:
    """Where the model decides; nothing for torch's own code, which users cannot change."""
    path = Path(getattr(frame, "filename", ""))
    if not path.name or path.is_relative_to(_TORCH):
        return ""
    return f" ({path.name}:{frame.lineno}, {frame.line})"


def _sample(sizes: list[int], example: int) -> list[int]:
    """Some of many sizes: those next to the example, and others without a pattern."""
    if len(sizes) <= _MAX_SIZES:
        return sizes
    near = sorted(sizes, key=lambda size: abs(size - example))[: _MAX_SIZES // 4]
    return sorted({*near, sizes[0], sizes[-1], *random.Random(0).sample(sizes, _MAX_SIZES // 2)})


def _larger(sizes: list[int], example: int, distance: int) -> int:
    above = [size for size in sizes if size > example]
    return above[min(distance, len(above)) - 1] if above else example


def _smaller(sizes: list[int], example: int, distance: int) -> int:
    # a quarter less: far from the example, and seldom too small
    below = [size for size in sizes if size < example]
    wanted = sorted(below, key=lambda size: abs(size - 3 * example // 4))
    return wanted[min(distance, len(wanted)) - 1] if wanted else example


def _resize(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Another size with values of the kind the model expects: those of the example, repeated."""
    index = torch.arange(size, device=tensor.device) % tensor.shape[dim]
    return tensor.index_select(dim, index)
