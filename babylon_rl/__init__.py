"""babylon_rl turns the log of a never-ending prediction-market game into better agents.

Read `types.py` (the nouns), `defs/assets.py` (the flow), `pipeline/` (one module per asset), then one package; each says
in its `__init__` what belongs there. Importing this package imports nothing heavy: no torch, no art, no Dagster, no pandas.

```python
import babylon_rl

turns = babylon_rl.read_window("2025-01-15T10:00")  # a pandas DataFrame, one row per turn
```
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from babylon_rl.settings import Settings

__version__ = "0.1.0"


def read_window(window_id: str, *, settings: "Settings | None" = None) -> "pd.DataFrame":
    """One window as a DataFrame, one row per turn: for notebooks. See `babylon_rl.export.dataframe.window_frame`.

    Args:
        window_id: A UTC hour such as `2025-01-15T10:00`.
        settings: Which databases to read; None: the settings of the environment.

    Raises:
        DataError: `window_id` is not a UTC hour, or the window was never ingested.
        ConfigError: The database cannot be reached.
    """
    from babylon_rl.export.dataframe import window_frame
    from babylon_rl.pipeline.workspace import open_workspace
    from babylon_rl.settings import Settings

    with open_workspace(settings or Settings.load()) as workspace:
        return window_frame(workspace.store, window_id)
