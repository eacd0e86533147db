"""The progress of a build, a JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from mmpack.cli import main
from mmpack.multimethod.progress import Status
from mmpack.multimethod.report.json_lines import JsonLines


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_build_is_a_line_for_each_event(toy_spec: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.pte"
    args = ["build", str(toy_spec), "-o", str(output), "--cache", str(tmp_path / "cache")]
    for cached in (False, True):
        result = CliRunner().invoke(main, [*args, "--log-format", "json"])
        assert result.exit_code == 0, result.output
        *told, built = events(result.output)
        stages = [event["stage"] for event in told if event["event"] == "stage"]
        assert stages == ["export", "compile", "link", "verify", "link"]
        compiled = [e for e in told if e["stage"] == "compile" and e["event"] == "done"]
        assert [e["count"] for e in compiled] == list(range(1, len(compiled) + 1))
        for event in compiled:
            assert (event.get("note") == "cached") is cached
            assert ("seconds" in event) is not cached
        statuses = [e["status"] for e in told if e["stage"] == "compile" and "status" in e]
        assert len(statuses) == len(compiled) * (1 if cached else 2)
        for status in statuses:
            counts = [status[name] for name in ("done", "running", "queued", "cached")]
            assert sum(counts) == len(compiled)
            assert status["peak"] >= status["memory"] > 10**8
        assert statuses[-1]["cached" if cached else "done"] == len(compiled)
        assert (built["memory"]["together"] > 10**8) is not cached
        assert not any("status" in e for e in told if e["stage"] != "compile")
        begun = [e["method"] for e in told if e["stage"] == "compile" and e["event"] == "start"]
        assert begun == ([] if cached else [event["method"] for event in compiled])
        assert built["event"] == "built" and built["output"] == str(output)
        assert built["size"] == output.stat().st_size
        assert {m["method"] for m in built["methods"]} == {e["method"] for e in compiled}
        assert all(m["cached"] is cached and m["error"] < 1e-4 for m in built["methods"])
        assert built["compiled"] == (0 if cached else len(compiled))
        assert set(built["seconds"]) >= {"model", "export", "compile", "link", "verify"}
        assert built["memory"]["here"] > 10**8
        assert (built["memory"]["worker"] > 10**8) is not cached


def test_reasons_are_an_event(toy_spec: Path, toy: Path, build_cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.pte"
    args = ["build", str(toy_spec), "-o", str(output), "--cache", str(build_cache)]
    args += ["--why", "blend", "--log-format", "json"]
    told = events(CliRunner().invoke(main, args).output)
    expected = {"event": "why", "stage": "compile", "method": "blend"}
    (found,) = [event for event in told if event["event"] == "why"]
    assert found == {**expected, "cached": True, "reasons": []}


def test_time_left_is_a_number_of_seconds_or_none() -> None:
    told: list[str] = []
    lines = JsonLines(told.append)
    lines.stage("compile", 3)
    for left in (None, 7.26):
        lines.status(Status(0, 1, 2, 0, left, 5, 6))
        lines.start("a")
    (_, first, second) = [json.loads(line) for line in told]
    assert first["status"]["seconds_left"] is None and second["status"]["seconds_left"] == 7.3


def test_quiet_prints_nothing(toy_spec: Path, toy: Path, build_cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.pte"
    args = ["build", str(toy_spec), "-o", str(output), "--cache", str(build_cache), "--quiet"]
    result = CliRunner().invoke(main, args)
    assert (result.exit_code, result.output) == (0, "")
    assert output.is_file()


def test_what_is_wrong_is_told_all_the_same(tmp_path: Path) -> None:
    for more in (["--quiet"], ["--log-format", "json"]):
        result = CliRunner().invoke(main, ["build", str(tmp_path / "none.yaml"), *more])
        assert result.exit_code == 2 and result.stdout == ""
        assert "no such file" in result.stderr
