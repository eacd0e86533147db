"""The `.pte` file: reading and checking it, linking several into one, the manifest.

Nothing here imports torch or executorch, so that looking into a file takes milliseconds.
"""

from mmpack.multimethod.link.check import check_program, open_program
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.integrity import check_integrity
from mmpack.multimethod.link.linker import LinkReport, link
from mmpack.multimethod.link.manifest import (
    Manifest,
    MethodRecord,
    StateRecord,
    manifest_bytes,
    read_manifest,
)
from mmpack.multimethod.link.method_sizes import MethodSize, Sizes, sizes
from mmpack.multimethod.link.signatures import foreign_signature
from mmpack.multimethod.link.write import write_pte

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
