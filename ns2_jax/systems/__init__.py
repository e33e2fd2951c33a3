"""One file (or folder), one paper. All its equations are here; the protocol is in `system.py`."""
