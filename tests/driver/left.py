"""What builds leave behind."""

from __future__ import annotations

from pathlib import Path


def left_beside(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir() if path != output)


def left_in(cache: Path) -> list[str]:
    """Files of the cache that are no objects, facts or logs, and not its lock."""
    known = ("facts", "objects", "logs", "lock")
    hidden = (str(p.relative_to(cache)) for p in cache.rglob(".*") if p.is_file())
    return sorted(hidden) + [path.name for path in cache.iterdir() if path.name not in known]
