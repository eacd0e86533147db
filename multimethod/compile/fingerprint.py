"""A unit's content as one hash: equal hashes mean that compiling again would give the same object.

What goes in: the code that the module's classes can reach, every attribute of every submodule,
every weight, the inputs and dims, the target, the versions of Python and of the packages that
export and compile, and mmpack's own files that do. Nothing of it needs torch.export, so a build
in which nothing changed exports nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import nn

from mmpack.multimethod.compile.describe import Describer
from mmpack.multimethod.compile.ingredients import Parts, code_parts, parts_of
from mmpack.multimethod.compile.sources import PACKAGES, hash_file, reachable
from mmpack.multimethod.compile.unit import Unit
from mmpack.multimethod.versions import installed

OWN_CODE = (
    "scale.py",
    "signature.py",
    "samples.py",
    "compile/alike.py",
    "compile/buffers.py",
    "compile/calls.py",
    "compile/composites.py",
    "compile/contents.py",
    "compile/dims.py",
    "compile/embeddings.py",
    "compile/export.py",
    "compile/guards.py",
    "compile/lower.py",
    "compile/mapped.py",
    "compile/objects.py",
    "compile/precision.py",
    "compile/quantize.py",
    "compile/rehearse.py",
    "compile/scales.py",
    "compile/state.py",
    "compile/structure.py",
    "compile/unit.py",
    "compile/unit_file.py",
    "compile/unused.py",
    "compile/weights.py",
    "compile/widen.py",
    "link/canonical.py",
    "link/encode.py",
    "link/merge_data.py",
    "link/rebind.py",
    "link/write.py",
    "targets/*.py",
)
"""The files of mmpack that decide what an object and its facts look like. A test holds them
against what exporting and lowering import."""


@frozen
class Print:
    """A fingerprint, 64 hexadecimal digits, and what it is of, part by part."""

    digest: str
    parts: Parts


def fingerprints(units: Mapping[str, Unit], names: Mapping[int, str]) -> dict[str, Print]:
    """The fingerprints of some units. `names` maps id(tensor) to its name in the model."""
    made = Fingerprints(names)
    return {name: made.print(unit) for name, unit in units.items()}


class Fingerprints:
    """Hashes units. `names` maps id(tensor) to its name in the model."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.describer = Describer()
        self._code_of: dict[frozenset[str], tuple[str, Parts]] = {}

    def of(self, unit: Unit) -> str:
        """The unit's fingerprint, 64 hexadecimal digits."""
        return self.print(unit).digest

    def print(self, unit: Unit) -> Print:
        own = {"method": unit.name, "tensors": self._state(unit.module)}
        content = {**self.common(unit), **own}
        return Print(digest(content), parts_of(content, self._code(unit)[1]))

    def common(self, unit: Unit) -> dict[str, Any]:
        """All of a unit's content but its name and its tensors, as plain data."""
        return {
            "inputs": [attrs.asdict(value) for value in unit.inputs],
            "dims": {name: attrs.asdict(dim) for name, dim in unit.dims.items()},
            "outputs": list(unit.spec.outputs),
            "io": unit.spec.io,
            "target": [unit.backend, dict(unit.options)],
            "modules": self.describer.tree(unit.module),
            "code": self._code(unit)[0],
            "versions": _versions(),
        }

    def _code(self, unit: Unit) -> tuple[str, Parts]:
        """Hash and parts of the code that a unit's classes can reach, found once for all units of
        the same Python modules: thirty layers are of one class."""
        homes = frozenset(_homes(unit.module))
        if homes not in self._code_of:
            self.describer.leave()
            files = reachable(homes, self.describer)
            self._code_of[homes] = digest(files), code_parts(files)
        return self._code_of[homes]

    def _state(self, module: nn.Module) -> dict[str, list[str]]:
        return {
            name: [self.names.get(id(tensor), ""), self.describer.tensor(tensor)]
            for name, tensor in [
                *module.named_parameters(remove_duplicate=False),
                *module.named_buffers(remove_duplicate=False),
            ]
        }


def digest(value: Any) -> str:
    """sha256 of plain data, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _homes(module: nn.Module) -> Iterator[str]:
    """Names of the Python modules that the code of a module and of its attributes is in."""
    for inside in module.modules():
        for base in type(inside).__mro__:
            yield base.__module__
        for value in vars(inside).values():
            for thing in (value, type(value)):
                home = getattr(thing, "__module__", None)
                if isinstance(home, str):
                    yield home


@cache
def _versions() -> dict[str, Any]:
    here = Path(__file__).parent.parent
    own = [path for pattern in OWN_CODE for path in sorted(here.glob(pattern))]
    return {
        "python": list(sys.version_info[:2]),
        "packages": {name: installed(name) for name in PACKAGES},
        "torch": torch.__version__,
        "mmpack": [[path.name, hash_file(path)] for path in own],
    }
