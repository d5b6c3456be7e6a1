"""4: scores → checkpoint. One path through ART for the CPU, a GPU and W&B Serverless.

`trainer.py` is the door; `sequences.py` decides what trains, `art_groups.py` says it in ART's words, and
`art_trainer.py` drives whichever backend an engine (`cpu_backend`, `local`, `serverless`) brings.
"""
