"""What a build ships is what it linked and verified, with the measured errors in its manifest. The
two must be one program."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from mmpack.multimethod.link import LinkReport, PteFile, link, read_manifest
from mmpack.multimethod.link.integrity import INTEGRITY_KEY
from mmpack.multimethod.link.manifest import MANIFEST_KEY


def contents(path: Path) -> tuple[object, list[bytes], Any]:
    """A program without its table of segments, its segments' bytes without mmpack's own, and its
    manifest."""
    with PteFile.open(path) as file:
        ours = {file.named[MANIFEST_KEY], file.named[INTEGRITY_KEY]}
        kept = [n for n in range(len(file.segments)) if n not in ours]
        assert max(kept) < min(ours)
        file.program.segments = None
        return file.program, [file.segment_bytes(n) for n in kept], read_manifest(file)


def test_only_the_manifest_differs(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project.model(
        "class Model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.up = nn.Linear(8, 8)\n"
        "        self.register_buffer('seen', torch.ones(8))\n"
        "    def forward(self, x):\n"
        "        self.seen.add_(1.0)\n"
        "        return self.up(x) * self.seen\n"
    )
    project.spec(
        'methods: {f: {module: ".", target: plain, inputs: {x: [3, 8]}}}\nconstants: {n: 1}\n'
    )
    made: list[Path] = []

    def kept(inputs: Any, output: Path, **options: Any) -> LinkReport:
        report = link(inputs, output, **options)
        made.append(project.folder / f"link{len(made)}.pte")
        made[-1].write_bytes(Path(output).read_bytes())
        return report

    monkeypatch.setattr(importlib.import_module("mmpack.multimethod.driver.records"), "link", kept)
    project.build()
    (verified, measured), (shipped, weights, manifest) = (
        contents(made[0])[:2],
        contents(project.output),
    )
    assert len(made) == 1 and shipped == verified and weights == measured
    assert manifest.methods["f"].verified and manifest.methods["f"].error is not None
    assert contents(made[0])[2].methods["f"].error is None
