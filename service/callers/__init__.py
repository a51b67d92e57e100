"""Fairness between callers: their queues, quotas and turns, and the budget of buffered bytes."""
