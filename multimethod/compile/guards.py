"""What torch.export assumed about sizes, held against all sizes that the spec admits.

torch.export follows a branch on a size for the one size that it was shown, and notes the
condition as a guard. For a plain dim it refuses guards that do not hold over the whole range; for
a stepped dim it does not, and the program would compute the wrong branch without a word.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
from torch.utils._sympy.printers import PythonPrinter

from mmpack.multimethod.signature import Dim

MOST_SIZES = 4096
"""Sizes of one dim that a guard is tried with; of a longer dim, they are spread evenly."""


def broken_guard(
    shape_env: Any, symbols: Mapping[Any, tuple[str, int]], dims: Mapping[str, Dim]
) -> tuple[str, dict[str, int]] | None:
    """A guard that some admitted sizes do not fulfil, as text, and such sizes; None if all hold.

    symbols: torch's symbol -> the dim that it stands for, and the dim's step (a stepped dim is
    its symbol times its step).

    Two kinds of guard are left to verification, which runs such sizes: that something is not 0
    or 1, which torch.export assumes of every size though its programs work without, and that two
    sizes differ.
    """
    for guard in shape_env.guards:
        condition = guard.expr.xreplace(shape_env.replacements)
        free = condition.free_symbols
        if not free or not free <= symbols.keys() or _is_left(condition):
            continue
        met = {symbols[s][0] for s in free}
        code = compile(PythonPrinter().doprint(condition), "<guard>", "eval")
        for sizes in _assignments({name: dims[name] for name in met}):
            values = {str(s): sizes[symbols[s][0]] // symbols[s][1] for s in free}
            if 1 not in values.values() and not eval(code, {"math": math}, values):
                named = condition.xreplace({s: _in_dim(*symbols[s]) for s in free})
                return str(named), sizes
    return None


def _is_left(condition: Any) -> bool:
    if isinstance(condition, sympy.Ne):
        sides = sorted(condition.args, key=lambda side: side.is_Symbol)
        return sides[1].is_Symbol and (sides[0].is_Symbol or sides[0] in (0, 1))
    return isinstance(condition, sympy.GreaterThan | sympy.StrictGreaterThan) and (
        condition.rhs.is_Integer and int(condition.rhs) <= 2
    )


def _in_dim(name: str, step: int) -> Any:
    symbol = sympy.Symbol(name, integer=True, positive=True)
    return symbol if step == 1 else symbol / step


def _assignments(dims: Mapping[str, Dim]) -> Iterator[dict[str, int]]:
    """Sizes to try: nearly all of one dim, some of each of several."""
    count = MOST_SIZES if len(dims) == 1 else 16
    for sizes in itertools.product(*(_sizes(dim, count) for dim in dims.values())):
        yield dict(zip(dims, sizes, strict=True))


def _sizes(dim: Dim, count: int) -> list[int]:
    every = range(dim.min, dim.max + 1, dim.step)
    return sorted({*every[:: -(-len(every) // count)], dim.max})
