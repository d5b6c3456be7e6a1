"""Data out: judged groups as files, a window as a DataFrame, an explanation of what became of one row.

What belongs here: reading what the assets stored, for people and other trainers. What does not: deciding anything, or
writing to a database.
"""
