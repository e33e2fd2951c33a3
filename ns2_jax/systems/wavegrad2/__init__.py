"""WaveGrad 2 (Chen et al., Interspeech 2021, arXiv 2106.09660): phones straight to waveform, by denoising it.

An encoder reads the phones, each becomes frames by Gaussian upsampling with its duration and a learned range, and WaveGrad's decoder
predicts the noise in a noisy waveform from these frames and the noise level. There is no spectrogram in between.

    y_level = level y + sqrt(1 - level^2) eps,    L = |eps_hat(y_level, frames, level) - eps| + duration + mel

The level, sqrt(alpha bar), is continuous: a step n of the training schedule is drawn, then a level between those of n and n - 1, so that one
model serves every schedule. The encoder reads whole utterances; the decoder trains on windows of `window` frames and speaks whole ones.

What we know of the paper is second-hand in parts (its numbers come from memory and from public implementations). Where we leave it:
  * It speaks in one voice. Here the voice is that of a prompt, as one vector from the prompt's mel, added to the phones and told to every FiLM.
  * Layer norm instead of batch norm. No silence at word boundaries but the pauses that the data has. Durations are predicted as
    log(1 + frames); ranges are `RANGE_FLOOR` + softplus, and the weights are made by logarithm and softmax: no NaN.
  * `emphasis` and `gain` filter and scale the waveform that is diffused (0 and 1: the paper). Speech has 40 dB less power at the top of its
    band than at the bottom, so with white noise the top is decided in the last few steps of few; a pre-emphasis lets all bands appear at the
    same time, and the gain lets them appear where the schedule has its steps.
  * `patch` and `fold` of the decoder: see `layers.wavegrad`.
  * `phone_position` tells frames their place in the phone: ours.
  * Rows lose their voice or text with `drop_*`, for classifier-free guidance.
The paper's ablations: `window`, `mask_*` (parts of the frames are hidden, as in SpecAugment), `mel_weight` (mel predicted from the frames),
`width`, `decoder.repeats`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.tacotron import Frames, RecurrentPredictor, TextEncoder, VoiceEncoder
from ns2_jax.layers.wavegrad import WaveGrad
from ns2_jax.maths import alignment, process, prosody, schedules, spectral
from ns2_jax.maths.schedules import MOST_SIGNAL
from ns2_jax.systems.system import Batch, Field, SingleLoss, Sizes, Tree, tuples
from ns2_jax.systems.wavegrad2 import cost
from ns2_jax.systems.wavegrad2.programs import DEVIATION, Programs

KEYS = ("encoder", "duration", "range", "voice", "frames", "decoder")
"""Of `params`; the order numbers the networks' dropout keys."""
RANGE_FLOOR = 0.3  # frames
MEAN = -5.0
"""Of log-mel magnitudes in speech, about."""


@dataclasses.dataclass(frozen=True)
class System(Programs, SingleLoss):
    """Numbers only. `encoder` are the fields of `layers.tacotron.TextEncoder`, `predictor` of RecurrentPredictor (for duration and range),
    `voice` of VoiceEncoder, `decoder` of `layers.wavegrad.WaveGrad`."""

    encoder: Mapping[str, Any]
    predictor: Mapping[str, Any]
    voice: Mapping[str, Any]
    decoder: Mapping[str, Any]
    phones: int = 128
    width: int = 1024  # of the encoder and of the frames
    rate: int = 24000  # Hz
    hop: int = 300  # samples
    window: int = 64  # frames that the decoder trains on; 0 is the whole utterance
    betas: tuple[float, float, int] = (1e-6, 0.01, 1000)  # first, last, steps of the training schedule
    schedules: tuple[tuple[float, ...], ...] = ()  # betas of schedules for sampling, each for as many steps as it has
    most_signal: float = MOST_SIGNAL  # the largest last abar of a schedule
    cleanest: float = 5.0  # log signal-to-noise ratio where schedules that are not listed end: noise 43 dB under full scale, 22 under speech
    steps: int = 50
    emphasis: float = 0.0
    gain: float = 1.0
    clamp: float = 1.0  # data estimates are cut at so much of full scale while sampling; 0 is never
    phone_position: bool = False
    mels: int = 128  # of the prompt, the auxiliary task and the judgement of schedules
    mel_size: int = 1200  # samples of a window, a multiple of the hop
    mel_floor: float = 1e-5
    duration_weight: float = 1.0
    mel_weight: float = 0.0
    mask_count: int = 0  # stretches of frames, and of channels, that are hidden
    mask_frames: int = 8  # at most so many in each
    mask_channels: int = 32
    drop_prompt: float = 0.1
    drop_text: float = 0.1
    temperature: float = 1.0  # standard deviation of what sampling starts with
    dtype: str = "float32"

    exported = (r"params/.*",)
    fields = {
        "audio": Field("bs", "float32"), "phones": Field("bp", "int32"), "durations": Field("bp", "int32"), "frames": Field("b", "int32"),
        "prompt_audio": Field("bv", "float32"), "prompt_frames": Field("b", "int32"), "weight": Field("b", "float32"),
    }
    sizes = {"n": 6}  # steps of a schedule that is tried

    def __post_init__(self):
        net = self.networks["decoder"]
        net.check()
        if net.hop != self.hop:
            raise ValueError(f"decoder: patch {net.patch} times up {net.up} is {net.hop} samples, but hop={self.hop}")
        for betas in self.schedules:
            schedules.check(schedules.logsnr(betas), self.most_signal)

    # Networks ---------------------------------------------------------------------------------------------------------

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.rate, "hop": self.hop}

    @property
    def process(self) -> process.VP:
        """The continuous process that the training schedule is the discrete one of; its level at every time is the network's."""
        first, last, steps = self.betas
        return process.VP(first * steps, last * steps)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained modules by their key in `params`."""
        dtype = jnp.dtype(self.dtype)
        predictor = RecurrentPredictor(**tuples(self.predictor), dtype=dtype)
        deep = {name: tuple(map(tuple, value)) if name == "dilations" else value for name, value in tuples(self.decoder).items()}
        return {
            "encoder": TextEncoder(self.phones, self.width, **tuples(self.encoder), dtype=dtype),
            "duration": predictor, "range": predictor,
            "voice": VoiceEncoder(**tuples(self.voice), dtype=dtype),
            "frames": Frames(self.width, self.phone_position, self.mels if self.mel_weight else 0, dtype=dtype),
            "decoder": WaveGrad(**deep, dtype=dtype),
        }

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        nets, keys = self.networks, iter(jax.random.split(rng, len(KEYS)))
        ids, yes = jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool)
        h, voice = jnp.zeros((1, 2, self.width)), jnp.zeros((1, nets["voice"].width))
        given = {
            "encoder": (ids,), "duration": (h, yes), "range": (jnp.zeros((1, 2, self.width + 1)), yes),
            "voice": (jnp.zeros((1, 2, self.mels)), yes, yes[:, 0]), "frames": (h, voice, jnp.zeros((1, 2, 3))),
            "decoder": (jnp.zeros((1, 2 * self.hop)), h, jnp.ones((1,)), voice, yes),
        }
        method = {"frames": "everything"}
        params = {name: nets[name].init(next(keys), *given[name], method=method.get(name))["params"] for name in KEYS}
        return params, {}

    def apply(self, params: Tree, name: str, *args: Any, rng: jax.Array | None = None) -> Any:
        """A network's forward pass; with a key it is in training mode and drops out."""
        rngs = None if rng is None else {"dropout": jax.random.fold_in(rng, KEYS.index(name))}
        return self.networks[name].apply({"params": params[name]}, *args, deterministic=rng is None, rngs=rngs)

    def call(self, params: Tree, name: str, method: str, *args: Any) -> Any:
        """A method of a network that never drops out."""
        return self.networks[name].apply({"params": params[name]}, *args, method=method)

    # Waveforms --------------------------------------------------------------------------------------------------------

    def shaped(self, audio_bs: jax.Array) -> jax.Array:
        """The waveform as it is diffused: pre-emphasised and scaled."""
        past = jnp.pad(audio_bs, ((0, 0), (1, 0)))[:, :-1]
        return self.gain * (audio_bs - self.emphasis * past)

    def unshaped(self, y_bs: jax.Array) -> jax.Array:
        """The inverse of `shaped`: a filter that remembers, as an associative scan."""
        x = y_bs / self.gain
        if not self.emphasis:
            return x
        joined = lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1])
        return jax.lax.associative_scan(joined, (jnp.full_like(x, self.emphasis), x), axis=1)[1]

    def mel(self, audio_bs: jax.Array) -> jax.Array:
        """Log-mel magnitudes at about unit scale, `[b, s / hop, mels]`."""
        return (spectral.log_mel(audio_bs, self.rate, self.mel_size, self.hop, self.mels, self.mel_floor) - MEAN) / DEVIATION

    def level(self, place_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(level, sigma) at places of the training schedule in [0, 1], linear in the level between two steps of it."""
        _, rest = schedules.levels(schedules.linear(*self.betas))  # of 1 - level, or small noise would be rounded away
        off = jnp.interp(place_b * (len(rest) - 1), jnp.arange(len(rest), dtype=jnp.float32), jnp.asarray(rest, jnp.float32))
        return 1 - off, jnp.sqrt(off * (2 - off))

    # Conditions -------------------------------------------------------------------------------------------------------

    def voices(self, params: Tree, inputs: Batch, dropped_b: jax.Array) -> jax.Array:
        """The prompts' voices, `[b, c]`."""
        size = inputs["prompt_audio"].shape[1] // self.hop
        mask = alignment.length_mask(inputs["prompt_frames"], size)
        heard = inputs["prompt_audio"] * jnp.repeat(mask, self.hop, 1)
        return self.apply(params, "voice", self.mel(heard) * mask[..., None], mask, dropped_b)

    def text(self, params: Tree, ids_bp: jax.Array, voice_bc: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Phone vectors `[b, p, width]` that know the voice, zero at padding."""
        h = self.call(params, "frames", "voiced", self.apply(params, "encoder", ids_bp, rng=rng), voice_bc)
        return h * (ids_bp > 0)[..., None].astype(h.dtype)

    def ranges(self, params: Tree, h_bpc: jax.Array, durations_bp: jax.Array, real_bp: jax.Array) -> jax.Array:
        """How far each phone is heard, in frames: float32 `[b, p]`, at least RANGE_FLOOR."""
        length = jnp.log1p(durations_bp.astype(jnp.float32))[..., None]
        return RANGE_FLOOR + nn.softplus(self.apply(params, "range", jnp.concatenate([h_bpc.astype(jnp.float32), length], -1), real_bp))

    def frames(
        self, params: Tree, h_bpc: jax.Array, durations_bp: jax.Array, real_bp: jax.Array, size: int, first_b: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(frames `[b, size, width]` from frame `first_b` on, float32 and zero past the end; mask `[b, size]`)."""
        ranges = self.ranges(params, h_bpc, durations_bp, real_bp)
        spoken = alignment.alignment(durations_bp, size, first_b)
        mask = spoken.any(-1)
        weights = alignment.gaussian(durations_bp, ranges, real_bp, size, first_b)
        c = jnp.einsum("btp,bpc->btc", weights, h_bpc.astype(jnp.float32))
        if self.phone_position:
            c = c + self.call(params, "frames", "place", alignment.phone_position(durations_bp, spoken, first_b))
        return c * mask[..., None], mask

    def hide(self, c_btc: jax.Array, places: Mapping[str, jax.Array]) -> jax.Array:
        """Frames with `mask_count` stretches of time and of channels at zero (SpecAugment, Park et al. 2019, on hidden features)."""

        def kept(name: str, size: int, most: int) -> jax.Array:
            begin, length = places[name][..., 0, None], places[name][..., 1, None]  # [b, count, 1], shares
            length = jnp.floor(length * (min(most, size) + 1))
            begin = jnp.floor(begin * (size - length + 1))
            at = jnp.arange(size)
            return ~((at >= begin) & (at < begin + length)).any(1)

        b, t, c = c_btc.shape
        time, channels = kept("hide_frames", t, self.mask_frames), kept("hide_channels", c, self.mask_channels)
        return c_btc * time[:, :, None] * channels[:, None, :]

    # Loss -------------------------------------------------------------------------------------------------------------

    def draws(self, rng: jax.Array, rows: int, frames: int) -> dict[str, jax.Array]:
        """All randomness of a step: where the windows are, levels (stratified over the rows), noise, what is dropped and hidden."""
        keys, size = jax.random.split(rng, 7), self.window_of(frames)
        u = jax.random.uniform(keys[3], (rows,))
        shares = lambda key: jax.random.uniform(key, (rows, self.mask_count, 2))
        return {
            "window": jax.random.uniform(keys[0], (rows,)), "place": process.stratified(keys[1], rows, 0.0),
            "noise": jax.random.normal(keys[2], (rows, size * self.hop)),
            "drop_prompt": u < self.drop_text + self.drop_prompt, "drop_text": u < self.drop_text,
            "hide_frames": shares(keys[4]), "hide_channels": shares(keys[5]), "dropout": keys[6],
        }

    def window_of(self, frames: int) -> int:
        """Frames that the decoder sees of rows of so many."""
        return min(self.window or frames, frames)

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        del step
        b, samples = batch["audio"].shape
        return self.loss_given(params, rest, batch, self.draws(rng, b, samples // self.hop))

    def loss_given(self, params: Tree, rest: Tree, batch: Batch, draws: dict) -> tuple[jax.Array, tuple[Tree, dict]]:
        """The loss with its randomness given; `draws["dropout"]` None means no dropout.

        Everything is a sum over the valid frames of the windows, to be divided by their number (`metrics["weight"]`): noise as the mean over
        a frame's samples, mel over its bins, duration as the row's mean over phones. `eps_l0` to `eps_l3` are the noise
        term by quarter of the training schedule, the first the cleanest.
        """
        del rest
        rng, real = draws["dropout"], batch["phones"] > 0
        b, samples = batch["audio"].shape
        hop, size = self.hop, self.window_of(samples // self.hop)
        first = jnp.floor(draws["window"] * (jnp.maximum(batch["frames"] - size, 0) + 1)).astype(jnp.int32)

        voice = self.voices(params, batch, draws["drop_prompt"])
        h = self.text(params, batch["phones"], voice, rng)
        log_duration = self.apply(params, "duration", h, real, rng=rng)
        c, mask = self.frames(params, h, batch["durations"], real, size, first)
        weight = mask * batch["weight"][:, None]

        heard = batch["audio"] * jnp.repeat(alignment.length_mask(batch["frames"], samples // hop), hop, 1)
        side = -(-(self.mel_size - hop) // (2 * hop))  # frames around the window that its mel looks at
        padded = jnp.pad(heard, ((0, 0), (side * hop, (side + size) * hop)))
        cut = jax.vmap(lambda row, at: jax.lax.dynamic_slice(row, (at * hop,), ((size + 2 * side) * hop,)))
        around = cut(padded, first)
        terms = {"duration": self.duration_term(log_duration, batch, size)}
        if self.mel_weight:
            mel = self.mel(around)[:, side : side + size]
            terms["mel"] = jnp.abs(self.call(params, "frames", "mel", c, mask) - mel).mean(-1)

        shaped = cut(jnp.pad(self.shaped(heard), ((0, 0), (side * hop, (side + size) * hop))), first)[:, side * hop : (side + size) * hop]
        c = self.call(params, "frames", "without", self.hide(c, draws) if self.mask_count else c, draws["drop_text"])
        level, sigma = self.level(draws["place"])
        noisy = level[:, None] * shaped + sigma[:, None] * draws["noise"]
        off = self.networks["decoder"].apply({"params": params["decoder"]}, noisy, c, level, voice, mask) - draws["noise"]
        terms["eps"] = jnp.abs(off).reshape(b, size, hop).mean(-1)

        total = terms["eps"] + self.duration_weight * terms["duration"] + (self.mel_weight * terms["mel"] if self.mel_weight else 0.0)
        metrics = {name: (term * weight).sum() for name, term in terms.items()}
        for i in range(4):  # places are stratified, so a quarter of the rows fall in each
            inside = (jnp.floor(draws["place"] * 4) == i)[:, None]
            metrics[f"eps_l{i}"] = 4 * (terms["eps"] * weight * inside).sum()
        return (total * weight).sum(), ({}, metrics | {"weight": weight.sum()})

    def duration_term(self, log_duration_bp: jax.Array, batch: Batch, size: int) -> jax.Array:
        """Squared error of log(1 + frames), each row's mean over its phones, `[b, size]`."""
        real = (batch["phones"] > 0).astype(jnp.float32)
        off = jnp.square(prosody.duration_error(log_duration_bp, batch["durations"])) * real
        return jnp.broadcast_to((off.sum(-1) / jnp.maximum(real.sum(-1), 1.0))[:, None], (len(real), size))

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one training batch: 2 per multiply-add of every matrix product and convolution."""
        return cost.forward(self, sizes)
