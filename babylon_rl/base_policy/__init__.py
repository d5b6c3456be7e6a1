"""Makes the base policy that ships with the package: tokenizer, corpus, cloning, and its evaluation.

What belongs here: what runs once, before any training. What does not: loading, sampling and serving (`policy/`).
"""
