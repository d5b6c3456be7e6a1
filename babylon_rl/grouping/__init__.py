"""Trajectories → groups, with the hindsight beside them, and which windows dropout leaves out.

What belongs here: pure functions that decide who is compared with whom. What does not: databases and judges.
"""
