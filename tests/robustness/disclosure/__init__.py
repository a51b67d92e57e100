"""Rows E: secrets, keys, metrics, and whether OpenAPI tells the truth."""
