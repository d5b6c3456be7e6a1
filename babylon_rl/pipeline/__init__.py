"""What each asset does, one module per asset: `ingest`, `outcomes`, `group`, `score`, `train`, `evaluate`.

Beside them: `checks` (the rules behind the asset checks), `readiness`, `rejudge`, and `workspace` (what all of them
open). What does not belong here: Dagster (`defs/`) and the screen (`cli/`, `report/`).
"""
