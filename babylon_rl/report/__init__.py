"""What one training run came to, for people: a page, a few lines on the screen, and the same numbers as JSON.

`data.py` holds the numbers, `words.py` says them, `charts.py` draws them; `page.py` and `screen.py` set them.
Nothing here computes a result or reads a database: what is reported was measured elsewhere.
"""
