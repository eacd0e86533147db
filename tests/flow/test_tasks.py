"""Which tasks wait for which, by hand."""

from __future__ import annotations

from mmpack.multimethod.flow.tasks import Tasks, make_pieces, make_tasks, shown
from mmpack.multimethod.signature import Dim

from .works import CHUNK, decoder


def tasks_of(rows: int, begin: int = 0, kv: Dim | None = None, **kwargs: object) -> Tasks:
    plan = decoder(2, kv, **kwargs)  # type: ignore[arg-type]
    return make_tasks(plan, make_pieces(plan, begin, rows))


def named(tasks: Tasks) -> dict[str, set[str]]:
    """Task -> those that it waits for, as method@piece."""

    def name(task: int) -> str:
        return f"{tasks.method(task)}@{tasks.at(task)[1].number}"

    return {name(task): {name(b) for b in needed} for task, needed in enumerate(tasks.before)}


def test_a_task_waits_for_its_values_and_for_all_that_its_cache_holds() -> None:
    assert named(tasks_of(2 * CHUNK)) == {
        "qkv.0@0": set(),
        "attention.0@0": {"qkv.0@0"},
        "mlp.0@0": {"attention.0@0"},
        "qkv.1@0": {"mlp.0@0"},
        "attention.1@0": {"qkv.1@0"},
        "mlp.1@0": {"mlp.0@0", "attention.1@0"},
        "qkv.0@1": set(),
        "attention.0@1": {"qkv.0@0", "qkv.0@1"},
        "mlp.0@1": {"attention.0@1"},
        "qkv.1@1": {"mlp.0@1"},
        "attention.1@1": {"qkv.1@0", "qkv.1@1"},
        "mlp.1@1": {"mlp.0@1", "attention.1@1"},
    }


def test_pieces_are_cut_from_where_the_conversation_stands() -> None:
    plan = decoder(1)
    pieces = make_pieces(plan, 3, 9)
    assert [str(piece) for piece in pieces] == [
        "piece 0 (rows 3 to 6)",
        "piece 1 (rows 7 to 10)",
        "piece 2 (rows 11 to 11)",
    ]
    assert [len(make_pieces(plan, 0, rows)) for rows in (1, 3, 4, 5)] == [1, 1, 1, 2]


def test_an_append_waits_for_readers_that_are_shown_its_rows_as_zeros() -> None:
    free = named(tasks_of(3 * CHUNK))
    assert free["qkv.0@1"] == free["qkv.0@2"] == set()

    least = named(tasks_of(3 * CHUNK, kv=Dim("kv", 2 * CHUNK, 64, CHUNK)))
    assert least["qkv.0@1"] == {"attention.0@0"}  # shown 8 rows of which it has 4
    assert least["qkv.0@2"] == set()

    coarse = named(tasks_of(4 * CHUNK, kv=Dim("kv", 8, 64, 8)))
    assert coarse["qkv.0@1"] == {"attention.0@0"}
    assert coarse["qkv.0@2"] == set()
    assert coarse["qkv.0@3"] == {"attention.0@2"}

    shifted = named(tasks_of(3 * CHUNK, begin=1))  # each piece ends between two steps
    assert shifted["qkv.0@1"] == {"attention.0@0"}
    assert shifted["qkv.0@2"] == {"attention.0@1"}
    assert shifted["qkv.1@2"] == {"mlp.0@2", "attention.1@1"}


def test_a_short_last_piece_overwrites_what_a_full_one_would() -> None:
    tasks = named(tasks_of(CHUNK + 1, kv=Dim("kv", 8, 64, 8)))
    assert tasks["qkv.0@1"] == {"attention.0@0"}


def test_a_reader_is_shown_what_its_dim_admits() -> None:
    kv = decoder(1, Dim("kv", 8, 64, 4)).caches["k.0"]
    assert [shown(kv, length) for length in (1, 8, 9, 12, 13)] == [8, 8, 12, 12, 16]


def test_calls_that_reach_one_buffer_keep_their_order() -> None:
    state = {
        "counts": ("qkv.0", "qkv.1", "of another flow"),
        "mean of mlp.1": ("mlp.1",),
    }
    tasks = named(tasks_of(2 * CHUNK, state=state))
    assert tasks["qkv.1@0"] == {"mlp.0@0", "qkv.0@0"}
    assert tasks["qkv.0@1"] == {"qkv.1@0"}
    assert tasks["qkv.1@1"] == {"mlp.0@1", "qkv.0@1"}
    assert tasks["mlp.1@1"] == {"mlp.0@1", "attention.1@1", "mlp.1@0"}
    assert tasks["mlp.0@1"] == {"attention.0@1"}


def test_one_method_in_several_steps_is_several_tasks() -> None:
    tasks = tasks_of(CHUNK, shared_attention=True)
    assert [tasks.method(task) for task in range(len(tasks))].count("attention") == 2


def test_inputs_and_outputs_are_what_was_given_last_under_a_name() -> None:
    tasks = tasks_of(CHUNK)
    sources = [{name: (s.kind, s.name, s.step) for name, s in step} for step in tasks.inputs]
    assert sources[0] == {"x": ("cut", "x", -1)}
    assert sources[1]["k"] == ("cache", "k.0", -1)
    assert sources[1]["positions"] == ("positions", "", -1)
    assert sources[2] == {"x": ("cut", "x", -1), "mixed": ("value", "y", 1)}
    assert sources[3] == {"x": ("value", "x", 2)}
    assert tasks.outputs == {"x": (5, "x")}
