"""Placeholder until merged."""

import sqlalchemy as sa


class JudgmentClaims:
    def __init__(self, engine: sa.Engine) -> None: ...
    async def __aenter__(self) -> "JudgmentClaims":
        return self

    async def __aexit__(self, *_: object) -> None: ...
