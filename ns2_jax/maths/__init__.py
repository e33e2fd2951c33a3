"""Verbs: functions of arrays, without parameters."""
