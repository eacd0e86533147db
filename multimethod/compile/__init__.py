"""Unit -> object: capture, export, lower, cache, workers."""

from mmpack.multimethod.versions import require_supported

require_supported()
