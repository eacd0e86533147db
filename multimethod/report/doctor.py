"""What this machine can build and run, and which command would change a "no"."""

from __future__ import annotations

import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

from attrs import evolve, frozen

from mmpack.multimethod.driver.proof import Proof, prove
from mmpack.multimethod.stock_runtime import stock_runtime
from mmpack.multimethod.targets import BACKENDS, Availability, Backend
from mmpack.multimethod.versions import SUPPORTED, installed, is_supported, requirement

PACKAGES = (
    "mmpack",
    *SUPPORTED,
    "attrs",
    "cattrs",
    "click",
    "numpy",
    "rich",
    "ruamel.yaml",
    "ruamel.yaml.clib",
    "safetensors",
    "sympy",
    "torchao",
)


@frozen
class Diagnosis:
    """versions: package -> version or None. wrong: packages that mmpack does not work with ->
    the command that would change that. backends: name -> what its `available` says. optional:
    those of them that a machine need not have. proofs: those that are not a part of ExecuTorch
    -> how compiling and running a small graph went. runtime: backends registered in the Python
    runtime. kernels: namespaces of operators whose kernels come with a module of ExecuTorch's ->
    whether they do. compiler: path of a C++ compiler. engine: whether the native one is there."""

    machine: str
    versions: dict[str, str | None]
    wrong: dict[str, str]
    backends: dict[str, Availability]
    optional: frozenset[str]
    proofs: dict[str, Proof]
    runtime: tuple[str, ...]
    kernels: dict[str, bool]
    compiler: str | None
    engine: str

    @property
    def healthy(self) -> bool:
        """Every package is there, in a version that works, with its kernels, and every backend can
        build and run, unless it is one that need not be there, and is not."""
        return (
            not self.wrong
            and all(self.kernels.values())
            and all(
                (a.builds and a.runs) or (name in self.optional and name not in self.proofs)
                for name, a in self.backends.items()
            )
        )

    def __str__(self) -> str:
        lines = [self.machine, ""]
        for name, version in self.versions.items():
            lines.append(f"  {name:<14} {version or 'missing'}")
            if name in self.wrong:
                lines.append(f"  {'':<14} to change that: {self.wrong[name]}")
        lines += ["", f"  {'C++ compiler':<14} {self.compiler or 'none: apt-get install g++'}"]
        lines += [f"  {'native engine':<14} {self.engine}", ""]
        for name, found in self.backends.items():
            can = f"builds {_yes(found.builds)}, runs {_yes(found.runs)}"
            lines.append(f"  {name:<14} {can}  ({found.detail})")
            if name in self.proofs:
                lines.append(f"  {'':<14} {self.proofs[name]}")
            if found.remedy is not None and not (found.builds and found.runs):
                lines.append(f"  {'':<14} to change that: {found.remedy}")
        if self.kernels:
            found_kernels = ", ".join(f"{name} {_yes(here)}" for name, here in self.kernels.items())
            lines += ["", f"  {'more kernels':<14} {found_kernels}"]
            if not all(self.kernels.values()):
                lines.append(f"  {'':<14} to change that: {_reinstall('executorch')}")
        lines += ["", f"  runtime has: {', '.join(self.runtime) or 'nothing'}"]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Look at this machine. Imports torch and executorch, if they are there, and meanwhile has
    backends that are not a part of ExecuTorch compile and run a small graph, some ten seconds."""
    versions = {name: installed(name) for name in PACKAGES}
    wrong = {name: f"pip install {name}" for name, version in versions.items() if version is None}
    if "mmpack" in wrong:  # a checkout that was never installed
        wrong["mmpack"] = "pip install ."
    for name in SUPPORTED:
        if not is_supported(name):
            wrong[name] = f"pip install '{requirement(name)}'"
    with ThreadPoolExecutor() as pool:  # a proof is a process of its own
        backends, proving = {}, {}
        for name, backend in sorted(BACKENDS.items(), key=lambda item: not item[1].external):
            found = backends[name] = _available(backend)
            if backend.external and found.builds and found.runs:
                proving[name] = pool.submit(prove, name, backend.proof)
        runtime = _registered()
        kernels = _kernels() if runtime else {}
        proofs = {name: proof.result() for name, proof in proving.items()}
    for name, proof in proofs.items():
        if proof.failure is not None:
            backends[name] = evolve(backends[name], builds=False, runs=False)
    return Diagnosis(
        machine=f"Python {platform.python_version()} on {platform.platform()}, {sys.executable}",
        versions=versions,
        wrong=wrong,
        backends={name: backends[name] for name in BACKENDS},
        optional=frozenset(name for name, backend in BACKENDS.items() if backend.external),
        proofs=proofs,
        runtime=runtime,
        kernels=kernels,
        compiler=shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
        engine=_engine(),
    )


def _available(backend: type[Backend]) -> Availability:
    try:
        return backend.available()
    except ImportError as error:
        return Availability(
            builds=False, runs=False, detail=str(error), remedy=_reinstall(error.name or "")
        )


def _reinstall(module: str) -> str:
    """What brings a module that cannot be imported."""
    package = module.partition(".")[0] or "executorch"
    needed = requirement(package) if package in SUPPORTED else package
    return f"pip install --force-reinstall --no-deps '{needed}'"


def _registered() -> tuple[str, ...]:
    try:
        runtime = stock_runtime()
    except ImportError:
        return ()
    return tuple(sorted(runtime.backend_registry.registered_backend_names))


def _kernels() -> dict[str, bool]:
    from mmpack.multimethod.runtime.chatter import caught
    from mmpack.multimethod.runtime.kernels import has_kernels

    with caught():  # importing them makes remarks
        return has_kernels()


def _engine() -> str:
    try:
        from mmpack.multimethod.runtime.native import build
    except ImportError:
        return "no: it needs torch and executorch"
    if (path := build.built()) is not None:
        return f"built: {path}"
    if (log := build.failed()) is not None:
        return f"did not compile, its log: {log}; to try again: mmpack doctor --build-engine"
    if build.compiler() is None:
        return "not built, and there is no compiler: methods run in the stock one"
    return "not built yet: its first use does it, or mmpack doctor --build-engine"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
