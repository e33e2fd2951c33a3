"""ns2_jax: zero-shot speech generators in JAX/Flax, from a laptop to a TPU pod."""

__version__ = "0.1.0"
