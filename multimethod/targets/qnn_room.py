"""How many graphs QNN's simulator holds at once.

A chip runs graphs in protection domains, whose addresses are limited; the simulator has one of
them for a whole process ("Router.X86 does not support multi-PD"). What it takes a context for was
read out of its refusals, and what it has in all between two sums of these, 63 kB apart. Which chips
the graphs are for does not matter.
"""

from __future__ import annotations

ROOM = 3_650_722_201
"""Bytes: 3.4 GiB, in QNN 2.49."""
EACH = 10 << 20
"""Bytes that a context takes besides its data, within 0.2 MB."""
REFUSAL = "Failed to find available PD"


def takes(data: int) -> int:
    """Bytes of `ROOM` for a context with so many bytes of data."""
    return EACH + data


def full(printed: str) -> str | None:
    """What a load that failed means, if there was no room for it."""
    if REFUSAL not in printed:
        return None
    return (
        f"QNN's simulator has no room for it: what a process has loaded takes {EACH / 2**20:g} MiB "
        f"a graph, and its data, of {ROOM / 2**30:.1f} GiB"
    )
