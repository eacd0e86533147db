"""A whole decoder as one method, for one token at a time."""

from mmpack.wrappers.prefill import Prefill


class Decode(Prefill):
    """`prefill` under the name of what it is used for: the two share weights and caches."""
