"""How attrs classes map to flatbuffer tables: one `Field` per attribute, by its annotation.

    Annotated[int, "i"]        a number in the table, stored as struct format "i"
    Skipped                    a string, vector or table that is there but not read
    str, bytes, Span | bytes   a string, a short [ubyte], a [ubyte] that stays in the file
    SomeClass, list[SomeClass] a table, a vector of tables
    tuple[Annotated[…], …]     a vector of numbers
    A | B | C                  a union of tables: two slots, the tag first, counted from 1
    A | B | Skipped            a union that may have tags unknown here, whose tables are not read

Each may be `| None`, which is what an absent string, vector, table or union is.
"""

from __future__ import annotations

import struct
import types
import typing
from functools import cache

import attrs
from attrs import frozen

from mmpack.multimethod.link.schema import Skipped, Span


@frozen
class Field:
    """One attribute of a table. kind: "number", "string", "bytes", "span", "table", "union",
    "numbers", "tables" or "skipped". slot: its first slot. code, size: struct format and bytes of
    a number or of a vector's element. classes: the table, or the tables of a union. open: whether
    the union may have other tags."""

    name: str
    kind: str
    slot: int
    default: object
    code: str = "I"
    size: int = 4
    classes: tuple[type, ...] = ()
    open: bool = False

    @property
    def slots(self) -> int:
        return 2 if self.kind == "union" else 1


@cache
def fields_of(table: type) -> tuple[Field, ...]:
    """The fields of a table class, in slot order. TypeError for annotations it cannot map."""
    hints = typing.get_type_hints(table, include_extras=True)
    made: list[Field] = []
    slot = 0
    for attribute in attrs.fields(table):
        one = _field(attribute.name, hints[attribute.name], slot, attribute.default)
        made.append(one)
        slot += one.slots
    return tuple(made)


def _field(name: str, hint: object, slot: int, default: object) -> Field:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = tuple(o for o in typing.get_args(hint) if o is not types.NoneType)
    else:
        options = (hint,)
    if Span in options:
        return Field(name, "span", slot, default, "B", 1)
    if len(options) > 1:
        known = tuple(o for o in options if o is not Skipped)
        return Field(name, "union", slot, default, classes=known, open=known != options)
    (only,) = options
    origin, args = typing.get_origin(only), typing.get_args(only)
    if origin is typing.Annotated:
        return Field(name, "number", slot, default, args[1], struct.calcsize("<" + args[1]))
    if origin is tuple:
        code = typing.get_args(args[0])[1]
        return Field(name, "numbers", slot, default, code, struct.calcsize("<" + code))
    if origin is list:
        return Field(name, "tables", slot, default, classes=args)
    if only is Skipped:
        return Field(name, "skipped", slot, default)
    if only is str:
        return Field(name, "string", slot, default, "B", 1)
    if only is bytes:
        return Field(name, "bytes", slot, default, "B", 1)
    if isinstance(only, type) and attrs.has(only):
        return Field(name, "table", slot, default, classes=(only,))
    raise TypeError(f"{name}: {hint!r} has no place in a flatbuffer table")
