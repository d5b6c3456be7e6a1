"""What all our tables share: their schema, and how they keep an instant."""

from sqlalchemy import DateTime, MetaData

OUR_SCHEMA = "babylon_rl"

platform = MetaData(schema=OUR_SCHEMA)

instant = DateTime(timezone=True)
