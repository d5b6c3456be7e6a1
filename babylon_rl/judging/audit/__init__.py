"""Negative controls for judges: synthetic groups with known P&L, and how a judge scores them.

What belongs here: probing any `Judge`. What does not: keeping the figures (`store/judge_audits.py`).
"""
