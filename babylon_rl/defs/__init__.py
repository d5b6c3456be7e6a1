"""Dagster, and nothing else: assets, checks, partitions, resources, schedules and sensors.

What belongs here: translating between Dagster's types and ours, calling one function of `pipeline/`, and reporting what
it returned. What does not: any rule that could be tested without Dagster.
"""
