"""Audio files: read, write, resample, loudness, trim."""
