"""babylon_rl turns the log of a never-ending prediction-market game into better agents.

Read `types.py` for the nouns, `defs/assets.py` for the flow, then one room. Importing this package
imports nothing heavy: no torch, no art, no Dagster.
"""

__version__ = "0.1.0"
