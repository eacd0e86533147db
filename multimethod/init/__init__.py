"""`mmpack init`: a Hugging Face folder and a few choices -> the text of a spec."""

from mmpack.multimethod.init.choices import Cache, Choices, Split, Target, target
from mmpack.multimethod.init.draft import init

__all__ = ["Cache", "Choices", "Split", "Target", "init", "target"]
