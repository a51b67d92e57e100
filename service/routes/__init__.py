"""What answers at which path; no module here knows another."""
