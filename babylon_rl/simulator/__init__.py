"""Makes source data: a seeded market, agents that play it, rows as the game writes them.

What belongs here: the market's hidden state and what agents see of it. What does not: judging and training, which must
never know that state.
"""
