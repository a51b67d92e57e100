"""The robustness checklist: attacks, faults, overload, shutdown, a soak."""
