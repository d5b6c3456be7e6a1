"""Room 1, what happened: the game's rows and facts, read from and written to Postgres."""
