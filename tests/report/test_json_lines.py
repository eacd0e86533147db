"""The progress of a build, a JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from mmpack.cli import main


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
