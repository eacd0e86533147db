"""The command `mmpack`: parse, make one library call, print.

torch is imported by the commands that need it, so `--help`, `check`, `inspect` and `link` answer
at once.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import click

from mmpack.multimethod import option_text
from mmpack.multimethod.errors import MmpackError, OutputError, counted
from mmpack.multimethod.memory import collect_seldom
from mmpack.multimethod.report.quiet import quiet_libraries

SPEC = click.argument("spec", type=click.Path(dir_okay=False, path_type=Path))
PROGRAM = click.argument("program", type=click.Path(dir_okay=False, path_type=Path))
CACHE = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of compiled methods. Default: $MMPACK_CACHE, or mmpack in the user's cache.",
)
JOBS = click.option(
    "--jobs",
    "-j",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Methods compiled at once, each in its own process.",
)
MEMORY = click.option(
    "--memory",
    metavar="SIZE",
    help="What compiling may take in all, such as 8G: a method begins if it is expected to fit.",
)
THREADS = click.option(
    "--threads",
    metavar="1|LANE=1,…",
    help="Run methods, or those of a lane, in the thread that calls. Default: a pool for all.",
)
DATA = click.option(
    "--data",
    metavar="FILE.ptd",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the program's weights are, if they are in a file that is not beside it, or that "
    "only ExecuTorch knows of.",
)
LANES = click.option(
    "--lanes", metavar="NAME=N,…", help="Workers of lanes, as in npu=1,cpu=2. Default: 1 each."
)


class _Group(click.Group):
    """Prints what mmpack raises on purpose as a message; each error owns its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        quiet_libraries()
        collect_seldom()
        try:
            return super().invoke(ctx)
        except MmpackError as error:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # click knows what to do with a closed pipe
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(f"what this command prints cannot be written: {error.strerror}", err=True)
            ctx.exit(OutputError.exit_code)
        except ImportError as error:  # a torch of the wrong version, a package that is missing
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(f"{error} (`mmpack doctor` lists what is installed)", err=True)
            ctx.exit(MmpackError.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mmpack")
def main() -> None:
    """Cut a PyTorch model into methods, each with its own shapes and backend, in one .pte."""


@main.command()
@click.option(
    "--hf",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="A Hugging Face folder on this machine, or a config.json alone (random weights).",
)
@click.option("--chunk", type=int, default=64, show_default=True, help="Tokens of a prompt read at "
              "once; 1 reads it token by token.")  # fmt: skip
@click.option("--context", type=int, default=1024, show_default=True, help="Tokens of prompt and "
              "answer together.")  # fmt: skip
@click.option(
    "--split",
    type=click.Choice(["qkv/attention/mlp", "block", "whole"]),
    default="qkv/attention/mlp",
    show_default=True,
    help="What is a method: three parts of each layer, a layer, or the model.",
)
@click.option(
    "--cache",
    type=click.Choice(["dynamic", "fixed"]),
    help="Keys and values: growing with the text, in the caller's memory; or as long as the "
    "context, in the program. Default: dynamic where attention is a method of its own.",
)
@click.option("--npu", metavar="BACKEND[:OPTION]...", help="Where static methods go, as in "
              "qnn:SM8750:16a4w. Default: to the CPU.")  # fmt: skip
@click.option("--cpu", metavar="BACKEND[:OPTION]...", default="xnnpack", show_default=True,
              help="Where the others go, as in xnnpack:8da4w.")  # fmt: skip
@click.option("--embedding", metavar="PRECISION", help="8w or 4w: bits of the embedding's table.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the spec goes.",
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
def init(
    source: Path,
    chunk: int,
    context: int,
    split: Any,
    cache: Any,
    npu: str | None,
    cpu: str,
    embedding: str | None,
    output: Path,
    force: bool,
) -> None:
    """Write the spec of a language model: cut, its shapes, targets, caches and flows."""
    from mmpack.multimethod.init import Choices, init, target

    choices = Choices(
        chunk=chunk,
        context=context,
        split=split,
        cache=cache,
        npu=None if npu is None else target(npu, "--npu"),
        cpu=target(cpu, "--cpu"),
        embedding=embedding,
    )
    written = init(source, output, choices, overwrite=force)
    click.echo(f"wrote {', '.join(map(str, written))}; next: mmpack build {quote(str(output))}")


@main.command()
@SPEC
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the program goes. Default: the spec's name with .pte, here.",
)
@JOBS
@click.option("--cluster", metavar="ADDRESS", help="A Dask scheduler, as in tcp://host:8786, whose "
              "workers compile in place of --jobs.")  # fmt: skip
@CACHE
@click.option(
    "--no-verify",
    is_flag=True,
    help="Do not compare with eager PyTorch, nor take compiled methods from the cache, which only "
    "that can vouch for. The program's manifest will say so.",
)
@MEMORY
@click.option(
    "--why",
    multiple=True,
    metavar="METHOD",
    help="Say, before anything is compiled, why METHOD is, or that it is in the cache.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but what is wrong.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: a JSON object a line, for programs that watch.",
)
def build(
    spec: Path,
    output: Path | None,
    jobs: int,
    cluster: str | None,
    cache: Path | None,
    no_verify: bool,
    memory: str | None,
    why: Sequence[str],
    quiet: bool,
    log_format: str,
) -> None:
    """Build the program that SPEC describes."""
    from mmpack.multimethod.driver.build import build
    from mmpack.multimethod.report.display import Display
    from mmpack.multimethod.report.json_lines import JsonLines
    from mmpack.multimethod.report.tables import build_summary, build_table, terminal

    if quiet and why:
        raise click.UsageError("--why says something, and --quiet nothing")
    room = option_text.byte_count(memory) if memory is not None else None
    made = partial(
        build,
        spec,
        output,
        jobs=jobs,
        verify=not no_verify,
        cache=cache,
        memory=room,
        why=why,
        cluster=cluster,
    )
    if quiet:
        made()
        return
    if log_format == "json":
        lines = JsonLines(click.echo)
        lines.built(made(progress=lines))
        return
    console = terminal()
    with Display(console) as display:
        report = made(progress=display)
    console.print(build_table(report))
    click.echo(build_summary(report))


@main.command()
@SPEC
@click.option("--model", is_flag=True, help="Also check what needs the model. Imports torch.")
def check(spec: Path, model: bool) -> None:
    """Check SPEC, and report every mistake with its line."""
    from mmpack.multimethod.check import check

    found = check(spec, model=model)
    depth = "the spec and its model are right" if model else "the spec is right"
    methods, flows = counted(len(found.methods), "method"), counted(len(found.steps), "flow")
    click.echo(f"{spec}: {methods}, {flows}; {depth}")


@main.command()
@PROGRAM
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(program: Path, as_json: bool) -> None:
    """Show what is in PROGRAM, any ExecuTorch program, without running it."""
    from mmpack.multimethod.report.inspection import inspect

    seen = inspect(program)
    click.echo(json.dumps(seen.as_dict(), indent=2) if as_json else str(seen))


@main.command()
@PROGRAM
@click.argument("method")
@click.argument("inputs", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=SIZE",
    help="Size of a dynamic dim, for random inputs.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the outputs to a .safetensors file.",
)
@DATA
def run(
    program: Path,
    method: str,
    inputs: Sequence[str],
    dims: Sequence[str],
    output: Path | None,
    data: Path | None,
) -> None:
    """Run METHOD of PROGRAM once.

    A VALUE is a .npy file, FILE.safetensors[KEY], `random`, or a literal such as [[1, 2]].
    """
    from mmpack.multimethod.driver.call import call_method

    click.echo(call_method(program, method, inputs, option_text.sizes(dims), output, data))


@main.command()
@PROGRAM
@click.option(
    "--prompt", metavar="TEXT", help="What the text begins with; `-` reads it from stdin."
)
@click.option("--tokens", metavar="N,N,…", help="Numbers of tokens, in place of a text.")
@click.option("--chat", is_flag=True, help="The prompt is what a user says to the model.")
@click.option("--system", metavar="TEXT", help="What a chat begins with.")
@click.option("--max-tokens", type=int, metavar="N", help="Default: until the text ends.")
@click.option("--temperature", type=float, help="Draw tokens. Default: take the likeliest.")
@click.option("--top-k", type=int, metavar="K", help="Draw from the K likeliest.")
@click.option(
    "--top-p", type=float, metavar="P", help="Draw from the likeliest with probability P."
)
@click.option("--seed", type=int, help="Draw the same tokens each time.")
@click.option(
    "--tokenizer",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with a tokenizer.json. Default: the program's own files.",
)
@click.option("--schedule", type=click.Choice(["serial", "in-order", "out-of-order"]),
              default="serial", show_default=True, help="How the prompt is read.")  # fmt: skip
@LANES
@THREADS
@DATA
def generate(
    program: Path,
    prompt: str | None,
    tokens: str | None,
    chat: bool,
    system: str | None,
    tokenizer: Path | None,
    lanes: str | None,
    threads: str | None,
    **options: Any,
) -> None:
    """Have PROGRAM, a language model, go on with a text.

    Prints text as it is made, and at the end, on stderr, how fast that was.
    """
    from mmpack.multimethod.generate.text import continue_text, continue_tokens

    if (prompt is None) == (tokens is None):
        raise click.UsageError("expected one of --prompt and --tokens")
    if (system is not None and not chat) or (chat and tokens is not None):
        raise click.UsageError("--system goes with --chat, and --chat with --prompt")
    options |= {"lanes": option_text.lanes(lanes), "threads": option_text.threads(threads)}
    if tokens is not None:
        text = continue_tokens(program, option_text.numbers(tokens), tokenizer=tokenizer, **options)
    else:
        said = sys.stdin.read() if prompt == "-" else prompt or ""
        text = continue_text(
            program, said, chat=chat, system=system, tokenizer=tokenizer, **options
        )
    interrupted = False
    try:
        for piece in text:
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        interrupted = True
    click.echo()
    click.echo(str(text.statistics) + ("; interrupted" if interrupted else ""), err=True)
    sys.exit(1 if interrupted else 0)


@main.command()
@PROGRAM
@click.argument("flow", required=False)
@click.option("--pieces", type=click.IntRange(min=1), help="Pieces that the input is cut in. "
              "Default: 8, or as many as there is room for.")  # fmt: skip
@LANES
@click.option(
    "--times",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON: what calls take, {method: seconds}, as `mmpack trace --times` writes it.",
)
@click.option("--ratio", metavar="N:M", help="Work of the lanes, in the order of --lanes or with "
              "the CPU last, in place of times.")  # fmt: skip
def schedule(
    program: Path,
    flow: str | None,
    pieces: int | None,
    lanes: str | None,
    times: Path | None,
    ratio: str | None,
) -> None:
    """Simulate FLOW of PROGRAM as a pipeline, under each policy.

    Without FLOW, the one whose pieces have most rows; without times, all calls take as long.
    """
    from mmpack.multimethod.driver.pipeline import compare_schedules
    from mmpack.multimethod.report.pipelines import (
        comparison_choice,
        comparison_table,
        comparison_title,
    )
    from mmpack.multimethod.report.tables import terminal

    if times is not None and ratio is not None:
        raise click.UsageError("expected one of --times and --ratio")
    found = compare_schedules(
        program,
        flow,
        pieces=pieces,
        lanes=option_text.lanes(lanes),
        times=times,
        ratio=option_text.ratio(ratio),
    )
    click.echo(comparison_title(found))
    terminal().print(comparison_table(found))
    click.echo(comparison_choice(found))


@main.command()
@PROGRAM
@click.argument("flow")
@click.option("--rows", type=click.IntRange(min=1), required=True, help="Rows of random input.")
@click.option("--schedule", type=click.Choice(["serial", "in-order", "out-of-order"]),
              default="out-of-order", show_default=True, help="How calls are ordered.")  # fmt: skip
@LANES
@THREADS
@DATA
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a trace for Perfetto or chrome://tracing (JSON).")  # fmt: skip
@click.option("--gantt", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a picture (SVG).")  # fmt: skip
@click.option("--times", type=click.Path(dir_okay=False, path_type=Path),
              help="Write what the calls took (JSON), for `mmpack schedule`.")  # fmt: skip
def trace(
    program: Path,
    flow: str,
    rows: int,
    schedule: Any,
    lanes: str | None,
    threads: str | None,
    data: Path | None,
    output: Path | None,
    gantt: Path | None,
    times: Path | None,
) -> None:
    """Run FLOW of PROGRAM on random input, and show what ran when.

    It runs twice: the second run, with all methods loaded, is the one that is shown.
    """
    from mmpack.multimethod.driver.pipeline import trace_flow
    from mmpack.multimethod.outputs import refuse_overwriting
    from mmpack.multimethod.report.pipelines import traced_summary
    from mmpack.multimethod.report.trace_files import write_traced

    for path in (output, gantt, times):
        if path is not None:
            refuse_overwriting(path, [program] if data is None else [program, data])
    traced = trace_flow(
        program,
        flow,
        rows,
        schedule=schedule,
        lanes=option_text.lanes(lanes),
        threads=option_text.threads(threads),
        data=data,
    )
    write_traced(traced, output, gantt, times)
    click.echo(traced_summary(traced))


@main.command()
@PROGRAM
@SPEC
@DATA
def verify(program: Path, spec: Path, data: Path | None) -> None:
    """Compare every method and flow of PROGRAM with SPEC's model in eager PyTorch."""
    from mmpack.multimethod.report.display import Display
    from mmpack.multimethod.report.tables import checked_table, terminal
    from mmpack.multimethod.verify.program import verify

    console = terminal()
    with Display(console) as display:
        verified = verify(program, spec, data=data, progress=display)
    console.print(checked_table(verified))


@main.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--rename", multiple=True, metavar="[FILE:]OLD=NEW", help="Rename a method.")
@click.option(
    "--share",
    multiple=True,
    metavar="PATTERN",
    help="Make state buffers of this name, in several files, one memory.",
)
@click.option(
    "--private",
    multiple=True,
    metavar="PATTERN",
    help="Keep state buffers of this name, in several files, apart.",
)
@click.option(
    "--data",
    metavar="NAME.ptd",
    help="Put weights into this file beside OUTPUT; what it holds already stays.",
)
def link(
    inputs: Sequence[Path],
    output: Path,
    rename: Sequence[str],
    share: Sequence[str],
    private: Sequence[str],
    data: str | None,
) -> None:
    """Link any ExecuTorch programs into one.

    A state buffer that several files have must be in --share or --private; `*` and `?` in a
    PATTERN match as in a shell.
    """
    from mmpack.multimethod.link import link
    from mmpack.multimethod.report.tables import beside, size

    names = option_text.pairs(rename, "OLD=NEW")
    report = link(inputs, output, rename=names, shared=share, private=private, data=data)
    click.echo(
        f"{output}: {counted(len(report.manifest.methods), 'method')}, {size(report.size)}, "
        f"{size(report.saved)} saved by sharing{beside(report)}"
    )


@main.group()
def cache() -> None:
    """Compiled methods that builds take again: what is there, and make it less."""


@cache.command("list")
@CACHE
def list_cache(cache: Path | None) -> None:
    """Show the compiled methods of the cache, what was used last first."""
    from mmpack.multimethod.compile.stored import stored
    from mmpack.multimethod.report.stored import stored_summary, stored_table
    from mmpack.multimethod.report.tables import terminal

    found = stored(cache)
    terminal().print(stored_table(found))
    click.echo(stored_summary(found))


@cache.command("prune")
@CACHE
@click.option(
    "--max-size", required=True, metavar="SIZE", help="What may stay: 500M, 2G, or bytes."
)
def prune_cache(cache: Path | None, max_size: str) -> None:
    """Remove what was not used for longest, until the cache is no larger than --max-size."""
    from mmpack.multimethod.compile.stored import prune
    from mmpack.multimethod.report.stored import pruned_summary

    click.echo(pruned_summary(prune(option_text.byte_count(max_size), cache)))


@main.command()
@click.option(
    "--build-engine",
    is_flag=True,
    help="Compile the native engine first, which otherwise its first use does, about 15 s.",
)
def doctor(build_engine: bool) -> None:
    """Show what this machine can build and run, and what would change a "no".

    Exits with 1 if a package is missing or of a wrong version, or a backend that is here fails.
    """
    from rich.console import Console

    from mmpack.multimethod.report.doctor import diagnose

    if build_engine:
        from mmpack.multimethod.runtime.engines import choose

        choose("native")
    with Console(stderr=True).status("trying what is here, some ten seconds"):
        found = diagnose()
    click.echo(str(found))
    sys.exit(0 if found.healthy else 1)


@main.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("adder.pte"),
    show_default=True,
)
@JOBS
@CACHE
@click.argument("sum_", metavar="[SUM]", default="123+989")
def demo(output: Path, jobs: int, cache: Path | None, sum_: str) -> None:
    """Build the packaged example, a small trained decoder, and have it add two numbers."""
    from mmpack.examples.adder.demo import demo

    demo(sum_, output, jobs=jobs, cache=cache)


if __name__ == "__main__":
    main()
