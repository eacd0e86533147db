"""Builds as a whole: what is written, what is kept, and what is left when a build is stopped.

Builds that are to be killed run in processes of their own, with workers that hand out objects
compiled before, so that each takes about a second.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpack.multimethod import build, load, verify
from mmpack.multimethod.compile import lower as lowering
from mmpack.multimethod.compile import process
from mmpack.multimethod.errors import CompileError, OutputError, VerifyError

from ..compile.processes import wait_for_end
from ..compile.projects import Project
from .killable import Builder
from .left import left_beside, left_in

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "examples" / "nested_matmul" / "nested_matmul.yaml"
REPLAY = Path(__file__).with_name("replay_worker.py")
EVENTS = 17
"""Events that a cold build of this spec tells, as long as nothing goes wrong."""


class TestStopped:
    """A build that is killed, interrupted, or runs out of room."""

    @pytest.mark.parametrize("first", range(3))
    def test_killed_at_any_event_it_leaves_the_old_output_or_the_new_one(
        self, builder: Builder, replay: tuple[str, ...], program: Path, tmp_path: Path, first: int
    ) -> None:
        output, cache = tmp_path / "out" / "model.pte", tmp_path / "cache"
        output.parent.mkdir()
        output.write_bytes(b"the old one")
        for event in range(first, EVENTS, 3):
            shutil.rmtree(cache, ignore_errors=True)
            build = builder.start(SPEC, output, worker=replay, cache=str(cache), jobs=2)
            for _ in range(event + 1):
                assert build.next_event() is not None, build.events
            build.next_event(random.Random(event).uniform(0, 0.05))
            build.kill()
            assert output.read_bytes() in (b"the old one", program.read_bytes())
        assert builder.start(SPEC, output, worker=replay, cache=str(cache)).finish() == "built"
        assert output.read_bytes() == program.read_bytes()
        assert left_beside(output) == []
        assert left_in(cache) == []
        wait_for_end(list(map(int, (Path(replay[-1]) / "pids").read_text().split())))

    def test_killed_without_an_old_output_it_leaves_none(
        self, builder: Builder, replay: tuple[str, ...], tmp_path: Path
    ) -> None:
        output, cache = tmp_path / "out" / "model.pte", tmp_path / "cache"
        output.parent.mkdir()
        build = builder.start(SPEC, output, worker=replay, cache=str(cache))
        while build.next_event() != "stage verify":
            pass
        build.kill()
        assert not output.exists()
        again = builder.start(SPEC, output, worker=replay, cache=str(cache))
        assert again.finish() == "built"
        assert sum(event.endswith("cached") for event in again.events) == 4  # both, in two stages
        assert left_beside(output) == []

    @pytest.mark.slow
    def test_the_real_command_killed_at_random_moments(self, tmp_path: Path) -> None:
        output, cache = tmp_path / "out" / "model.pte", tmp_path / "cache"
        output.parent.mkdir()
        output.write_bytes(b"the old one")
        command = [sys.executable, "-m", "mmpack.cli", "build", str(SPEC), "-o", str(output)]
        command += ["--cache", str(cache), "--jobs", "2"]
        rng = random.Random(0)
        for _ in range(12):
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            try:
                running.wait(rng.uniform(2, 20))
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
            if output.read_bytes() != b"the old one":
                load(output)
                output.write_bytes(b"the old one")
                shutil.rmtree(cache)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        verify(output, SPEC)
        assert left_beside(output) == []
        assert left_in(cache) == []

    def test_ctrl_c_ends_it_and_its_workers_at_once(
        self, builder: Builder, tmp_path: Path, replay: tuple[str, ...]
    ) -> None:
        output, cache = tmp_path / "out" / "model.pte", tmp_path / "cache"
        output.parent.mkdir()
        output.write_bytes(b"the old one")
        pids = tmp_path / "pids"
        hang = (
            f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(1e6)"
        )
        worker = (sys.executable, "-c", hang)
        build = builder.start(SPEC, output, worker=worker, cache=str(cache), jobs=2)
        while build.events.count("start forward") + build.events.count("start matmul") < 4:
            assert build.next_event() is not None
        build.send(signal.SIGINT)
        assert build.finish() == "interrupted"
        wait_for_end(list(map(int, pids.read_text().split())) if pids.exists() else [])
        assert output.read_bytes() == b"the old one"
        assert left_beside(output) == []
        assert left_in(cache) == []

    @pytest.mark.parametrize("largest", [500, 3000, 20_000])
    def test_a_file_that_finds_no_room_is_an_output_error(
        self,
        builder: Builder,
        replay: tuple[str, ...],
        tmp_path: Path,
        largest: int,
    ) -> None:
        output, cache = tmp_path / "out" / "model.pte", tmp_path / "cache"
        output.parent.mkdir()
        output.write_bytes(b"the old one")
        build = builder.start(SPEC, output, worker=replay, cache=str(cache), largest_file=largest)
        last = build.finish()
        assert last.startswith("error OutputError: "), build.events
        assert output.read_bytes() == b"the old one"
        assert left_beside(output) == []
        assert left_in(cache) == []
        assert builder.start(SPEC, output, worker=replay, cache=str(cache)).finish() == "built"

    def test_a_full_disk_is_an_output_error(
        self, builder: Builder, replay: tuple[str, ...], tmp_path: Path
    ) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)], capture_output=True
        )
        if mounted.returncode:
            pytest.skip("a small disk cannot be mounted here")
        try:
            output = disk / "model.pte"
            output.write_bytes(b"the old one")
            build = builder.start(SPEC, output, worker=replay, cache=str(tmp_path / "cache"))
            last = build.finish()
            assert last.startswith("error OutputError: ") and "no space left" in last
            assert output.read_bytes() == b"the old one"
            assert left_beside(output) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def test_two_builds_at_once_share_a_cache(
    builder: Builder, replay: tuple[str, ...], program: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    outputs = [tmp_path / name / "model.pte" for name in ("one", "two", "three")]
    builds = []
    for output in outputs:
        output.parent.mkdir()
        builds.append(builder.start(SPEC, output, worker=replay, cache=str(cache)))
    assert [made.finish() for made in builds] == ["built"] * 3
    assert all(output.read_bytes() == program.read_bytes() for output in outputs)
    assert left_in(cache) == []


def test_one_job_at_a_time_or_two_give_the_same_file(program: Path, tmp_path: Path) -> None:
    report = build(SPEC, tmp_path / "one.pte", jobs=1, cache=tmp_path / "cache")  # was built with 2
    assert report.compiled == 2
    assert (tmp_path / "one.pte").read_bytes() == program.read_bytes()


def test_an_identical_build_compiles_nothing_and_says_so(
    program: Path, build_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "COMMAND", ("false",))
    report = build(SPEC, tmp_path / "again.pte", cache=build_cache)
    assert report.compiled == 0 and all(method.cached for method in report.methods)
    assert (tmp_path / "again.pte").read_bytes() == program.read_bytes()


@pytest.mark.parametrize("damaged", ["objects/{key}.pte", "objects/{key}.json", "facts/*.json"])
def test_what_is_damaged_in_the_cache_is_made_again(
    replay: tuple[str, ...],
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damaged: str,
) -> None:
    monkeypatch.setattr(process, "COMMAND", replay)
    cache = tmp_path / "cache"
    build(SPEC, tmp_path / "one.pte", cache=cache)
    manifest = load(program).manifest
    assert manifest is not None
    pattern = damaged.format(key=manifest.methods["matmul"].key)
    for path in cache.glob(pattern):
        path.write_bytes(path.read_bytes()[:-7])
    report = build(SPEC, tmp_path / "two.pte", cache=cache)
    assert report.compiled == (0 if damaged.startswith("facts") else 1)
    assert (tmp_path / "two.pte").read_bytes() == program.read_bytes()


DIES = """
import sys
sys.argv[1:] = {folder!r},
sys.path.insert(0, {here!r})
import replay_worker
from mmpack.multimethod.compile import worker
def run(job):
    if job["method"] == "matmul":
        print("about to die", flush=True)
        import os
        os.kill(os.getpid(), 11)
    return replay_worker.run(job)
worker._run = run
worker._get_ready = lambda: None
worker.main()
"""


def test_of_a_build_with_a_method_that_crashes_the_compiler_the_others_are_kept(
    replay: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = DIES.format(folder=replay[-1], here=str(REPLAY.parent))
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", script))
    output, cache = tmp_path / "out.pte", tmp_path / "cache"
    with pytest.raises(CompileError) as caught:
        build(SPEC, output, cache=cache)
    died, log, kept = str(caught.value).splitlines()
    assert died == "matmul: the compiler process died (SIGSEGV)"
    assert Path(log.removeprefix("  log: ")).read_text() == "about to die\n"
    assert kept == "1 other compiled method kept in the cache"
    assert not output.exists()
    monkeypatch.setattr(process, "COMMAND", replay)
    report = build(SPEC, output, cache=cache)
    assert {m.signature.method for m in report.methods if not m.cached} == {"matmul"}


class TestVerified:
    """Nothing wrong is written."""

    @pytest.fixture
    def small(self, project: Any) -> Any:
        project.model(
            """
            class Model(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.inner = nn.Linear(3, 3)
                def forward(self, x):
                    return self.inner(x)
                def shifted(self, x):
                    return x + 1
            """
        )
        return project.spec(
            """
            dims: {n: {min: 1, max: 8}}
            methods:
              f: {module: ".", target: plain, inputs: {x: [n, 3]}, outputs: y}
              g: {module: ".", call: shifted, target: plain, inputs: {x: [3]}}
            """
        )

    @pytest.fixture
    def wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A backend that gives a weight another value."""
        right = lowering.lower

        def lower(program: Any, *args: Any) -> Any:
            for tensor in program.state_dict.values():
                tensor.mul_(1.5)
            return right(program, *args)

        monkeypatch.setattr(lowering, "lower", lower)

    def test_a_wrong_method_is_named_and_nothing_is_written(
        self, small: Any, wrong: None, tmp_path: Path
    ) -> None:
        small.output.write_bytes(b"the old one")
        with pytest.raises(VerifyError, match=r"f: output 'y' at n=\d is off by \S+ from eager"):
            small.build(cache=tmp_path / "cache")
        assert small.output.read_bytes() == b"the old one"
        assert left_beside(small.output) == ["__pycache__", "model.py", "spec.yaml"] or (
            left_beside(small.output) == ["model.py", "spec.yaml"]
        )

    def test_without_verification_the_program_says_so(
        self, small: Any, wrong: None, tmp_path: Path
    ) -> None:
        report = small.build(cache=tmp_path / "cache", verify=False)
        assert all(method.error is None for method in report.methods)
        manifest = load(small.output).manifest
        assert manifest is not None
        assert [record.verified for record in manifest.methods.values()] == [False, False]
        with pytest.raises(VerifyError, match=r"spec\.yaml:\d+:3: f: "):
            verify(small.output, small.path)

    def test_with_it_the_program_holds_what_was_measured(self, small: Any) -> None:
        report = small.build()
        manifest = load(small.output).manifest
        assert manifest is not None
        for method in report.methods:
            record = manifest.methods[method.signature.method]
            assert record.verified and record.error == method.error
            assert record.error is not None and record.error <= (record.tolerance or 0)

    def test_a_branch_on_a_size_of_one_is_noticed(self, project: Any) -> None:
        # torch.export takes it for granted that a size is not 1.
        project.model(
            "class Model(nn.Module):\n    def forward(self, x):\n"
            "        return x + 1 if x.shape[0] == 1 else x + 2\n"
        ).spec(
            "dims: {n: {min: 1, max: 8}}\n"
            "methods: {f: {module: '.', target: plain, inputs: {x: [n, 3]}}}"
        )
        with pytest.raises(VerifyError, match="f: output 'out' at n=1 is off by"):
            project.build()

    def test_a_branch_on_two_equal_sizes_is_noticed(self, project: Any) -> None:
        project.model(
            "class Model(nn.Module):\n    def forward(self, x, y):\n"
            "        return x.sum() + y.sum() if x.shape == y.shape else x.sum() - y.sum()\n"
        ).spec(
            "dims: {n: {min: 2, max: 20}, m: {min: 9, max: 90}}\n"
            "methods: {f: {module: '.', target: plain, inputs: {x: [n], y: [m]}}}"
        )
        with pytest.raises(VerifyError, match=r"f: output 'out' at n=(\d+), m=\1 is off by"):
            project.build()

    @pytest.mark.parametrize(
        "keeps", ["self.calls = self.calls + 1; return x * self.calls", "return x * self.tick()"]
    )
    def test_what_a_module_keeps_outside_of_buffers_is_noticed(
        self, project: Any, keeps: str
    ) -> None:
        project.model(
            f"""
            class Model(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.calls = 1.0
                def tick(self):
                    self.calls += 1
                    return self.calls
                def forward(self, x):
                    {keeps}
            """
        ).spec("methods: {f: {module: '.', target: plain, inputs: {x: [3]}}}")
        with pytest.raises(VerifyError, match="f: output 'out' is off by"):
            project.build()


class TestOutput:
    """Where the program goes."""

    def test_a_missing_folder_is_told_before_anything_is_done(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="there is no folder"):
            build(SPEC, tmp_path / "nowhere" / "out.pte", cache=tmp_path / "cache")
        assert not (tmp_path / "cache").exists()

    def test_a_folder_is_no_output(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="is a folder, expected the name of a file"):
            build(SPEC, tmp_path, cache=tmp_path / "cache")

    def test_a_folder_without_permission_is_told_before_anything_is_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root
        with pytest.raises(OutputError, match="no permission to write in"):
            build(SPEC, tmp_path / "out.pte", cache=tmp_path / "cache")

    def test_a_folder_that_takes_no_files_is_an_output_error(
        self, build_cache: Path, program: Path
    ) -> None:
        with pytest.raises(OutputError, match=r"^/proc/out\.pte: cannot be written"):
            build(SPEC, "/proc/out.pte", cache=build_cache)

    def test_a_cache_that_cannot_be_used_is_an_output_error(self, tmp_path: Path) -> None:
        (tmp_path / "cache").touch()
        with pytest.raises(OutputError, match=r"the cache .* cannot be used"):
            build(SPEC, tmp_path / "out.pte", cache=tmp_path / "cache")

    def test_it_is_named_after_the_spec_and_goes_to_the_working_directory(
        self, program: Path, build_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert build(SPEC, cache=build_cache).output == Path("nested_matmul.pte")
        assert (tmp_path / "nested_matmul.pte").read_bytes() == program.read_bytes()


@pytest.mark.parametrize("late", [False, True], ids=["by its file", "by its namespace"])
def test_an_operator_of_another_library_is_known_to_the_worker(project: Any, late: bool) -> None:
    """late: imported where it is called, so that importing the file does not register it."""
    registering = "import executorch.extension.llm.custom_ops.custom_ops"
    project.model(
        f"""
        {"pass" if late else registering}
        class Model(nn.Module):
            def forward(self, q, k, v):
                {registering if late else "pass"}
                return torch.ops.llama.custom_sdpa(q, k, v, 0, None, 0.0, True)
        """
    ).spec(
        "methods: {f: {module: '.', target: plain, "
        "inputs: {q: [1, 4, 2, 8], k: [1, 8, 2, 8], v: [1, 8, 2, 8]}}}"
    )
    (method,) = project.build(workers=True).methods
    assert method.error is not None and method.error < 1e-5


def test_what_is_built_is_what_the_model_has_now(project: Any) -> None:
    project.spec("methods: {f: {module: '.', target: plain, inputs: {input: [2]}}}")
    for value in (1.0, 2.0):
        project.file(
            "model.py",
            "import torch\nfrom torch import nn\n"
            f"def make():\n    m = nn.Linear(2, 1)\n    nn.init.constant_(m.weight, {value})\n"
            "    nn.init.zeros_(m.bias)\n    return m\n",
        )
        (out,) = project.program().run_method("f", torch.ones(2))
        assert out.item() == 2 * value


STALE = """
import json, pathlib
from types import SimpleNamespace
CONFIG = SimpleNamespace(**json.loads(pathlib.Path(__file__).with_name("config.json").read_text()))
class Model(nn.Module):
    def forward(self, x):
        return x * CONFIG.scale
"""
STALE_SPEC = 'methods: {f: {module: ".", target: plain, inputs: {x: [3]}, outputs: y}}\n'


@pytest.mark.parametrize("verify", [True, False])
def test_what_the_cache_cannot_tell_apart_is_compiled_again(project: Any, verify: bool) -> None:
    """A value that came from a file while the model was imported: no fingerprint sees it."""
    project.model(STALE).spec(STALE_SPEC)
    project.file("config.json", '{"scale": 2.0}')
    project.build(verify=verify)
    project.file("config.json", '{"scale": 3.0}')
    project.model(STALE + "\n")
    # The cached module of the model's file is that of its content: another process reads it anew.
    for name in [name for name in sys.modules if name.startswith("_mmpack_")]:
        del sys.modules[name]
    project.build(verify=verify)
    x = torch.ones(3)
    assert torch.equal(load(project.output).run_method("f", x).y, 3 * x)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("methods: {f: {module: '.', target: cpu, inputs: {x: [3}}}", "SpecError"),
        ("methods: {f: {module: '.', target: gpu, inputs: {x: [3]}}}", "SpecError"),
        ("methods: {f: {module: '.', target: cpu, inputs: {x: [many]}}}", "SpecError"),
    ],
)
def test_what_is_wrong_with_a_spec_is_told_without_torch(
    project: Project, tmp_path: Path, mistake: str, error: str
) -> None:
    project.spec(mistake)
    code = (
        "import sys\nfrom mmpack.multimethod import build\n"
        f"from mmpack.multimethod.errors import {error}\n"
        f"try:\n    build(sys.argv[1], sys.argv[2])\nexcept {error}:\n"
        "    sys.exit('torch' in sys.modules)\nelse:\n    sys.exit(2)"
    )
    command = [sys.executable, "-c", code, str(project.path), str(tmp_path / "out.pte")]
    assert subprocess.run(command, check=False).returncode == 0
