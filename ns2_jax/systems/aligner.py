"""A learned aligner: phones and a recording -> which frames speak which phone, from recordings and their texts alone.

Badlani et al. 2021 ("One TTS Alignment To Rule Them All") on the distances of `layers.aligner`: with E[t, p] = -temperature |q_t - k_p|^2

    S[t, p] = E[t, p] - log mean over the utterance's frames t' of exp E[t', p]
    L = forward-sum + binarisation
      = -log sum over monotonic alignments s of exp sum_t (S + log prior)[t, s_t]  -  w(step) sum_t (S + log prior)[t, s*_t]

per frame, s* the best alignment (Viterbi). The prior is the beta-binomial band round the diagonal; the binarisation loss, off before
`binarise_from`, trains on the durations that are taken. `align` leaves the prior out.

Where we leave the paper:
  * It normalises E over the phones of the text, we over the frames of the utterance. S is then an estimate of the log-likelihood ratio
    log p(x_t | phone) / p(x_t), the objective a mutual information of frames and phones (InfoNCE, van den Oord et al. 2018). Over
    phones it is their conditional entropy given the frames, which is low too when a few frequent phones take most frames: so ended
    our attempt (1 % of boundaries within 50 ms after 500 steps of `small`, its loss flat to step 1,000); over frames 50 steps gave 98 %.
  * No blank: every frame belongs to a phone, and pauses are phones. A pause may have no frame, so that texts can offer one wherever
    somebody may pause.
  * Log-mel features lose their mean over the utterance, which is voice and channel.
  * Sums over frames instead of means over phones, so that micro-batches add.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers.aligner import Aligner
from ns2_jax.maths import alignment, spectral
from ns2_jax.systems.system import Batch, Field, Program, SingleLoss, Sizes, Tree, tuples

DEVIATION = 2.4  # of log-mel magnitudes in speech, about


def share_twins(durations_bp: jax.Array, ids_bp: jax.Array, pause: int) -> jax.Array:
    """Two equal phones in a row (the t of "eight ten") sound as one and score alike wherever the boundary is: each gets half."""
    twin = (ids_bp[:, 1:] == ids_bp[:, :-1]) & (ids_bp[:, 1:] != pause)
    first = twin & ~jnp.pad(twin, ((0, 0), (1, 0)))[:, :-1]  # of three the third is left as it is
    given = jnp.where(first, (durations_bp[:, 1:] + durations_bp[:, :-1]) // 2 - durations_bp[:, 1:], 0)  # to the second
    return durations_bp + jnp.pad(given, ((0, 0), (1, 0))) - jnp.pad(given, ((0, 0), (0, 1)))


@dataclasses.dataclass(frozen=True)
class System(SingleLoss):
    """Numbers only. `network` are the fields of `layers.aligner.Aligner`; `size` samples a window, a multiple of `hop`."""

    network: Mapping[str, Any]
    phones: int = 128
    pause: int = 1  # id of the phone that may have no frame
    rate: int = 16000  # Hz
    hop: int = 200  # samples
    size: int = 400
    mels: int = 40
    floor: float = 3e-5
    prior: float = 1.0  # concentration of the beta-binomial
    binarise_from: int = 6000
    binarisation_weight: float = 1.0
    dtype: str = "float32"

    exported = (r"params/.*",)
    fields = {
        "audio": Field("bs", "float32"), "phones": Field("bp", "int32"), "frames": Field("b", "int32"), "weight": Field("b", "float32")}

    @property
    def net(self) -> Aligner:
        return Aligner(self.phones, **tuples(self.network), dtype=jnp.dtype(self.dtype))

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.rate, "hop": self.hop}

    def features(self, audio_bs: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """Log-mel magnitudes without their mean over the utterance, about unit scale, zero at padding: `[b, t, mels]`."""
        t, valid = mask_bt.shape[1], mask_bt[..., None]
        audio = audio_bs.reshape(audio_bs.shape[0], t, self.hop) * valid  # what follows the last whole frame is not heard
        mel = spectral.log_mel(audio.reshape(audio.shape[0], -1), self.rate, self.size, self.hop, self.mels, self.floor)
        mean = (mel * valid).sum(1, keepdims=True) / jnp.maximum(valid.sum(1, keepdims=True), 1)
        return (mel - mean) / DEVIATION * valid

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        b, t = 1, 4
        given = jnp.zeros((b, t, self.mels)), jnp.ones((b, t), bool), jnp.ones((b, 2), jnp.int32)
        return self.net.init(rng, *given)["params"], {}

    def scores(self, params: Tree, batch: Batch, prior: float) -> jax.Array:
        """S `[b, t, p]`, with the log prior where `prior` is not 0; zero at padding."""
        t = batch["audio"].shape[1] // self.hop
        mask, there = alignment.length_mask(batch["frames"], t), batch["phones"] > 0
        scores = self.net.apply({"params": params}, self.features(batch["audio"], mask), mask, batch["phones"])
        scores = alignment.likelihood_ratio(scores, mask, batch["frames"])
        if prior:
            scores += alignment.beta_binomial(batch["frames"], there.sum(-1), scores.shape[1:], prior)
        return jnp.where(mask[:, :, None] & there[:, None], scores, 0.0)

    def given(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the alignments' functions take besides the scores: frames, phones `[b]`, pauses `[b, p]`."""
        return batch["frames"], (batch["phones"] > 0).sum(-1), batch["phones"] == self.pause

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        """Sums over frames, to be divided by their number. A row with fewer frames than phones has no alignment and no weight."""
        del rest, rng
        scores, given = self.scores(params, batch, self.prior), self.given(batch)
        forward, binarisation, _, possible = alignment.objective(scores, *given)
        weight = batch["weight"] * possible
        terms = {"forward_sum": (jnp.where(weight > 0, forward, 0.0) * weight).sum(),
                 "binarisation": (jnp.where(weight > 0, binarisation, 0.0) * weight).sum()}
        on = self.binarisation_weight * (step >= self.binarise_from)
        metrics = terms | {"weight": (weight * batch["frames"]).sum()}
        return terms["forward_sum"] + on * terms["binarisation"], ({}, metrics)

    def align(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: the best alignment. `durations` in frames sum to `frames`, a pause may have none; `score` is the mean S of a frame in
        nats (0: the phones say nothing about the frames), about NEVER / frames where there are fewer frames than phones."""
        del rest, rng, sizes
        durations, best = alignment.viterbi(self.scores(params, inputs, 0.0), *self.given(inputs))
        durations = share_twins(durations, inputs["phones"], self.pause)
        return {"durations": durations, "score": best / jnp.maximum(inputs["frames"], 1)}

    def programs(self) -> dict[str, Program]:
        inputs = {name: self.fields[name] for name in ("audio", "phones", "frames")}
        return {"align": Program(self.align, inputs, {"durations": Field("bp", "int32"), "score": Field("b", "float32")})}

    def flops(self, sizes: Sizes) -> float:
        """The networks and the distances of one batch (features and alignments not counted): 2 per multiply-add."""
        net, (b, t, p) = self.net, (sizes["b"], sizes["t"], sizes["p"])
        block = net.kernel * net.width + 2 * net.expansion * net.width**2
        frame = net.input_kernel * self.mels * net.width + net.blocks * block + net.width * net.channels
        phone = net.text_kernel * 2 * net.text_width**2 + 2 * net.text_width * net.channels
        return 2.0 * b * (t * frame + p * phone + t * p * net.channels)
