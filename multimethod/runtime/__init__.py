"""Program -> methods: signatures enforced, run by an engine."""

from mmpack.multimethod.versions import require_supported

require_supported()

from mmpack.multimethod.runtime.method import Method  # noqa: E402
from mmpack.multimethod.runtime.methods import Methods  # noqa: E402

__all__ = ["Method", "Methods"]
