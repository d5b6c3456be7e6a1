"""The databases: an embedded PostgreSQL, connections, tables and their migrations.

What belongs here: how a database is reached, what its tables are, and how rows are inserted or replaced. What does
not: what the rows mean (`ingest/` reads the game's, `store/` reads and writes ours).
"""
