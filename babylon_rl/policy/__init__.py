"""The policy: a language model small enough to learn on a laptop, and all it takes to make, load, sample and serve it.

What belongs here: weights, tokens, sampling, checkpoint directories, the endpoint and its client. What does
not: how weights change by reward (`training/`), and what the game's prompts say (`simulator/`).
"""
