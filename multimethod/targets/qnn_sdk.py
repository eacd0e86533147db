"""Where Qualcomm's QNN libraries are: in `QNN_SDK_ROOT`, or in a wheel (the extra `mmpack[qnn]`).

The wheel is `onnxruntime-qnn`; only its shared libraries are used, and it is never imported.
Nothing here loads a library or touches the network.
"""

from __future__ import annotations

import mmap
import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

from attrs import frozen

from mmpack.multimethod.versions import installed

PACKAGE = "onnxruntime-qnn"
WORKS = "2.5.0"
"""The release whose libraries agree with executorch 1.5: 2.3, 2.4, 2.6 and 2.7 fail with
"unknown custom config socModel 0"."""
BESIDES = ("py-cpuinfo", "pydot")
"""What executorch's QNN lowering imports, and executorch does not have installed."""
NEEDED = ("libQnnSystem.so", "libQnnHtp.so")
"""What the runtime loads, in this order, for the HTP backend and its simulator on x86."""
IN_SDK = Path("lib", "x86_64-linux-clang")
EXTRA = "pip install 'mmpack[qnn]'"


class NoSdk(Exception):
    """There are no libraries that can be used, which need not be a mistake: callers say what it
    means. `remedy` is what would change it."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(f"qnn: {detail}; to change that: {remedy}")
        self.detail = detail
        self.remedy = remedy


@frozen
class Sdk:
    """The libraries. name: where they come from; folders: where they and what they need are;
    remedy: what to do if they do not work; root: what QNN_SDK_ROOT is to be. Empty, for libraries
    without the rest of an SDK, it keeps executorch from looking for that, and from downloading
    one."""

    name: str
    root: str
    folders: tuple[Path, ...]
    remedy: str

    def library(self, name: str) -> Path:
        return self.folders[0] / name

    @property
    def version(self) -> str:
        """The libraries' own version, such as 2.49.40, or "of unknown version"."""
        return _version(self.library("libQnnHtp.so"))

    def __str__(self) -> str:
        return f"QNN {self.version}, from {self.name}"


def find_sdk(*, to_build: bool = False) -> Sdk:
    """The user's own SDK if QNN_SDK_ROOT names one, else the wheel's libraries.

    to_build: ask for what only lowering needs, too.

    Raises NoSdk, also for a QNN_SDK_ROOT that is of no use: what was asked for is not quietly
    exchanged for something else.
    """
    machine = f"{platform.system()} on {platform.machine()}"
    if machine not in ("Linux on x86_64", "Linux on AMD64"):
        raise NoSdk(
            f"the compiler and the simulator are for Linux on x86-64, and this is {machine}",
            "build on such a machine; the program runs on its device",
        )
    root = os.environ.get("QNN_SDK_ROOT")
    sdk = _sdk_in(Path(root)) if root else _wheel()
    if to_build and (missing := [name for name in BESIDES if installed(name) is None]):
        raise NoSdk(f"executorch's QNN lowering needs {' and '.join(missing)}", EXTRA)
    return sdk


def _sdk_in(root: Path) -> Sdk:
    folder = root / IN_SDK
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise NoSdk(
            f"QNN_SDK_ROOT is {root}, and there is no {IN_SDK / missing[0]} in it",
            f"set it to the folder of a QNN SDK, or unset it and {EXTRA}",
        )
    return Sdk(
        f"QNN_SDK_ROOT={root}", str(root), (folder.absolute(),), f"unset QNN_SDK_ROOT; {EXTRA}"
    )


def _wheel() -> Sdk:
    version = installed(PACKAGE)
    if version is None:
        raise NoSdk(f"no QNN libraries: neither {PACKAGE} {WORKS} nor QNN_SDK_ROOT", EXTRA)
    if version != WORKS:
        raise NoSdk(f"{PACKAGE} is {version}, and executorch 1.5 works with {WORKS}", EXTRA)
    again = f"pip install --force-reinstall --no-deps {PACKAGE}=={WORKS}"
    folder = Path(str(metadata.distribution(PACKAGE).locate_file("onnxruntime_qnn"))).absolute()
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise NoSdk(f"{PACKAGE} {version} has lost its {missing[0]}", again)
    libs = folder.with_name("onnxruntime_qnn.libs")
    return Sdk(f"{PACKAGE} {version}", "", (folder, libs), again)


@cache
def _version(library: Path) -> str:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"\bv(\d+\.\d+\.\d+)\.\d{12}", data)
        return found[1].decode() if found else "of unknown version"
