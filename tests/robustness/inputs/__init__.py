"""Rows A and G: malformed, oversized and hostile requests and files."""
