"""What the service is put through: attacks, faults, overload, shutdown, a soak."""
