"""Groups → scores: an LLM with a rubric (`ruler/`), a formula, or chance; and the audit of a judge.

What belongs here: what a judge reads, how it is asked, what its scores must be. What does not: keeping them (`store/`)
and training on them (`training/`).
"""
