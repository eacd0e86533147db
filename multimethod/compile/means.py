"""What a build compiles with: processes of this machine, or a cluster."""

from __future__ import annotations

from attrs import frozen

from mmpack.multimethod.compile.cluster import Cluster
from mmpack.multimethod.compile.spare import Spare


@frozen
class Means:
    """jobs: how many methods are compiled at once, each in a process of its own. memory: bytes that
    this process and those may take together meanwhile; None: as many as they do. cluster: whose
    workers compile, rather than processes of this machine. spare: one of those processes that was
    begun already."""

    jobs: int = 1
    memory: int | None = None
    cluster: Cluster | None = None
    spare: Spare | None = None
