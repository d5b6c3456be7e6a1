"""A workaround for two libraries that do not fit each other: ART patches transformers for an older version."""

import sys
from typing import Any


def undo_art_patch() -> None:
    """Give transformers its own `_preprocess_mask_arguments` back after `import art`.

    `import art` (0.5.18) replaces it by a wrapper with the signature of transformers 5.2; on 5.23 every
    forward pass then raises TypeError. `art.transformers.patches` keeps the original. Call it after importing art
    and before a forward pass; it imports nothing and does nothing where art is not loaded.
    """
    patches = sys.modules.get("art.transformers.patches")
    masking: Any = sys.modules.get("transformers.masking_utils")
    if patches is None or masking is None:
        return
    if masking._preprocess_mask_arguments is patches._patched_preprocess_mask_arguments:
        masking._preprocess_mask_arguments = patches._preprocess_mask_arguments
