"""The `.pte` file: reading and checking it, linking several into one, the manifest.

Nothing here imports torch or executorch, so that looking into a file takes milliseconds.
"""

from mmpack.multimethod.link.check import open_program
from mmpack.multimethod.link.check_manifest import read_manifest
from mmpack.multimethod.link.file import PteFile
from mmpack.multimethod.link.integrity import check_integrity
from mmpack.multimethod.link.linker import LinkReport, link
from mmpack.multimethod.link.manifest import Manifest, MethodRecord
from mmpack.multimethod.link.method_sizes import sizes
from mmpack.multimethod.link.signatures import foreign_signature

__all__ = [
    "LinkReport",
    "Manifest",
    "MethodRecord",
    "PteFile",
    "check_integrity",
    "foreign_signature",
    "link",
    "open_program",
    "read_manifest",
    "sizes",
]
