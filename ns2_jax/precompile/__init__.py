"""Does a config fit a machine that you do not have, and what would make it fit? The command is in `__main__`."""
