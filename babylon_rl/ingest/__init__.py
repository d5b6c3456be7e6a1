"""Rows of the game → trajectories and outcomes: reading, recording, stitching, and which rows changed since.

What belongs here: everything that knows the game's tables and the shape of `stepsJson`. What does not: which
trajectories are compared (`grouping/`), and where they are kept (`store/`).
"""
