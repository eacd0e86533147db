"""Where Qualcomm's QNN libraries are: in `QNN_SDK_ROOT`, or in a wheel (the extra `mmpack[qnn]`).

The wheel is `onnxruntime-qnn`; only its shared libraries are used, and it is never imported.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from attrs import frozen

from mmpack.multimethod.versions import installed

PACKAGE = "onnxruntime-qnn"
WORKS = "2.5.0"
"""The release whose libraries agree with executorch 1.5: 2.3, 2.4, 2.6 and 2.7 fail with
"unknown custom config socModel 0"."""
NEEDED = ("libQnnSystem.so", "libQnnHtp.so")
"""What the runtime loads, in this order, for the HTP backend and its simulator on x86."""


@frozen
class Sdk:
    """The libraries: `root` for QNN_SDK_ROOT, `folders` for LD_LIBRARY_PATH."""

    root: Path
    folders: tuple[Path, ...]
    version: str

    def library(self, name: str) -> Path:
        return next(f / name for f in self.folders if (f / name).exists())


def find_sdk() -> Sdk | None:
    """The user's own SDK if QNN_SDK_ROOT names one, else the wheel's libraries, else None."""
    if root := os.environ.get("QNN_SDK_ROOT"):
        folder = Path(root) / "lib" / "x86_64-linux-clang"
        if all((folder / name).exists() for name in NEEDED):
            return Sdk(Path(root), (folder,), f"QNN_SDK_ROOT={root}")
    version = installed(PACKAGE)
    if version != WORKS:
        return None
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        folder = Path(site) / "onnxruntime_qnn"
        if all((folder / name).exists() for name in NEEDED):
            libs = folder.with_name("onnxruntime_qnn.libs")
            return Sdk(folder, (folder, libs), f"{PACKAGE} {version}")
    return None
