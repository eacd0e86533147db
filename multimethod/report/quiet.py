"""Keeps the remarks that torch and executorch make about themselves off the user's terminal."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Drop the libraries' warnings. For the command line only: what imports mmpack as a library
    keeps its own settings."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
