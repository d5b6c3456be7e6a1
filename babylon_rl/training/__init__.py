"""Scores → checkpoint. One path through ART for the CPU, a GPU and W&B Serverless.

`trainer.py` has the interface; `sequences.py` decides what trains, `art_groups.py` puts it into ART's types, and
`art_trainer.py` drives the backend of the chosen engine (`cpu_backend`, `local`, `serverless`).

What belongs here: how rewards change weights. What does not: which windows train and what is recorded
(`pipeline/train.py`, `store/ledger.py`), and sampling (`policy/`).
"""
