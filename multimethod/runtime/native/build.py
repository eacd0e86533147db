"""Sources of the native engine -> a Python extension in the user's cache.

    <cache>/native/<key>/mmpack_native.so
    <cache>/native/<key>-<compiler>.log    what a compiler printed that failed

The extension is linked with the libraries in the wheels of executorch and torch, so the key holds
their versions and places, the sources and Python's ABI. It appears whole or not at all, and
processes that want it at the same time wait for the one that makes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from mmpack.multimethod.errors import TargetError
from mmpack.multimethod.runtime.chatter import caught
from mmpack.multimethod.scratch import cache_root, scratch_folder
from mmpack.multimethod.versions import installed

NAME = "mmpack_native"
UNITS = ("tensors", "log", "looks", "method", "calls", "regions", "graph", "module")
"""Names of the sources, each compiled apart: some include what others must not."""

FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden")
COMPILERS = ("g++", "clang++", "c++")

HERE = Path(__file__).parent


def compiler() -> list[str] | None:
    """The command of the C++ compiler: `$CXX`, or the first that is found."""
    own = shlex.split(os.environ.get("CXX", ""))
    names = [own] if own else [[name] for name in COMPILERS]
    return next((name for name in names if shutil.which(name[0])), None)


def built() -> Path | None:
    """The extension, if it has been built here for what is installed."""
    path = _folder() / f"{NAME}.so"
    return path if path.is_file() else None


def failed() -> Path | None:
    """The log of an earlier attempt to build it with the compiler that is here."""
    command = compiler()
    log = _log(command) if command else None
    return log if log is not None and log.is_file() else None


def build(say: Callable[[], None] = lambda: None) -> Path:
    """The extension, compiled now if it is not there, which takes some fifteen seconds.

    say: called before that. Raises TargetError if there is no compiler, or it fails; its log is
    named then.
    """
    if (path := built()) is not None:
        return path
    command = compiler()
    if command is None:
        own = os.environ.get("CXX")
        found = f"CXX is {own!r}, which is not found" if own else "none of them is found"
        raise TargetError(
            f"the native engine needs a C++ compiler ({', '.join(COMPILERS)}), and {found}: "
            "apt-get install g++"
        )
    folder = _folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_suffix(".lock")):
            if (path := built()) is not None:  # by another process, meanwhile
                return path
            say()
            with scratch_folder(folder.parent, NAME) as scratch:
                _compile(command, scratch)
                os.replace(scratch / "made", folder)
    except OSError as error:
        raise TargetError(
            f"the native engine cannot be written to {folder.parent} ({error.strerror or error}); "
            "name another folder with MMPACK_CACHE"
        ) from error
    return folder / f"{NAME}.so"


@cache
def _extension(path: Path) -> ModuleType:
    import torch

    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    # QNN's libraries, once they run something, offer the whole process what exceptions of C++ are
    # thrown with, which is not what the extension was compiled for: its own libraries come first.
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        with caught():  # ExecuTorch remarks that somebody listens to it
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
    finally:
        sys.setdlopenflags(flags)
    probe = torch.zeros(1)
    if not module.reads(probe, probe.data_ptr()):
        raise TargetError(
            f"the native engine does not know the tensors of torch {torch.__version__}"
        )
    return module


_importing = threading.Lock()


def extension(path: Path) -> ModuleType:
    """The extension as a module. The stock runtime must have been imported before: backends and
    kernels are those that it brought. Raises TargetError if it does not fit what is installed."""
    with _importing:
        try:
            return _extension(path)
        except ImportError as error:
            raise TargetError(f"the native engine cannot be loaded: {error}") from error


def _compile(command: list[str], scratch: Path) -> None:
    made = scratch / "made"
    made.mkdir()
    torch, executorch = _root("torch"), _root("executorch")
    includes = [
        executorch / "include",
        executorch / "include" / "executorch" / "runtime" / "core" / "portable_type" / "c10",
        torch / "include",  # for pybind11; what both have is then executorch's
        Path(sysconfig.get_paths()["include"]),
    ]
    libraries = [
        (executorch / "lib", ("executorch", "executorch_threadpool")),
        (torch / "lib", ("torch_python", "torch_cpu", "c10")),
    ]

    def unit(name: str) -> subprocess.CompletedProcess[str]:
        ours = name != "tensors"
        where = includes if ours else includes[2:]
        flags = [*FLAGS, "-DC10_USING_CUSTOM_GENERATED_MACROS"] if ours else FLAGS
        return _run(
            [*command, *flags, "-c", str(HERE / f"{name}.cpp"), "-o", str(scratch / f"{name}.o")]
            + [part for folder in where for part in ("-isystem", str(folder))]
        )

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(unit, UNITS))
    if all(part.returncode == 0 for part in done):
        linked = [*command, "-shared", "-o", str(made / f"{NAME}.so")]
        linked += [str(scratch / f"{name}.o") for name in UNITS]
        for folder, names in libraries:
            linked += [f"-L{folder}", f"-Wl,-rpath,{folder}", *(f"-l{name}" for name in names)]
        done.append(_run(linked))
    if any(part.returncode for part in done):
        log = _log(command)
        text = "\n".join(f"$ {shlex.join(part.args)}\n{part.stdout}" for part in done)
        (scratch / "log").write_text(text)
        os.replace(scratch / "log", log)
        raise TargetError(f"the native engine does not compile with {command[0]}; its log: {log}")
    _log(command).unlink(missing_ok=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def _folder() -> Path:
    return cache_root().absolute() / "native" / _key()


def _log(command: list[str]) -> Path:
    told = hashlib.sha256(shlex.join(command).encode()).hexdigest()[:8]
    folder = _folder()
    return folder.with_name(f"{folder.name}-{told}.log")


@cache
def _key() -> str:
    known = hashlib.sha256()
    for path in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")]):
        known.update(f"{path.name}\0".encode() + path.read_bytes())
    for name in ("executorch", "torch"):
        known.update(f"{name} {installed(name)} {_root(name)}\n".encode())
    known.update(f"{sysconfig.get_config_var('EXT_SUFFIX')} {sys.base_prefix} {FLAGS}".encode())
    return known.hexdigest()[:16]


def _root(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations is not None
    return Path(next(iter(found.submodule_search_locations)))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
