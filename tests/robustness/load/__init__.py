"""Rows B, F and M: slow clients, overload, deadlines, fairness, resource attacks."""
