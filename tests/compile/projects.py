"""Small projects to compile: a model file and a spec in a folder of their own."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from mmpack.multimethod.compile import objects, worker
from mmpack.multimethod.compile.export import Exported, export
from mmpack.multimethod.compile.model import load_model, state_names
from mmpack.multimethod.compile.process import Answer, Job
from mmpack.multimethod.compile.unit import Unit, make_units
from mmpack.multimethod.driver.build import build
from mmpack.multimethod.driver.records import BuildReport
from mmpack.multimethod.flow.program import Program, load
from mmpack.multimethod.spec import SpecFile, load_spec

HEAD = """\
mmpack: 1
model: {factory: model.py:make}
targets: {cpu: {backend: xnnpack}, plain: {backend: portable}}
"""
IMPORTS = "import torch\nfrom torch import nn\n"
MAKE = "\ndef make():\n    torch.manual_seed(0)\n    return Model()\n"


class Project:
    """A folder with `model.py` and `spec.yaml`, and what can be made of them.

    Methods are lowered in this process, which saves the start of a worker; `workers=True` has
    `build` do it as it does for users.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.cache = cache
        self.output = folder / "out.pte"

    @property
    def path(self) -> Path:
        return self.folder / "spec.yaml"

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def model(self, text: str, make: str = MAKE) -> Project:
        """Write `model.py`; its factory makes a `Model` unless told otherwise."""
        self.file("model.py", IMPORTS + textwrap.dedent(text) + textwrap.dedent(make))
        return self

    def spec(self, text: str, head: str = HEAD) -> Project:
        self.file("spec.yaml", head + textwrap.dedent(text))
        return self

    @property
    def checked(self) -> SpecFile:
        return load_spec(self.path)

    def load_model(self) -> nn.Module:
        return load_model(self.checked)

    def units(self) -> dict[str, Unit]:
        return make_units(self.checked, self.load_model())

    def export(self, method: str = "f") -> Exported:
        spec_file = self.checked
        model = load_model(spec_file)
        return export(make_units(spec_file, model)[method], state_names(model))

    def build(
        self, *, workers: bool = False, cache: Path | None = None, **options: Any
    ) -> BuildReport:
        options.setdefault("output", self.output)
        with patch.object(objects, "run_jobs", objects.run_jobs if workers else run_here):
            return build(self.path, cache=cache or self.cache, **options)

    def program(self, **options: Any) -> Program:
        self.build(**options)
        return load(self.output)


def run_here(
    jobs: Sequence[Job],
    workers: int,
    started: Callable[[Job], None],
    finished: Callable[[Answer], None],
    **_: Any,
) -> list[Answer]:
    """Like `pool.run_jobs`, in this process."""
    answers = []
    for job in jobs:
        started(job)
        figures = worker._run(
            {
                "method": job.method,
                "unit": str(job.unit),
                "output": str(job.output),
                "threads": 1,
                "contents": None,
            }
        )
        answer = Answer(job, figures, figures.pop("error", None))
        answers.append(answer)
        finished(answer)
    return answers
