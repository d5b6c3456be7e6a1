"""The one address that agents call: it answers with the policy that is deployed for them, and records who answered.

What belongs here: the HTTP of the gateway, its upstreams, its recording. What is deployed is read from `store/deployments.py`
and never decided here.
"""
