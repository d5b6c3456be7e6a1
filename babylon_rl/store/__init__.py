"""What we keep between assets, in schema `babylon_rl`.

What belongs here: SQL over our own tables; no other package reads or writes them, except that `ingest/` fills and reads
the facts of the world and the counts of recorded windows with their queues. What does not: the game's tables
(`ingest/`), and decisions (`pipeline/`).
"""
