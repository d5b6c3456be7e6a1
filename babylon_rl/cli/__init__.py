"""`babylon-rl …`: commands open what they need, call one function, and print.

What belongs here: arguments, progress on a screen, starting processes. What does not: anything that an asset does.
"""
