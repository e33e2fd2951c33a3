"""Text to phone ids: normalise, look up, map onto one inventory."""
