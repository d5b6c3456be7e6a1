"""Data out: judged groups as files, a window as a DataFrame, one row's story.

What belongs here: reading what the assets kept, for people and other trainers. What does not: deciding or writing
anything in a database.
"""
