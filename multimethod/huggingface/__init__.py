"""Models as Hugging Face keeps them: a folder with config.json and safetensors files.

`folder.py` reads what lies there, without torch and without transformers; `model.py` makes the
model of it.
"""
