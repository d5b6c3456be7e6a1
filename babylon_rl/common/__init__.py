"""Helpers that know no word of the domain: bytes and hashes, files, statistics.

What belongs here: code that any project could use. What does not: anything that mentions a window, an agent or a judge.
"""
