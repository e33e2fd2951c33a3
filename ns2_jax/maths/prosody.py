"""What predictors of length and pitch are trained on, and what their numbers mean."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

LONGEST = 7.0
"""Of a predicted log(1 + frames): 1,096 frames."""


def duration_error(predicted_bp: jax.Array, frames_bp: jax.Array) -> jax.Array:
    """|predicted - log(1 + frames)|, float32 `[b, p]`."""
    return jnp.abs(predicted_bp - jnp.log1p(frames_bp.astype(jnp.float32)))


def whole_frames(predicted_bp: jax.Array, real_bp: jax.Array, speed: float | jax.Array) -> jax.Array:
    """Predicted log(1 + frames) -> int32 frames, divided by `speed`: at least 1 where there is a phone, 0 where there is none."""
    frames = jnp.round(jnp.expm1(jnp.minimum(predicted_bp, LONGEST)) / speed)
    return jnp.where(real_bp, jnp.maximum(frames, 1), 0).astype(jnp.int32)


def pitch_bins(f0_bt: jax.Array, bins: int, low: float, high: float) -> jax.Array:
    """F0 in Hz -> int32: 0 unvoiced, then `bins - 1` steps of equal ratio from `low` to `high` Hz (what lies outside is in the outer ones)."""
    place = jnp.log(jnp.maximum(f0_bt, low) / low) / math.log(high / low) * (bins - 1)
    return jnp.where(f0_bt > 0, 1 + jnp.clip(place.astype(jnp.int32), 0, bins - 2), 0)


def pitch_errors(predicted_bt2: jax.Array, f0_bt: jax.Array, mean: float, deviation: float) -> tuple[jax.Array, jax.Array]:
    """(|value - standardised log F0| where voiced, cross entropy of the voicing logit), each `[b, t]`."""
    voiced = (f0_bt > 0).astype(jnp.float32)
    target = (jnp.log(jnp.maximum(f0_bt, 1.0)) - mean) / deviation
    value, logit = predicted_bt2[..., 0], predicted_bt2[..., 1]
    return jnp.abs(value - target) * voiced, jax.nn.softplus(logit) - logit * voiced


def hertz(predicted_bt2: jax.Array, mask_bt: jax.Array, mean: float, deviation: float, low: float, high: float) -> jax.Array:
    """The predicted pitch in Hz, 0 where unvoiced and outside the mask, float32 `[b, t]`."""
    value = jnp.clip(jnp.exp(predicted_bt2[..., 0] * deviation + mean), low, high)
    return jnp.where((predicted_bt2[..., 1] > 0) & mask_bt, value, 0.0)
