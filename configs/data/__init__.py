"""Corpora: which layout, and how a data set is made of it. `python -m data_pipelines.run --config=configs/data/<corpus>.py`."""
