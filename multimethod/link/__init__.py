"""The `.pte` file: reading and checking it, linking several into one, the manifest.

Nothing here imports torch or executorch, so that looking into a file takes milliseconds.
"""

from .check import check_program, open_program
from .file import PteFile
from .integrity import check_integrity
from .linker import LinkReport, link
from .manifest import Manifest, MethodRecord, StateRecord, manifest_bytes, read_manifest
from .share import MethodSize, Sizes, sizes
from .signatures import foreign_signature
from .write import write_pte

__all__ = [
    "LinkReport",
    "Manifest",
    "MethodRecord",
    "MethodSize",
    "PteFile",
    "Sizes",
    "StateRecord",
    "check_integrity",
    "check_program",
    "foreign_signature",
    "link",
    "manifest_bytes",
    "open_program",
    "read_manifest",
    "sizes",
    "write_pte",
]
