"""Rows of codes of unequal lengths joined, and codes drawn from logits: top-k, nucleus (top-p), and repetition-aware sampling (VALL-E 2,
Algorithm 1).

Every row draws with its own key, so what it draws does not depend on the rows beside it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

IMPOSSIBLE = -1e30
"""Logit of what may not be drawn."""
TRIGGERS = ("with_itself", "without_itself")
REDRAWS = ("all", "others")


def join(first: jax.Array, n_b: jax.Array, second: jax.Array, m_b: jax.Array, edge: bool = False) -> jax.Array:
    """The first `n_b` of `first [b, n, ...]`, then the first `m_b` of `second [b, m, ...]`: `[b, n + m, ...]`, then zeros, or (`edge`) the last one
    again."""
    n, m = first.shape[1], second.shape[1]
    both, at, total = jnp.concatenate([first, second], 1), jnp.arange(n + m)[None], (n_b + m_b)[:, None]
    place = jnp.where(at < n_b[:, None], at, n + at - n_b[:, None])
    last = jnp.where(m_b > 0, n + m_b - 1, n_b - 1)[:, None]
    place = jnp.clip(jnp.where(at < total, place, last), 0, n + m - 1)
    tail = (1,) * (both.ndim - 2)
    found = jnp.take_along_axis(both, place.reshape(*place.shape, *tail), 1)
    return found if edge else jnp.where((at < total).reshape(*place.shape, *tail), found, 0)


def categorical(keys_b: jax.Array, logits_bk: jax.Array) -> jax.Array:
    """One draw a row, int32 `[b]`, each by its own key."""
    return jax.vmap(jax.random.categorical)(keys_b, logits_bk).astype(jnp.int32)


def nucleus(logits_bk: jax.Array, p: float) -> jax.Array:
    """Logits with IMPOSSIBLE outside the nucleus: the fewest most likely codes that together have a probability of at least `p` (Holtzman
    et al. 2020). The most likely one always stays, so `p=0` is greedy; `p=1` keeps all; codes as likely as the last one kept stay too."""
    if p >= 1:
        return logits_bk
    ordered = jnp.sort(logits_bk, -1, descending=True)
    share = jax.nn.softmax(ordered, -1)
    before = jnp.cumsum(share, -1) - share
    last = jnp.where((before < p) | (jnp.arange(share.shape[-1]) == 0), ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits_bk >= last, logits_bk, IMPOSSIBLE)


def likeliest(logits_bk: jax.Array, k: int) -> jax.Array:
    """Logits with IMPOSSIBLE but for the `k` most likely codes (top-k) and those as likely as the last of them; 0 keeps all."""
    if not 0 < k < logits_bk.shape[-1]:
        return logits_bk
    return jnp.where(logits_bk >= jax.lax.top_k(logits_bk, k)[0][:, -1:], logits_bk, IMPOSSIBLE)


def repetition_aware(
    keys_b: jax.Array, logits_bk: jax.Array, recent_bw: jax.Array, p: float, share: float, trigger: str = "with_itself", redraw: str = "all",
) -> tuple[jax.Array, jax.Array]:
    """(codes int32 `[b]`, whether each was drawn again): a draw from the nucleus, and another one where it repeats itself too much.

    `recent_bw` are the last w codes, -1 where there is none yet. The drawn code's share r of the window is (how many of the w are it) / w;
    the paper's sum runs over k = 0..K, so that the new code counts itself (`trigger="with_itself"`: with w = 10 and share 0.1 one earlier
    occurrence is enough); from k = 1 on it does not ("without_itself": two are needed). Where r > `share` the code is drawn again from
    all (`redraw="all"`, the paper), or from all others. Without a window (w = 0) nothing is drawn again.
    Raises ValueError for another trigger or redraw.
    """
    if trigger not in TRIGGERS or redraw not in REDRAWS:
        raise ValueError(f"trigger={trigger!r}, redraw={redraw!r}; expected one of {TRIGGERS} and one of {REDRAWS}")
    keys = jax.vmap(jax.random.split)(keys_b)
    code = categorical(keys[:, 0], nucleus(logits_bk, p))
    window = recent_bw.shape[1]
    if not window:
        return code, jnp.zeros(code.shape, bool)
    count = (recent_bw == code[:, None]).sum(-1) + (trigger == "with_itself")
    again = count > share * window * (1 + 1e-6)  # 10 x 0.1 is 1: rounding must not decide
    other = logits_bk if redraw == "all" else jnp.where(jnp.arange(logits_bk.shape[-1]) == code[:, None], IMPOSSIBLE, logits_bk)
    return jnp.where(again, categorical(keys[:, 1], other), code), again
