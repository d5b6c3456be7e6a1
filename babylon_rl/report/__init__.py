"""What one training run came to, for people: a page, a few lines on the screen, and the same numbers as JSON.

`data.py` holds the numbers, `formatting.py` says them, `charts.py` draws them; `page.py` and `screen.py` set them.
What belongs here: words, charts, the page and the screen. What does not: computing a result or reading a database.
"""
