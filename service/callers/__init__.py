"""Fairness between callers, and limits on what each may use.

`caller` identifies the sender of a request. `fair_queue` orders work fairly,
`fair_slots` and `request_pacing` apply it. `memory_budget` and `owner_quota` limit
buffered bytes and open streams.
"""
