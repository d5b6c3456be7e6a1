"""`import art` without its side effects on the rest of the process.

What belongs here: what prevents the side effects of importing ART (0.5.18). They would outlast the training, in a
process that also serves, schedules and logs.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager

_KEY, _MODE = "WANDB_API_KEY", "WANDB_MODE"


@contextmanager
def without_wandb() -> Generator[None]:
    """Keep ART and its child processes from starting a W&B run inside this block.

    ART does so wherever `WANDB_API_KEY` is in the environment (`Model._get_wandb_run`), for every backend and before
    the training. We send metrics ourselves, where the operator wants it (`wandb_log.py`).
    """
    hidden = {name: os.environ.pop(name, None) for name in (_KEY, _MODE)}
    os.environ[_MODE] = "disabled"
    try:
        yield
    finally:
        del os.environ[_MODE]
        os.environ.update({name: value for name, value in hidden.items() if value is not None})


@contextmanager
def isolated_art_import() -> Generator[None]:
    """Import ART's modules inside this block.

    Prevented, each observed in the installed package:
        - litellm, which ART imports, asks a remote host for a price list that we do not use;
        - `art/__init__.py` loads the nearest `.env` above *its own* directory into the environment,
          bypassing `Settings`: a W&B key found there would send metrics out;
        - `mp_actors`, which `art.local.backend` imports, replaces asyncio's tasks by slower ones in Python and
          `asyncio.run` by one that never closes its loop (`nest_asyncio.apply`). Only its child processes, for a GPU,
          may need that.
    """
    import nest_asyncio  # type: ignore[import-untyped]  # it has no stubs

    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    ours = "PYTHON_DOTENV_DISABLED" not in os.environ
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    apply, nest_asyncio.apply = nest_asyncio.apply, lambda loop=None: None
    try:
        yield
    finally:
        nest_asyncio.apply = apply
        if ours:
            del os.environ["PYTHON_DOTENV_DISABLED"]
