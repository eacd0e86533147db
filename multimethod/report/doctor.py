"""What this machine can build and run, and which command would change a "no"."""

from __future__ import annotations

import platform
import shutil
import sys

from attrs import frozen

from mmpack.multimethod.targets import BACKENDS, Availability
from mmpack.multimethod.versions import SUPPORTED, installed

PACKAGES = (
    "mmpack",
    *SUPPORTED,
    "attrs",
    "cattrs",
    "click",
    "flatbuffers",
    "numpy",
    "rich",
    "ruamel.yaml",
    "safetensors",
)


@frozen
class Diagnosis:
    """versions: package -> version or None. backends: name -> what its `available` says.
    runtime: backends registered in the Python runtime. compiler: path of a C++ compiler."""

    machine: str
    versions: dict[str, str | None]
    backends: dict[str, Availability]
    runtime: tuple[str, ...]
    compiler: str | None

    @property
    def healthy(self) -> bool:
        """Every package is there and every backend can build and run."""
        return None not in self.versions.values() and all(
            a.builds and a.runs for a in self.backends.values()
        )

    def __str__(self) -> str:
        lines = [self.machine, ""]
        lines += [f"  {name:<14} {version or 'missing'}" for name, version in self.versions.items()]
        lines += ["", f"  {'C++ compiler':<14} {self.compiler or 'none: apt-get install g++'}", ""]
        for name, found in self.backends.items():
            can = f"builds {_yes(found.builds)}, runs {_yes(found.runs)}"
            lines.append(f"  {name:<14} {can}  ({found.detail})")
            if found.remedy is not None and not (found.builds and found.runs):
                lines.append(f"  {'':<14} to change that: {found.remedy}")
        lines += ["", f"  runtime has: {', '.join(self.runtime)}"]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Look at this machine. Imports torch and executorch."""
    from executorch.runtime import Runtime

    return Diagnosis(
        machine=f"Python {platform.python_version()} on {platform.platform()}, {sys.executable}",
        versions={name: installed(name) for name in PACKAGES},
        backends={name: backend.available() for name, backend in BACKENDS.items()},
        runtime=tuple(sorted(Runtime.get().backend_registry.registered_backend_names)),
        compiler=shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
