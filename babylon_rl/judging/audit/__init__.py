"""Negative controls for judges: synthetic groups whose truth is known, and what a judge made of them.

What belongs here: probing any `Judge`. What does not: keeping the figures (`store/judge_audits.py`).
"""
