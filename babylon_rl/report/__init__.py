"""Results for people: a page, a few lines on the screen, and the same numbers as JSON; pictures for Dagster.

Of a demo, `data.py` holds the numbers, `formatting.py` has them as text and `charts.py` as pictures; `page.py` and
`screen.py` lay them out. What belongs here: text, tables, charts. What does not: computing a result or reading a
database.
"""
