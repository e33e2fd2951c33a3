"""Evaluators: each yields (name, value) with a fingerprint, and runs without a network."""
