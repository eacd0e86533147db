"""The versions of torch and executorch that mmpack works with, asked without importing either."""

from __future__ import annotations

from importlib import metadata

SUPPORTED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "torch": ((2, 13), (2, 14)),
    "executorch": ((1, 5, 1), (1, 6)),
}
"""Package -> first version that works, first version that is not known to. setup.cfg says the
same to pip; executorch itself declares no torch requirement."""


def installed(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require_supported() -> None:
    """Raise ImportError, in one line, if torch or executorch is missing or of a wrong version."""
    for package in SUPPORTED:
        if not is_supported(package):
            needed = requirement(package)
            found = installed(package) or "none"
            raise ImportError(f"mmpack needs {needed}, found {found}: pip install '{needed}'")


def is_supported(package: str) -> bool:
    """Whether a package of `SUPPORTED` is installed in a version that works."""
    low, high = SUPPORTED[package]
    found = installed(package)
    return found is not None and low <= _numbers(found) < high


def requirement(package: str) -> str:
    """What pip takes: `torch>=2.13,<2.14`."""
    low, high = (".".join(map(str, version)) for version in SUPPORTED[package])
    return f"{package}>={low},<{high}"


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
