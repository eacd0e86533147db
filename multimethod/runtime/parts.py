"""The dotted names of a program's methods as attributes and indices.

program.layers[0].qkv_proj.chunk(hidden, cos, sin)  # the method "layers.0.qkv_proj.chunk"
program.layers[0].qkv_proj(hidden, cos, sin)        # that or another size of it, as the inputs are
for layer in program.layers: ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmpack.multimethod.errors import CallError, nearest

if TYPE_CHECKING:
    from mmpack.multimethod.runtime.method import Method
    from mmpack.multimethod.runtime.methods import Methods

Tree = Mapping[str, tuple[str, ...]]
"""The beginnings of names, each with the parts that come next: `layers.0` -> (`qkv_proj`, …)."""


class NoPart(AttributeError, LookupError):
    """No method has a name that goes on so: what Python has for that, since `hasattr` and the like
    ask for it."""


def tree(names: Iterable[str]) -> Tree:
    """
    >>> tree(["a.0.x", "a.0.y", "b"])
    {'': ('a', 'b'), 'a': ('0',), 'a.0': ('x', 'y')}
    """
    made: dict[str, dict[str, None]] = {"": {}}
    for name in names:
        parts = name.split(".")
        for count, part in enumerate(parts):
            made.setdefault(".".join(parts[:count]), {})[part] = None
    return {beginning: tuple(parts) for beginning, parts in made.items()}


def find(methods: Methods, beginning: str, part: str) -> Part | Method:
    """What `beginning` and one more part lead to: a method, or more parts. Raises NoPart."""
    name = f"{beginning}.{part}" if beginning else part
    if name in methods.parts:
        return Part(methods, name)
    if name in methods:
        return methods[name]
    told = f"{methods.path}: " + (f"{beginning!r} has no part" if beginning else "no method")
    known = methods.parts.get(beginning, ())
    hint = nearest(part, known)
    if part.isdecimal() and (numbers := _numbers(known)):
        whole = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
        hint = f"; known: {numbers[0]}..{numbers[-1]}" if whole else f"; known: {_list(numbers)}"
    raise NoPart(f"{told} {part!r}{hint}")


class Part:
    """What the names of some methods begin with. Called, it is the method of just this name; or
    else, of those with one part more, the one whose signature admits the arguments.

    `part.name` and `part["name"]` lead on. Where parts are numbers, it is a list of these: it has
    a length, is iterated in their order, `part[0]` is the one of that number, and `part[-1]` that
    of the largest.
    """

    __slots__ = ("_methods", "_name")

    def __init__(self, methods: Methods, name: str) -> None:
        self._methods = methods
        self._name = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._methods.run_method(self._name, *args, **kwargs)

    def __getattr__(self, name: str) -> Part | Method:
        if name.startswith("__"):  # what Python and notebooks ask of any object
            raise AttributeError(name)
        return find(self._methods, self._name, name)

    def __getitem__(self, part: int | str) -> Part | Method:
        if isinstance(part, int) and part < 0:
            numbers = self._numbers()
            if -part > len(numbers):
                raise NoPart(f"{self._name!r} has {len(numbers)} parts, and no {part}")
            part = numbers[part]
        return find(self._methods, self._name, str(part))

    def __len__(self) -> int:
        return len(self._numbers())

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Part | Method]:
        return iter([self[number] for number in self._numbers()])

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *filter(str.isidentifier, self._methods.parts[self._name])]

    def __repr__(self) -> str:
        begin = self._name + "."
        names = [name for name in self._methods if name == self._name or name.startswith(begin)]
        return "\n".join(repr(self._methods[name]) for name in names)

    def _numbers(self) -> list[int]:
        parts = self._methods.parts[self._name]
        numbers = _numbers(parts)
        if not numbers:
            raise TypeError(f"{self._name!r} is no list: its parts are {_list(parts)}")
        return numbers


def sized(methods: Methods, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Method:
    """Of several sizes of one method, as `attention.chunk` and `attention.one` of `attention`, the
    one whose signature admits the arguments. Raises CallError if none does, or several; or if the
    methods whose names begin so are not sizes of one, which is told by their inputs and outputs.
    """
    known = [methods[n] for p in methods.parts[name] if (n := f"{name}.{p}") in methods]
    if len({_form(method) for method in known}) != 1 or len(known) < len(methods.parts[name]):
        parts = _list(methods.parts[name])
        raise CallError(f"{methods.path}: {name!r} is no method; its parts are {parts}")
    fitting = [method for method in known if method.admits(args, kwargs)]
    if len(fitting) == 1:
        return fitting[0]
    verb = "several of its sizes admit" if fitting else "none of its sizes admits"
    listed = [f"  {method!r}" for method in fitting or known]
    given = ", ".join([*map(_shown, args), *(f"{n}: {_shown(v)}" for n, v in kwargs.items())])
    raise CallError("\n".join([f"{name}: {verb} ({given})", *listed]))


def _numbers(parts: Iterable[str]) -> list[int]:
    # `isdecimal` alone takes other alphabets' digits, and "007" is found by its text only.
    return sorted(int(part) for part in parts if part.isdecimal() and part == str(int(part)))


def _list(parts: Iterable[object]) -> str:
    return ", ".join(map(str, parts))


def _form(method: Method) -> tuple[Any, ...]:
    """What all sizes of one method have in common."""
    signature = method.signature
    return tuple(
        tuple((v.name, v.dtype, None if v.shape is None else len(v.shape)) for v in values)
        for values in (signature.inputs, signature.outputs)
    )


def _shown(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
