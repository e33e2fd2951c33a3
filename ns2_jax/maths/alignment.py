"""Phones and frames: expansion by durations, and the monotonic alignments that durations are found from.

Expansion is a product with a 0/1 matrix, not a gather: six times cheaper on a TPU, and its derivative is another product. With `gaussian`
the matrix is soft.

A monotonic alignment gives every frame t < M one phone s_t < P: it starts at the first phone, ends at the last, and goes from a
frame to the next by staying or by one phone; an optional phone (a pause that may not be there) can be jumped over, at the ends
too, two in a row cannot. With scores L[t, p], its score is sum_t L[t, s_t]. `forward_sum` is log sum exp over all of them (HMM forward algorithm;
Badlani et al. 2021, "One TTS Alignment To Rule Them All", equation 4, without CTC's blank: every frame belongs to a phone),
`viterbi` the best one, `posterior` how likely each place is. Arrays are padded: frames from M and phones from P on do not matter.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, gammaln

NEVER = -1e30
"""log 0 with a finite difference to itself."""


def length_mask(lengths_b: jax.Array, size: int) -> jax.Array:
    """Bool `[b, size]`, true for the first `lengths_b` positions."""
    return jnp.arange(size)[None, :] < lengths_b[:, None]


def alignment(durations_bp: jax.Array, frames: int, first_b: jax.Array | None = None) -> jax.Array:
    """Bool `[b, frames, p]`: which phone each frame belongs to, from frame `first_b` of a row on. Frames past the last phone belong to none."""
    ends = jnp.cumsum(durations_bp, -1)
    at = _frames(frames, first_b)[:, :, None]
    return (at < ends[:, None, :]) & (at >= (ends - durations_bp)[:, None, :])


def _frames(frames: int, first_b: jax.Array | None) -> jax.Array:
    """Numbers of the frames `[b or 1, frames]`."""
    return jnp.arange(frames)[None, :] + (0 if first_b is None else first_b[:, None])


def expand(x_bpc: jax.Array, alignment_btp: jax.Array) -> jax.Array:
    """Phone vectors repeated over their frames, `[b, t, c]`; zero where no phone is."""
    return jnp.einsum("btp,bpc->btc", alignment_btp.astype(x_bpc.dtype), x_bpc)


def phone_position(durations_bp: jax.Array, alignment_btp: jax.Array, first_b: jax.Array | None = None) -> jax.Array:
    """Float32 `[b, t, 3]`: share of the phone that is over (at the frame's centre), share still to come, log(1 + duration). The alignment
    begins at frame `first_b` of its row.

    Sums of selected integers, not matrix products: accelerators would round those.
    """
    starts = jnp.cumsum(durations_bp, -1) - durations_bp
    select = lambda values_bp: jnp.where(alignment_btp, values_bp[:, None, :], 0).sum(-1).astype(jnp.float32)
    start, duration = select(starts), select(durations_bp)
    inside = (duration > 0).astype(jnp.float32)
    done = (_frames(alignment_btp.shape[1], first_b) + 0.5 - start) / jnp.maximum(duration, 1.0) * inside
    return jnp.stack([done, inside - done, jnp.log1p(duration)], -1)


def gaussian(durations_bp: jax.Array, ranges_bp: jax.Array, real_bp: jax.Array, frames: int, first_b: jax.Array | None = None) -> jax.Array:
    """Gaussian upsampling (Shen et al. 2020, Non-Attentive Tacotron, section 2.2): float32 `[b, frames, p]`, how much of each phone a frame is.

    With c the centre of a phone and s its range (both in frames), weights are N(t + 1/2; c, s^2) over their sum over the row's `real_bp`
    phones. By log and softmax, so that they sum to 1 however far a frame is from all phones; ranges are to be greater than 0. Frames begin
    at frame `first_b` of their row.
    """
    durations, ranges = durations_bp.astype(jnp.float32)[:, None], ranges_bp.astype(jnp.float32)[:, None]
    centres = jnp.cumsum(durations, -1) - durations / 2
    away = (_frames(frames, first_b)[:, :, None] + 0.5 - centres) / ranges
    return jax.nn.softmax(jnp.where(real_bp[:, None], -0.5 * jnp.square(away) - jnp.log(ranges), NEVER), -1)


def beta_binomial(frames_b: jax.Array, phones_b: jax.Array, shape: tuple[int, int], scale: float = 1.0) -> jax.Array:
    """Log prior `[b, t, p]` that frame i of M speaks phone k of P: BetaBinomial(k; P - 1, scale (i + 1), scale (M - i)).

    A band round the diagonal (Shih et al. 2021, RAD-TTS, section 2.3), the narrower the larger `scale`; `shape` is (t, p). Zero where
    there is no such frame or phone.
    """
    i, k = jnp.arange(shape[0], dtype=jnp.float32)[:, None], jnp.arange(shape[1], dtype=jnp.float32)
    last, m = (jnp.asarray(n, jnp.float32)[:, None, None] for n in (phones_b - 1, frames_b))
    there = (i < m) & (k <= last)
    a, b, k = scale * (i + 1), scale * jnp.maximum(m - i, 1), jnp.minimum(k, last)
    ways = gammaln(last + 1) - gammaln(k + 1) - gammaln(last - k + 1)
    ratio = gammaln(k + a) + gammaln(last - k + b) - gammaln(last + a + b) - betaln(a, b)
    return jnp.where(there, ways + ratio, 0.0)


def _shift(x_bp: jax.Array, by: int) -> jax.Array:
    """`x[p - by]`, NEVER where there is none."""
    pads = (by, 0) if by > 0 else (0, -by)
    return jax.lax.slice_in_dim(jnp.pad(x_bp, ((0, 0), pads), constant_values=NEVER), max(-by, 0), x_bp.shape[1] + max(-by, 0), axis=1)


def _sum(*terms: jax.Array) -> jax.Array:
    top = jnp.maximum(jnp.maximum(*terms[:2]), terms[-1])
    return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


def _ends(phones_b: jax.Array, optional_bp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log indicator `[b, p]` of the phones that an alignment may start with, and may end with."""
    k, log = jnp.arange(optional_bp.shape[1]), lambda yes: jnp.where(yes, 0.0, NEVER)
    last = phones_b[:, None] - 1
    jump = (optional_bp & (k == last)).any(1, keepdims=True) & (last > 0)
    return log((k == 0) | ((k == 1) & optional_bp[:, :1] & (last > 0))), log((k == last) | ((k == last - 1) & jump))


def _moves(alpha_bp: jax.Array, optional_bp: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores of coming to each phone by staying, by one phone, and over an optional one."""
    return alpha_bp, _shift(alpha_bp, 1), _shift(jnp.where(optional_bp, _shift(alpha_bp, 1), NEVER), 1)


def _forward(scores_btp: jax.Array, start_bp: jax.Array, optional_bp: jax.Array) -> jax.Array:
    """`alpha [t, b, p]`: log sum exp over the beginnings that speak phone p in frame t, that frame included."""

    def step(alpha: jax.Array, score_bp: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha = _sum(*_moves(alpha, optional_bp)) + score_bp
        return alpha, alpha

    scores = jnp.moveaxis(scores_btp, 1, 0)
    first = start_bp + scores[0]
    return jnp.concatenate([first[None], jax.lax.scan(step, first, scores[1:])[1]])


def _backward(scores_btp: jax.Array, frames_b: jax.Array, end_bp: jax.Array, optional_bp: jax.Array) -> jax.Array:
    """`beta [t, b, p]`: log sum exp over the ends that follow phone p in frame t, that frame not included."""

    def step(beta: jax.Array, given: tuple) -> tuple[jax.Array, jax.Array]:
        score_bp, last = given
        after = beta + score_bp
        jump = _shift(jnp.where(optional_bp, _shift(after, -1), NEVER), -1)
        beta = jnp.where(last[:, None], end_bp, _sum(after, _shift(after, -1), jump))
        return beta, beta

    following = jnp.concatenate([jnp.moveaxis(scores_btp, 1, 0)[1:], jnp.zeros_like(end_bp)[None]])
    last = jnp.arange(scores_btp.shape[1])[:, None] == frames_b - 1
    return jax.lax.scan(step, end_bp, (following, last), reverse=True)[1]


def _total(alpha_tbp: jax.Array, frames_b: jax.Array, end_bp: jax.Array) -> jax.Array:
    at = jnp.take_along_axis(alpha_tbp, jnp.maximum(frames_b - 1, 0)[None, :, None], 0)[0]
    return jax.nn.logsumexp(at + end_bp, -1)


@jax.custom_vjp
def forward_sum(scores_btp: jax.Array, frames_b: jax.Array, phones_b: jax.Array, optional_bp: jax.Array) -> jax.Array:
    """Log sum exp of all monotonic alignments' scores, float32 `[b]`; about NEVER where there is none (fewer frames than phones).

    `optional_bp` bool says which phones may be left out. Its derivative by the scores is the `posterior`; zero where there is no
    alignment.
    """
    start, end = _ends(phones_b, optional_bp)
    return _total(_forward(scores_btp, start, optional_bp), frames_b, end)


def posterior(scores_btp: jax.Array, frames_b: jax.Array, phones_b: jax.Array, optional_bp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(`forward_sum` `[b]`, share of the alignments, weighted by exp of their scores, that speak phone p in frame t `[b, t, p]`)."""
    start, end = _ends(phones_b, optional_bp)
    alpha = _forward(scores_btp, start, optional_bp)
    total = _total(alpha, frames_b, end)
    share = alpha + _backward(scores_btp, frames_b, end, optional_bp) - total[:, None]
    there = (total > NEVER / 2)[:, None] & (jnp.arange(scores_btp.shape[1])[:, None, None] < frames_b[:, None])
    return total, jnp.moveaxis(jnp.where(there, jnp.exp(jnp.minimum(share, 0.0)), 0.0), 0, 1)


def _forward_sum_fwd(scores_btp, frames_b, phones_b, optional_bp):
    return posterior(scores_btp, frames_b, phones_b, optional_bp)


def _forward_sum_bwd(share_btp, gradient_b):
    return gradient_b[:, None, None] * share_btp, None, None, None


forward_sum.defvjp(_forward_sum_fwd, _forward_sum_bwd)


def viterbi(scores_btp: jax.Array, frames_b: jax.Array, phones_b: jax.Array, optional_bp: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(frames per phone of the best monotonic alignment, int32 `[b, p]`, its score `[b]`).

    The frames of a row sum to `frames_b`, whatever the scores; every phone has at least one, but for optional ones, which may have
    none. Where there is no alignment the score is about NEVER and the first phones have no frame.
    """
    start, end = _ends(phones_b, optional_bp)

    def step(best: jax.Array, score_bp: jax.Array) -> tuple[jax.Array, tuple]:
        stay, one, two = _moves(best, optional_bp)
        move = jnp.where(two > jnp.maximum(stay, one), 2, jnp.where(one > stay, 1, 0)).astype(jnp.int8)
        best = jnp.maximum(jnp.maximum(stay, one), two) + score_bp
        return best, (best, move)

    def back(at_b: jax.Array, given: tuple) -> tuple[jax.Array, jax.Array]:
        i, move_bp = given  # how frame i + 1 was come to
        before = at_b - jnp.take_along_axis(move_bp, at_b[:, None], 1)[:, 0]
        at_b = jnp.where(i >= frames_b - 1, last, jnp.maximum(before, 0))
        return at_b, at_b

    scores = jnp.moveaxis(scores_btp, 1, 0)
    first = start + scores[0]
    _, (best, moves) = jax.lax.scan(step, first, scores[1:])
    best = jnp.concatenate([first[None], best])
    finals = jnp.take_along_axis(best, jnp.maximum(frames_b - 1, 0)[None, :, None], 0)[0] + end
    last = jnp.argmax(finals, -1)
    moves = jnp.concatenate([moves, jnp.zeros_like(moves[:1])]) if len(moves) else jnp.zeros(first.shape, jnp.int8)[None]
    times = jnp.arange(len(scores))
    _, path_tb = jax.lax.scan(back, last, (times, moves), reverse=True)
    spoken = (path_tb[..., None] == jnp.arange(scores.shape[-1])) & (times[:, None, None] < frames_b[:, None])
    return spoken.sum(0, dtype=jnp.int32), finals.max(-1)


def likelihood_ratio(scores_btp: jax.Array, mask_bt: jax.Array, frames_b: jax.Array) -> jax.Array:
    """Scores over their mean (of exp) of the utterance's frames: an estimate of log p(x_t | phone) / p(x_t) from distances."""
    total = jax.nn.logsumexp(jnp.where(mask_bt[:, :, None], scores_btp, NEVER), 1, keepdims=True)
    return scores_btp + jnp.log(jnp.maximum(frames_b, 1).astype(jnp.float32))[:, None, None] - total


def objective(scores_btp: jax.Array, frames_b: jax.Array, phones_b: jax.Array, optional_bp: jax.Array) -> tuple[jax.Array, ...]:
    """What an aligner learns from, in nats of a whole row: (minus `forward_sum` `[b]`, minus the score of the best alignment `[b]`, its
    durations int32 `[b, p]`, whether there is one `[b]`; without one both losses are 0). The durations have no derivative."""
    durations, best = viterbi(jax.lax.stop_gradient(scores_btp), frames_b, phones_b, optional_bp)
    possible = best > NEVER / 2
    path = alignment(durations, scores_btp.shape[1])
    forward = -forward_sum(scores_btp, frames_b, phones_b, optional_bp)
    binarisation = -jnp.where(path, scores_btp, 0.0).sum((1, 2))
    return jnp.where(possible, forward, 0.0), jnp.where(possible, binarisation, 0.0), durations, possible
