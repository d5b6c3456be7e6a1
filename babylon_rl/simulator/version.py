"""Which simulator played: part of the name of every suite of evaluation windows."""

from typing import Final

SIMULATOR_VERSION: Final = 1
"""Raise it with any change of markets, prompts, trading or settlement: results of two versions are not comparable."""
