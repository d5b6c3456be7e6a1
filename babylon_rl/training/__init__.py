"""Scores → checkpoint. One path through ART for the CPU, a GPU and W&B Serverless.

`trainer.py` is the door; `sequences.py` decides what trains, `art_groups.py` says it in ART's words, and
`art_trainer.py` drives whichever backend an engine (`cpu_backend`, `local`, `serverless`) brings.
What belongs here: how weights change by reward. What does not: which windows train and what is recorded (`pipeline/train.py`,
`store/ledger.py`), and sampling (`policy/`).
"""
