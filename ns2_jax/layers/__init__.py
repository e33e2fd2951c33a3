"""Nouns: pure Linen modules that take numbers, never configs. Every parameter is born here."""
