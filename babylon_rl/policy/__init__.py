"""The policy: a language model small enough to learn on a laptop, and all it takes to load, sample and serve it.

What belongs here: weights, tokens, sampling, checkpoint directories, the endpoint and its client. What does
not: how its first weights are made (`base_policy/`), how reward changes them (`training/`), and what the game's
prompts say (`simulator/`).
"""
