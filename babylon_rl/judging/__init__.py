"""Groups → scores. What judges, what it may read, and how often it is asked; never who trains on the result."""
