"""Plain data -> records, and back. Every wrong value is found, not only the first.

cattrs walks the records of `records.py`. Its own conversions are too kind for a spec (to it, "3"
is an int and 3.7 is one too), so each scalar has a strict hook (`strict.py`), and what may be
written in a short form is made long first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from mmpack.multimethod.signature import Dim
from mmpack.multimethod.spec.mistakes import Finding
from mmpack.multimethod.spec.records import (
    Cycle,
    Each,
    FlowSpec,
    InputSpec,
    MethodSpec,
    Spec,
    StepSpec,
    TargetSpec,
)
from mmpack.multimethod.spec.scalars import trap, words
from mmpack.multimethod.spec.strict import (
    SCALARS,
    integer_range,
    is_scalar_union,
    is_switch,
    literal,
    scalar,
    scalar_union,
)
from mmpack.multimethod.spec.wrong import Wrong, each_item, problems

T = TypeVar("T")

MANY = 4096
"""`each` may not make more methods, or steps, than this."""


def structure(data: object, cls: type[T]) -> tuple[T | None, list[Finding]]:
    """A record made of plain data; or None, and everything that is wrong with the data."""
    try:
        return _converter.structure(data, cls), []
    except Exception as error:
        return None, list(problems(error))


def unstructure(record: Any) -> Any:
    """Plain data that `structure` makes an equal record of; defaults are left out."""
    return _listed(_converter.unstructure(record))


def _sequence(value: Any, kind: Any) -> Any:
    item = get_args(kind)[0]
    if item is str and type(value) is str:  # `outputs: hidden` for a list of one
        value = [value]
    if not isinstance(value, list | tuple):
        raise Wrong(f"expected a list, got {words(value)}")
    made = each_item(enumerate(value), lambda _, v: _converter.structure(v, item))
    return get_origin(kind)(made.values())


def _dict(value: Any, kind: Any) -> Any:
    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping, got {words(value)}")
    key_type, item = get_args(kind)

    def one(key: Any, entry: Any) -> Any:
        if type(key) is not key_type:
            wanted = "a name" if key_type is str else SCALARS[key_type]
            raise Wrong(f"expected {wanted} as the key, got {words(key)}", at_key=True)
        return _converter.structure(entry, item)

    return each_item(value.items(), one)


def _shape(value: Any, _: Any) -> tuple[int | str, ...]:
    def size(_: Any, entry: Any) -> Any:
        if type(entry) not in (int, str):
            raise Wrong(f"expected a size or the name of a dim, got {words(entry)}")
        return entry

    if not isinstance(value, list | tuple):
        raise Wrong(f"expected a shape like [1, 64], got {words(value)}")
    return tuple(each_item(enumerate(value), size).values())


def _each(value: Any, _: Any) -> Each:
    def values(name: Any, given: Any) -> tuple[int | str, ...]:
        if not (isinstance(name, str) and name.isidentifier()):
            raise Wrong(f"expected a symbol like i, got {words(name)}", at_key=True)
        if isinstance(given, Mapping):
            return Cycle(_converter.structure(given, _Cycle).cycle)
        return _several(given)

    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping like {{i: 0..3}}, got {words(value)}")
    made = each_item(value.items(), values)
    if made and isinstance(next(iter(made.values())), Cycle):
        raise Wrong("a cycle goes along with the symbol before it, and this one is the first")
    return made


@attrs.frozen
class _Cycle:
    """A cycle as it is written."""

    cycle: tuple[int | str, ...]


def _plain_each(each: Each) -> dict[str, Any]:
    return {s: {"cycle": [*v]} if isinstance(v, Cycle) else [*v] for s, v in each.items()}


def _several(given: Any, _: Any = None) -> tuple[int | str, ...]:
    """The values of a symbol: a range of integers, or a list, or one."""
    if isinstance(given, str) and ".." in given:
        ends = integer_range(given, None) or (0, -1)
        if not 0 <= ends[1] - ends[0] < MANY:
            raise Wrong(f"expected 1 to {MANY} values, got {max(0, ends[1] - ends[0] + 1)}")
        return tuple(range(ends[0], ends[1] + 1))
    given = [given] if type(given) in (int, str) else given
    if not isinstance(given, list | tuple) or not given:
        raise Wrong(f"expected a range like 0..3, or a list of values; got {words(given)}")
    union: Any = int | str
    return tuple(each_item(enumerate(given), lambda _, v: scalar_union(v, union)).values())


def _inputs(value: Any, _: Any) -> dict[str, InputSpec] | str:
    if value == "captured":
        return "captured"
    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping of inputs, or captured; got {words(value)}")
    inputs: dict[str, InputSpec] = _dict(value, dict[str, InputSpec])
    return inputs


def _sample(value: Any, _: Any) -> dict[str, InputSpec] | str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise Wrong(f"expected file.py:callable or a mapping of inputs, got {words(value)}")
    sample: dict[str, InputSpec] = _dict(value, dict[str, InputSpec])
    return sample


def _dims(value: Any, _: Any) -> dict[str, Dim]:
    def dim(name: Any, entry: Any) -> Dim:
        if not isinstance(name, str):
            raise Wrong(f"expected a name as the key, got {words(name)}", at_key=True)
        if type(entry) is int:
            return Dim(name, entry, entry)
        if not isinstance(entry, Mapping):
            raise Wrong(f"expected a size, or {{min, max, step}}; got {words(entry)}")
        bounds = _converter.structure(entry, _Bounds)
        return Dim(name, bounds.min, bounds.max, bounds.step)

    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping, got {words(value)}")
    return each_item(value.items(), dim)


@attrs.frozen
class _Bounds:
    """A dim as it is written; its name is the key."""

    min: int
    max: int
    step: int = 1


def _switch(value: Any, kind: Any) -> Any:
    record = get_args(kind)[1]
    if type(value) is bool:
        return value
    if not isinstance(value, Mapping):
        known = ", ".join(a.name for a in attrs.fields(record))
        hint = trap(value)
        raise Wrong(f"expected true, false or a mapping of {known}; got {words(value)}{hint}")
    return _converter.structure(value, record)


_Hook = Callable[[Any, Any], Any]


def _lengthen(cls: type, value: Any) -> Any:
    """The long form of what may be written shorter."""
    if cls is InputSpec and isinstance(value, list | tuple):
        return {"shape": value}
    if cls is StepSpec and isinstance(value, str):
        return {"run": value}
    if cls is TargetSpec and isinstance(value, Mapping):
        own = ("backend", "lane")
        options = {key: entry for key, entry in value.items() if key not in own}
        return {**{k: v for k, v in value.items() if k in own}, "options": options}
    return value


def _record_hook(cls: Any, converter: Converter) -> _Hook:
    overrides: dict[str, Any] = {
        name: override(struct_hook=hook) for name, hook in _FIELDS.get(cls, {}).items()
    }
    plain: Any = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, **overrides, **_renames(cls)
    )

    def hook(value: Any, _: Any) -> Any:
        value = _lengthen(cls, value)
        if not isinstance(value, Mapping):
            known = ", ".join(a.name.rstrip("_") for a in attrs.fields(cls))
            wanted = _EXAMPLES.get(cls, f"a mapping of {known}")
            raise Wrong(f"expected {wanted}; got {words(value)}")
        return plain(value, cls)

    return hook


def _renames(cls: Any) -> dict[str, Any]:
    """`with_` is `with` in YAML: a field cannot be called that in Python."""
    names = [field.name for field in attrs.fields(cls)]
    return {name: override(rename=name[:-1]) for name in names if name.endswith("_")}


def _plain_hook(cls: Any, converter: Converter) -> Callable[[Any], Any]:
    fields: Any = _renames(cls)
    if "each" in attrs.fields_dict(cls):
        fields["each"] = override(unstruct_hook=_plain_each)
    return make_dict_unstructure_fn(cls, converter, _cattrs_omit_if_default=True, **fields)


def _origin_is(*origins: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) in origins


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(entry) for key, entry in value.items()}
    return [_listed(entry) for entry in value] if isinstance(value, list | tuple) else value


_FIELDS: dict[type, dict[str, _Hook]] = {
    InputSpec: {"shape": _shape, "range": integer_range},
    _Cycle: {"cycle": _several},
    MethodSpec: {"each": _each, "inputs": _inputs},
    StepSpec: {"each": _each},
    FlowSpec: {"each": _each},
    Spec: {"dims": _dims, "sample": _sample},
}

_EXAMPLES: dict[type, str] = {
    InputSpec: "a shape like [1, 64], or a mapping of shape, dtype, range",
    TargetSpec: "a mapping like {backend: xnnpack}, with the backend's options beside it",
}

_converter = Converter(detailed_validation=True)
for _kind in (int, float, str, bool):
    _converter.register_structure_hook(_kind, scalar)
for _predicate, _hook in (
    (_origin_is(tuple, list), _sequence),
    (_origin_is(dict, Mapping), _dict),
    (_origin_is(Literal), literal),
    (is_scalar_union, scalar_union),
    (is_switch, _switch),
):
    _converter.register_structure_hook_func(_predicate, _hook)
_converter.register_structure_hook_factory(attrs.has, _record_hook)
_converter.register_unstructure_hook_factory(attrs.has, _plain_hook)
_converter.register_unstructure_hook(
    TargetSpec,
    lambda target: {
        "backend": target.backend,
        **({} if target.lane is None else {"lane": target.lane}),
        **target.options,
    },
)
_converter.register_unstructure_hook(
    Dim,
    lambda d: d.min if d.fixed and d.step == 1 else {"min": d.min, "max": d.max, "step": d.step},
)
