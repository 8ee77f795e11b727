"""Specs, the store and the order of work."""
