"""RULER: one LLM ranks a whole group by a rubric. The prompt, the request, the reply, and retries.

What belongs here: what only an LLM judge needs. What does not: the rules that every judge obeys (`judging/judge.py`).
"""
