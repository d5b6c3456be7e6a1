"""Which policy answers which agent, and when that may change: stages, arms, and the rules of a rollout.

Plain rules on plain values: nothing here reads a clock, a database or the network. What is deployed is kept by
`store/deployments.py`; `pipeline/deploy.py` moves it; `gateway/` answers by it.
"""
