"""Grad-StyleSpeech (Kang, Min & Hwang, ICASSP 2023, arXiv 2211.09383): mel diffusion that starts from an average mel in the voice of a prompt.

Phones are encoded without style, repeated over their frames, and turned into an average mel mu by a transformer whose norms the prompt's
style scales and shifts; a score network then turns N(mu, I) into speech. There is no public code: what the paper leaves open comes from
Meta-StyleSpeech, Grad-TTS and One TTS Alignment.

    dY = -1/2 beta(t) (Y - mu) dt + sqrt(beta(t)) dW, beta from 0.05 to 20,
    L = L_diff + L_prior + L_align, L_diff = E |sigma_t score(Y_t, t, mu, s) + eps|^2, L_prior = |mu - Y|^2

The residual R = Y - mu follows the plain variance-preserving process, `maths.process.VP`: the network is given R_t, so that the shared samplers
serve as they are. In Grad-TTS it is given Y_t = R_t + mu, with mu beside it: the same information (`given="y"`).

Choices where sources are silent, or where we leave them; each is a number of `System` (one that `configs/grad_stylespeech.py` leaves at its default
is set there):
  * The style is of another recording of the speaker, or of another cut (`configs/grad_stylespeech.py`). The paper's is of the target
    itself, which then carries its words and melody: `own_style`.
  * Rows lose their style to a learned one with `drop_style`. The null style goes into mu too, so that guidance has a null average of its own
    (ZET-Speech, 2305.13831). Both branches are asked about one and the same alpha Y_0 + sigma eps (`Programs._denoiser`); theirs share Y_t, which has
    (1 - alpha) times an average in it that is not the same for both.
  * `prediction="eps"` is the paper's score times -sigma; `"v"` velocity with `weighting="v"` counts low and high noise more alike: ours, for small
    networks with little time.
  * `objective="flow"` replaces process, prediction and weighting: the same network learns the velocity of flow matching, `u = eps - R` on
    `R_t = (1 - t) R + t eps`, with the mean square as its loss. `guided` tells it the guidance factor: for students of `systems.distill`.
  * The score network is a 2-D U-Net (`score.kind="unet"`) or, for CPUs, blocks over frames ("frames"). How the paper lets s into it is not
    known; here it joins the embedding of time.
  * The aligner is the repository's (`layers.aligner`, `maths.alignment.objective`), trained jointly where `aligner` has numbers; without, durations
    are the data's, exact. It is not RADTTS': `systems.aligner` names how it differs (ConvNeXt blocks, its own phone embedding, scores over frames, no
    blank), its loss has `align_weight` 1 for 0.1 and is a frame's for a phone's, its durations are used from the first step for the 6,000th, and its
    binarisation loss from `binarise_from` on, the 6,000th for the 18,000th.
  * Times are stratified over the batch's rows, for uniform. The style encoder's attention divides by the root of a head's width, for the whole's.
  * The duration predictor hears the style, and the text without sending gradients back (One TTS Alignment); its target is log(1 + frames).
  * Diffusion sees a random crop of `crop` frames (Grad-TTS), everything else whole utterances. `stop_prior` keeps its gradient from mu.
  * Mels are shifted and scaled by constants (`mel_mean`, `mel_deviation`). In sampling, predictions of clean mels are kept between the floor's
    and that of full scale.
Losses are means over a row's frames (phones for durations) times its frames, so that micro-batches add.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.aligner import Aligner
from ns2_jax.layers.guidance import Strength
from ns2_jax.layers.style import PriorEncoder, StyledPredictor, StyleEncoder, TextEncoder
from ns2_jax.layers.unet import NETWORKS
from ns2_jax.layers.vocoder import Vocoder
from ns2_jax.maths import alignment, process, prosody, samplers
from ns2_jax.systems.grad_stylespeech import cost
from ns2_jax.systems.grad_stylespeech.programs import Programs
from ns2_jax.systems.system import Batch, Denoising, Field, SingleLoss, Sizes, Tree, tuples

KEYS = ("aligner", "duration", "prior", "score", "style", "text")
"""Of `params`; the order numbers the networks' dropout keys."""
ALIGNER_DEVIATION = 2.4  # of log-mel magnitudes in speech, about


@dataclasses.dataclass(frozen=True)
class System(Programs, SingleLoss):
    """Numbers only. The mappings are the fields of their layers: `vocoder` of `layers.vocoder.Vocoder`, `text` and `prior` of
    `layers.style.StyledTransformer`, `style` of `StyleEncoder`, `duration` of `StyledPredictor`, `score` of `layers.unet.UNet` or `FrameNet` with
    its `kind`, `aligner` of `layers.aligner.Aligner` (empty: the data's durations)."""

    vocoder: Mapping[str, Any]
    text: Mapping[str, Any]
    prior: Mapping[str, Any]
    style: Mapping[str, Any]
    duration: Mapping[str, Any]
    score: Mapping[str, Any]
    aligner: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    phones: int = 128
    pause: int = 1  # id of the phone that may have no frame
    width: int = 256
    dropout: float = 0.1
    styled_prior: bool = True  # False: the ablation without the style-adaptive encoder
    mel_mean: float = 0.0  # nats
    mel_deviation: float = 1.0
    own_style: bool = False
    drop_style: float = 0.1
    crop: int = 172  # frames; 0 is all
    given: str = "r"  # what the score network hears: "r", or "y"
    objective: str = "paper"  # or "flow", for which the betas, prediction and weighting do not count
    beta_start: float = 0.05
    beta_end: float = 20.0
    t_lowest: float = 1e-5
    prediction: str = "eps"  # or "v"
    weighting: str = "eps"  # or "v", for predictions of v
    stop_prior: bool = False
    prior_weight: float = 1.0
    duration_weight: float = 1.0
    align_weight: float = 1.0
    align_prior: float = 1.0  # concentration of the beta-binomial
    binarise_from: int = 6000
    temperature: float = 1.0  # what sampling starts with, unless it is told
    guidance: float = 1.0  # so of the total factor,
    sampler: str = ""  # of the sampler ("": DPM-Solver++, of flow matching with F5-TTS's warp of time),
    evaluations: int = 16  # and of its steps
    guided: bool = False
    unroll: int = 1
    dtype: str = "float32"

    borrowed = {"rest/vocoder": "vocoder"}  # of the state: what config.init_from must fill, and the mapping of numbers that must be its own

    def __post_init__(self):
        if (self.prediction, self.weighting) not in (("eps", "eps"), ("v", "eps"), ("v", "v")):
            raise ValueError(f"prediction={self.prediction!r} with weighting={self.weighting!r}; expected eps with eps, v with eps, or v with v")
        if self.given not in ("r", "y"):
            raise ValueError(f"given={self.given!r}; expected 'r' or 'y'")
        if self.objective not in ("paper", "flow"):
            raise ValueError(f"objective={self.objective!r}; expected 'paper' or 'flow'")
        if self.score.get("kind") not in NETWORKS:
            raise ValueError(f"score.kind={self.score.get('kind')!r}; expected one of {sorted(NETWORKS)}")

    # Networks ---------------------------------------------------------------------------------------------------------

    @property
    def fields(self) -> dict[str, Field]:
        """What the data must deliver: without an aligner durations, and a prompt unless the target is its own."""
        fields = {"audio": Field("bs", "float32"), "phones": Field("bp", "int32"), "frames": Field("b", "int32"), "weight": Field("b", "float32")}
        if not self.aligner:
            fields["durations"] = Field("bp", "int32")
        if not self.own_style:
            fields |= {"prompt_audio": Field("bv", "float32"), "prompt_frames": Field("b", "int32")}
        return fields

    @property
    def vocoder_network(self) -> Vocoder:
        return Vocoder(**tuples(self.vocoder))  # float32: it is the exported vocoder, bit for bit

    codec_network = vocoder_network  # what turns audio into frames and back

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.vocoder_network.rate, "hop": self.vocoder_network.hop}

    @property
    def sizes(self) -> dict[str, int]:
        return {"c": self.vocoder_network.mels}

    @property
    def process(self) -> process.Process:
        """Of the residual R = Y - mu."""
        return process.VP(self.beta_start, self.beta_end) if self.objective == "paper" else process.Flow()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained modules by their key in `params`."""
        dtype = jnp.dtype(self.dtype)
        own = dict(width=self.width, dropout=self.dropout, dtype=dtype)
        stack = lambda given: {"unroll": self.unroll} | tuples(given)
        score = dict(tuples(self.score))
        nets = {
            "duration": StyledPredictor(**tuples(self.duration), dtype=dtype),
            "prior": PriorEncoder(self.sizes["c"], encoder=stack(self.prior), styled=self.styled_prior, **own),
            "score": NETWORKS[score.pop("kind")](**score, dtype=dtype),
            "style": StyleEncoder(**tuples(self.style), dropout=self.dropout, dtype=dtype),
            "text": TextEncoder(self.phones, encoder=stack(self.text), **own),
        }
        if self.guided:
            nets["guidance"] = Strength(nets["style"].width, dtype=dtype)
        return nets | ({"aligner": Aligner(self.phones, **tuples(self.aligner))} if self.aligner else {})  # float32, as its losses

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """Random networks, and a random vocoder that `config.init_from` is to fill."""
        nets, keys = self.networks, iter(jax.random.split(rng, 7))
        b, t, c = 1, 4, self.sizes["c"]
        ids, mel, yes, none = jnp.ones((b, 2), jnp.int32), jnp.zeros((b, t, c)), jnp.ones((b, t), bool), jnp.zeros((b,), bool)
        row, s = jnp.zeros((b, t, self.width)), jnp.zeros((b, nets["style"].width))
        given = {
            "text": (ids,), "style": (mel, yes, none), "prior": (row, jnp.zeros((b, t), jnp.int32), yes, s), "duration": (row, yes, s),
            "score": (mel, jnp.zeros((b,)), mel, s, yes), "aligner": (mel, yes, ids)}
        params = {name: nets[name].init(next(keys), *given[name])["params"] for name in given if name in nets}
        if self.guided:
            params["guidance"] = nets["guidance"].init(jax.random.fold_in(rng, 7), jnp.ones((b,)))["params"]
        return params, {"vocoder": {"params": {"gen": self.vocoder_network.init(next(keys), mel)["params"]}}}

    def apply(self, params: Tree, name: str, *args: Any, rng: jax.Array | None = None) -> Any:
        """A network's forward pass; with a key it is in training mode and drops out."""
        if name in ("aligner", "score"):  # these never drop out
            return self.networks[name].apply({"params": params[name]}, *args)
        rngs = None if rng is None else {"dropout": jax.random.fold_in(rng, KEYS.index(name))}
        return self.networks[name].apply({"params": params[name]}, *args, deterministic=rng is None, rngs=rngs)

    # Conditions -------------------------------------------------------------------------------------------------------

    def scaled(self, mel_btc: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """Log-mels shifted and scaled, zero at padding."""
        return (mel_btc - self.mel_mean) / self.mel_deviation * mask_bt[..., None]

    def mels(self, audio_bs: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """`scaled` log-mels of audio; what follows the last valid frame is not heard."""
        audio = audio_bs.reshape(*mask_bt.shape, -1) * mask_bt[..., None]
        return self.scaled(self.vocoder_network.encode(audio.reshape(audio_bs.shape)), mask_bt)

    def styles(self, params: Tree, mel_buc: jax.Array, frames_b: jax.Array, dropped_b: jax.Array, rng: jax.Array | None = None,
               window: int = 0) -> jax.Array:
        """Styles float32 `[b, d]` of `scaled` mels. With a `window`, of so many frames at a time, as long as prompts of training were, and the
        mean of them by their frames."""
        mask = alignment.length_mask(frames_b, mel_buc.shape[1])
        if not window or window == mask.shape[1]:
            return self.apply(params, "style", mel_buc, mask, dropped_b, rng=rng)
        parts = mask.shape[1] // window
        said = mask.reshape(-1, window)
        nobody = dropped_b | (frames_b == 0)
        each = self.apply(params, "style", mel_buc.reshape(-1, window, mel_buc.shape[-1]), said, jnp.repeat(nobody, parts), rng=rng)
        share = jnp.where(nobody[:, None], 1.0, said.sum(-1).reshape(-1, parts)).astype(jnp.float32)
        return (each.reshape(-1, parts, each.shape[-1]) * share[..., None]).sum(1) / share.sum(1, keepdims=True)

    def average(self, params: Tree, h_bpc: jax.Array, durations_bp: jax.Array, style_bd: jax.Array, size: int,
                rng: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """(mu `[b, size, c]`, mask `[b, size]`): phones over their frames, then the style-adaptive encoder."""
        align = alignment.alignment(durations_bp, size)
        mask = align.any(-1)
        starts = jnp.cumsum(durations_bp, -1) - durations_bp
        place = jnp.where(mask, jnp.arange(size) - jnp.where(align, starts[:, None], 0).sum(-1), 0)
        return self.apply(params, "prior", alignment.expand(h_bpc, align), place, mask, style_bd, rng=rng), mask

    def alignments(self, params: Tree, mel_btc: jax.Array, mask_bt: jax.Array, inputs: Batch, concentration: float) -> jax.Array:
        """The aligner's scores `[b, t, p]`, with the log prior where `concentration` is not 0; zero at padding. The mel loses its mean over
        the utterance, which is voice and channel."""
        there, valid = inputs["phones"] > 0, mask_bt[..., None]
        mean = mel_btc.sum(1, keepdims=True) / jnp.maximum(valid.sum(1, keepdims=True), 1)
        features = (mel_btc - mean) * (self.mel_deviation / ALIGNER_DEVIATION) * valid
        scores = alignment.likelihood_ratio(self.apply(params, "aligner", features, mask_bt, inputs["phones"]), mask_bt, inputs["frames"])
        if concentration:
            scores += alignment.beta_binomial(inputs["frames"], there.sum(-1), scores.shape[1:], concentration)
        return jnp.where(valid & there[:, None], scores, 0.0)

    # Loss -------------------------------------------------------------------------------------------------------------

    def draws(self, rng: jax.Array, rows: int, frames: int) -> dict[str, jax.Array]:
        """All randomness of a step: times, noise, where crops begin (share of what is left), which rows lose their style, dropout's key."""
        keys = jax.random.split(rng, 5)
        size = min(self.crop or frames, frames)
        return {
            "t": process.stratified(keys[0], rows, self.t_lowest), "noise": jax.random.normal(keys[1], (rows, size, self.sizes["c"])),
            "start": jax.random.uniform(keys[2], (rows,)), "drop_style": jax.random.uniform(keys[3], (rows,)) < self.drop_style,
            "dropout": keys[4]}

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        draws = self.draws(rng, batch["audio"].shape[0], batch["audio"].shape[1] // self.vocoder_network.hop)
        return self.loss_given(params, rest, batch, draws, step)

    def loss_given(self, params: Tree, rest: Tree, batch: Batch, draws: dict, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        """The loss with its randomness given; `draws["dropout"]` None means no dropout. Sums over frames, to be divided by their number. A
        row that cannot be aligned (fewer frames than phones) has no weight."""
        del rest
        frames = batch["frames"]
        y, mask, s, _, mu, weight, terms = self.conditions(params, batch, draws["drop_style"], draws["dropout"])
        terms["diffusion"] = self.diffusion(params, y, jax.lax.stop_gradient(mu) if self.stop_prior else mu, s, frames, draws)

        rows = weight * frames  # what a row counts
        total = self.weighed(terms, step)
        metrics = {name: (term * rows).sum() for name, term in terms.items()}
        for i in range(4):  # by quarter of t; t is stratified, so a quarter of the rows fall in each
            metrics[f"diffusion_t{i}"] = 4 * (terms["diffusion"] * rows * (jnp.floor(draws["t"] * 4) == i)).sum()
        return (total * rows).sum(), ({}, metrics | {"weight": rows.sum()})

    def weighed(self, terms: Mapping[str, jax.Array], step: jax.Array) -> jax.Array:
        """Their sum with weights, at a step of the training."""
        on = {"forward_sum": self.align_weight, "binarisation": self.align_weight * (step >= self.binarise_from),
              "duration": self.duration_weight, "prior": self.prior_weight, "diffusion": 1.0}
        return sum(on[name] * term for name, term in terms.items())

    def conditions(self, params: Tree, batch: Batch, dropped_b: jax.Array, rng: jax.Array | None) -> tuple:
        """Of a training batch whose rows `dropped_b` have no style: mels, mask, style, text with its durations (a pair), average mel, weights of
        the rows, and the losses beside diffusion, each `[b]`: per frame, or per phone."""
        frames, hop = batch["frames"], self.vocoder_network.hop
        size = batch["audio"].shape[1] // hop
        mask, there, weight = alignment.length_mask(frames, size), batch["phones"] > 0, batch["weight"]
        y = self.mels(batch["audio"], mask)
        if self.own_style:
            prompt, heard = y, frames
        else:
            heard = batch["prompt_frames"]
            prompt = self.mels(batch["prompt_audio"], alignment.length_mask(heard, batch["prompt_audio"].shape[1] // hop))
        s = self.styles(params, prompt, heard, dropped_b, rng)
        h = self.apply(params, "text", batch["phones"], rng=rng)

        terms: dict[str, jax.Array] = {}
        if self.aligner:
            scores = self.alignments(params, y, mask, batch, self.align_prior)
            forward, binarisation, durations, possible = alignment.objective(
                scores, frames, there.sum(-1), batch["phones"] == self.pause)
            durations, weight = jnp.where(possible[:, None], durations, 0), weight * possible
            terms |= {"forward_sum": forward / jnp.maximum(frames, 1), "binarisation": binarisation / jnp.maximum(frames, 1)}
        else:
            durations = batch["durations"]
        log_duration = self.apply(params, "duration", jax.lax.stop_gradient(h), there, s, rng=rng)
        off = jnp.square(prosody.duration_error(log_duration, durations)) * there
        terms["duration"] = off.sum(-1) / jnp.maximum(there.sum(-1), 1)
        mu, _ = self.average(params, h, durations, s, size, rng)
        terms["prior"] = (jnp.square(mu - y).mean(-1) * mask).sum(-1) / jnp.maximum(frames, 1)
        return y, mask, s, (h, durations), mu, weight, terms

    def denoising(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array | None = None) -> Denoising:
        """A batch as `systems.distill` needs it; with a key, in training mode. Whole utterances, and the mels themselves, not their residuals: of
        two averages, of two networks or of style and no style, the state `R_t + alpha mu = alpha Y + sigma eps` is the same."""
        del rest
        none, step = jnp.zeros(batch["frames"].shape, bool), jnp.int32(self.binarise_from)
        y, mask, s, (h, durations), mu, weight, terms = self.conditions(params, batch, none, rng)
        if not self.guided:
            null = self.styles(params, y, batch["frames"], ~none)
            apart = self.average(params, h, durations, null, mask.shape[1])[0], null

        def said(z: jax.Array, t: jax.Array, mu: jax.Array, s: jax.Array) -> jax.Array:
            return (self._clean(params, z - self.process.levels(t, z)[0] * mu, t, mu, s, mask) + mu) * mask[..., None]

        def denoise(z: jax.Array, t: jax.Array, factor_b: jax.Array | None = None, rng: jax.Array | None = None) -> jax.Array:
            del rng  # the score network does not drop out
            if self.guided:
                return said(z, t, mu, self.told(params, s, jnp.ones(t.shape) if factor_b is None else factor_b))
            x0 = said(z, t, mu, s)
            if factor_b is None:
                return x0
            return samplers.guide(said(z, t, *apart), x0, factor_b[:, None, None])

        prior = jnp.broadcast_to(self.weighed(terms, step)[:, None], mask.shape)
        return Denoising(y, mask, mask * weight[:, None], prior, denoise)

    def told(self, params: Tree, s_bd: jax.Array, factor_b: jax.Array) -> jax.Array:
        """The style as the score network of a system that is `guided` hears it: with the guidance factors in it."""
        return s_bd + self.networks["guidance"].apply({"params": params["guidance"]}, factor_b)

    def diffusion(self, params: Tree, y: jax.Array, mu: jax.Array, s: jax.Array, frames_b: jax.Array, draws: dict) -> jax.Array:
        """L_diff of a random crop of each row, mean over its valid frames and bins: `[b]`."""
        t, noise = draws["t"], draws["noise"]
        start = jnp.floor(draws["start"] * (jnp.maximum(frames_b - noise.shape[1], 0) + 1)).astype(jnp.int32)
        at = start[:, None] + jnp.arange(noise.shape[1])
        mask = at < frames_b[:, None]
        cut = lambda x: jnp.take_along_axis(x, jnp.minimum(at, x.shape[1] - 1)[..., None], 1) * mask[..., None]
        mu, x0 = cut(mu), cut(y - mu)
        alpha, sigma = self.process.levels(t, x0)
        z = self.process.diffuse(x0, noise, t) * mask[..., None]
        predicted = self.heard(params, z, t, mu, s, mask)
        if self.objective == "flow":
            error = predicted - (noise - x0)
        else:
            error = predicted - (noise if self.prediction == "eps" else alpha * noise - sigma * x0)
        if self.objective == "paper" and (self.prediction, self.weighting) == ("v", "eps"):
            error = alpha * error  # eps = sigma z + alpha v
        return (jnp.square(error).mean(-1) * mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)

    def heard(self, params: Tree, z: jax.Array, t: jax.Array, mu: jax.Array, s: jax.Array, mask: jax.Array) -> jax.Array:
        """The score network on the residual's state z, as it is or with the mean back in it."""
        return self.apply(params, "score", z + mu if self.given == "y" else z, t, mu, s, mask)

    def clean(self, predicted: jax.Array, z: jax.Array, t_b: jax.Array) -> jax.Array:
        """What the network says of the residual's state `z [b, t, c]` at times `t_b`, as the clean residual."""
        back = {"eps": process.x0_from_eps, "v": process.x0_from_v}[self.prediction] if self.objective == "paper" else process.x0_from_u
        return back(z, predicted, *self.process.levels(t_b, z))

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one training batch: 2 per multiply-add of every matrix product and convolution."""
        return cost.forward(self, sizes)

    @property
    def silence(self) -> float:
        """The log-mel of nothing."""
        return math.log(self.vocoder_network.floor)
