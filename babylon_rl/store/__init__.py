"""What we keep between assets, in schema `babylon_rl`: the only package that reads and writes those tables.

What belongs here: SQL over our own tables. What does not: the game's tables (`ingest/`), and decisions (`pipeline/`).
"""
