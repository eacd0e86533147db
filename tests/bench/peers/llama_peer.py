"""llama.cpp: `python llama_peer.py model.gguf`."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy
from serve import CONTEXT, THREADS, serve


class Llama:
    def __init__(self, path: str) -> None:
        llama_cpp.llama_backend_init()
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self._silent = silent  # llama.cpp keeps only a pointer
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, 512, 512
        settings.n_threads = settings.n_threads_batch = THREADS
        model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        assert model, f"llama.cpp does not load {path}"
        self.words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.context = llama_cpp.llama_init_from_model(model, settings)
        assert self.context

    def read(self, tokens: list[int]) -> numpy.ndarray:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        return self._decode(tokens)

    def write(self, token: int) -> numpy.ndarray:
        return self._decode([token])

    def _decode(self, tokens: list[int]) -> numpy.ndarray:
        """A batch gives the logits of its last token alone."""
        listed = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(listed, len(tokens))
        assert llama_cpp.llama_decode(self.context, batch) == 0
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return numpy.ctypeslib.as_array(logits, shape=(self.words,)).copy()


serve(Llama(sys.argv[1]))
