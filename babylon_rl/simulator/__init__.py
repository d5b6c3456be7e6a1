"""Makes source data: a seeded market, agents that play it, rows as the game writes them.

The only room that knows a market's hidden state; it never imports judging or training.
"""
