"""Dagster only, and thin: each definition translates, calls one function of the domain, and reports."""
