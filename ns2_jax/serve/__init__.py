"""A model behind HTTP: `python -m ns2_jax.serve`, an API with a queue that batches, voices in a folder, and a page to try it."""
