"""Helpers that know nothing of the domain: canonical JSON and its hashes, files, progress, statistics.

What belongs here: code that any project could use. What does not: code that handles windows, agents or judgments.
"""
