"""mmpack's records as plain data (what JSON can hold) and back."""

from __future__ import annotations

from cattrs.preconf.json import JsonConverter, make_converter

PLAIN: JsonConverter = make_converter()
PLAIN.register_structure_hook(int | str, lambda value, _: value)
