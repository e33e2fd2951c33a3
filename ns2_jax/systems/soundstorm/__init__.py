"""SoundStorm (Borsos et al. 2023, arXiv 2305.09636): codec tokens filled in by parallel masked decoding.

A bidirectional Conformer sees, frame by frame, the sum of the codes that are known and a condition that is aligned with the frames, and
says the codes of one level. Training hides tokens (`maths.masking.draw` and `hide`, the paper's section 3.2):

    L = - sum over hidden tokens of the row's level of log p(token | what is not hidden, condition)  [+ duration + pitch + phase]

Decoding goes from coarse to fine, some passes a level (`maths.masking.decode`, section 3.3), here (steps, 1, ..., 1) unless told.

The condition is `phones`, expanded by durations (then predictors of duration and pitch, which listen to the known frames, make it a
text-to-speech system), `semantic`, a token a frame (the paper's), or `both`. The codec in `rest` is frozen.

Where the paper is silent, or where we leave it; each is a number of `System`:
  * `level_law="linear"` draws level q with probability in proportion to levels - q (MaskGCT), "first" the first level half of the time and the
    others by that law; the paper's is "uniform".
  * `longest_prompt` is the share of an utterance that its prompt may take; 1 in the paper, of whose frames half are then no target.
  * `decoder.vector_head` makes logits also of the codes' vectors in the codec; off in the paper's layout.
  * `infill` is how often the target ends before the utterance does, which trains editing; 0 in the paper.
  * A learned vector of the level to predict is added (`decoder.level_vector`), a layer norm follows the sum of embeddings, and every level
    has its own vector for what is hidden.
  * Rows lose the prompt, the condition or both with `drop_*`, for guidance: `log p = log p_without + w (log p_with - log p_without)`.
  * `hide_text` is how often the condition of a prompt stays unknown too, as with a voice whose words nobody wrote down. Such frames get one
    learned vector, and the phones that lie in them are not encoded.
  * `voice` pools the known frames into one vector (`layers.tacotron.VoiceEncoder`), which joins every phone or token: ours, off in the paper's
    layout. A small model learns voices by attention alone long after words (`results/naturalspeech2`).
  * What prompt, voice and phase's reader hear of the codec are its coarse levels (all, where it has no coarse ones), turned to axes that are less
    correlated and divided by their deviations to the power `whiten` (`layers.latents`), as in NaturalSpeech 2; finer levels they do not hear.
  * `phase_harmonics` tells the decoder where in the pitch's period a frame begins (`layers.pitch_phase`): ours, off in the paper's layout.
  * Phones bring their place and log duration to every frame, and the F0 of the frame in bins where `pitch` is given.
  * Temperature, nucleus and noise of the choice are ours; the paper names none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers import codec as codecs
from ns2_jax.layers import quantize
from ns2_jax.layers.conformer import TokenConformer
from ns2_jax.layers.latents import CoarseLatents
from ns2_jax.layers.linear import Embed
from ns2_jax.layers.pitch_phase import PitchPhase
from ns2_jax.layers.predictors import Predictor
from ns2_jax.layers.tacotron import VoiceEncoder
from ns2_jax.layers.transformer import PhoneEncoder, PromptEncoder
from ns2_jax.maths import alignment, masking, prosody
from ns2_jax.systems.soundstorm.programs import Programs
from ns2_jax.systems.system import Batch, Field, SingleLoss, Sizes, Tree, tuples

CONDITIONS = ("phones", "semantic", "both")
LAWS = ("uniform", "linear", "first")
KEYS = ("decoder", "duration", "phones", "pitch", "prompt", "semantic", "voice", "phase")
"""Of `params`; the order numbers the networks' dropout keys."""


@dataclasses.dataclass(frozen=True)
class System(Programs, CoarseLatents, SingleLoss):
    """Numbers only. `codec` are the fields of `layers.codec.Codec`; the other mappings those of their layers."""

    codec: Mapping[str, Any]
    decoder: Mapping[str, Any]  # layers.conformer.TokenConformer
    phone_encoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # layers.transformer.Transformer
    prompt_encoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    duration: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # layers.predictors.Predictor
    pitch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    voice: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # layers.tacotron.VoiceEncoder; without `hidden`, or with 0: none, the paper
    levels: int = 12  # that are modelled, the codec's first ones
    codec_levels: int = 12
    codes: int = 1024
    condition: str = "phones"
    phones: int = 128
    semantic: int = 1024
    width: int = 512  # of the condition
    prenet: int = 2
    encoder_dropout: float = 0.1
    pitch_bins: int = 256
    pitch_range: tuple[float, float] = (50.0, 1100.0)  # Hz
    pitch_mean: float = 5.0  # of log F0 (148 Hz)
    pitch_deviation: float = 0.4
    whiten: float = 1.0  # of the latents that prompt, voice and phase's reader hear
    phase_harmonics: int = 0  # of the pitch, whose phase the decoder is told; 0: none
    level_law: str = "linear"
    longest_prompt: float = 1.0
    infill: float = 0.3
    hide_text: float = 0.5
    drop_prompt: float = 0.1
    drop_text: float = 0.05
    drop_both: float = 0.1
    duration_weight: float = 1.0
    pitch_weight: float = 1.0
    voicing_weight: float = 1.0
    steps: int = 16  # passes of the first level in decoding, unless it is told
    temperature: float = 1.0
    top_p: float = 0.95
    choice: float = 4.5
    unroll: int = 1
    dtype: str = "float32"

    fresh = (r"params/phase/.*",)  # what a model to go on from may not have

    def __post_init__(self):
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition={self.condition!r}; expected one of {CONDITIONS}")
        if self.level_law not in LAWS:
            raise ValueError(f"level_law={self.level_law!r}; expected one of {LAWS}")
        if not 1 <= self.levels <= self.codec_levels:
            raise ValueError(f"levels={self.levels} of a codec with codec_levels={self.codec_levels}")

    # Networks ---------------------------------------------------------------------------------------------------------

    @property
    def speaks(self) -> bool:
        return self.condition != "semantic"

    @property
    def turns(self) -> bool:
        """Is the pitch's phase told?"""
        return bool(self.speaks and self.pitch and self.phase_harmonics)

    @property
    def pools(self) -> bool:
        """Is there a voice beside the known frames?"""
        return bool(self.voice.get("hidden"))

    @property
    def fields(self) -> dict[str, Field]:
        found = {"codes": Field("btq", "uint16"), "frames": Field("b", "int32"), "weight": Field("b", "float32")}
        if self.speaks:
            found |= {"phones": Field("bp", "int32"), "durations": Field("bp", "int32")} | ({"f0": Field("bt", "float32")} if self.pitch else {})
        return found | ({"semantic": Field("bt", "int32")} if self.condition != "phones" else {})

    @property
    def sizes(self) -> dict[str, int]:
        return {"q": self.levels, "c": self.codec_network.coarse_channels}

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.codec_network.rate, "hop": self.codec_network.hop}

    @property
    def codec_network(self) -> codecs.Codec:
        return codecs.Codec(**tuples(self.codec))  # float32: it is the exported codec, bit for bit

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained modules by their key in `params`."""
        dtype = jnp.dtype(self.dtype)
        numbers = lambda given: {"unroll": self.unroll} | tuples(given)
        own = dict(width=self.width, dropout=self.encoder_dropout, dtype=dtype)
        nets = {"decoder": TokenConformer(levels=self.levels, codes=self.codes, dtype=dtype, **numbers(self.decoder))}
        if self.pools:
            nets["voice"] = VoiceEncoder(self.width, dtype=dtype, **self.voice)
        if self.condition != "phones":
            nets["semantic"] = Embed(self.semantic, self.width, nn.initializers.normal(1.0), dtype=dtype)
        if self.speaks:
            bins = self.pitch_bins if self.pitch else 0
            nets["phones"] = PhoneEncoder(self.phones, encoder=numbers(self.phone_encoder), prenet=self.prenet, pitch_bins=bins, null=False, **own)
            nets["prompt"] = PromptEncoder(encoder=numbers(self.prompt_encoder), **own)
            nets["duration"] = Predictor(outputs=1, dtype=dtype, **numbers(self.duration))
            if self.pitch:
                nets["pitch"] = Predictor(outputs=2, dtype=dtype, **numbers(self.pitch))
        if self.turns:
            period = self.codec_network.hop / self.codec_network.rate
            nets["phase"] = PitchPhase(self.width, self.phase_harmonics, self.sizes["c"], period, dtype)
        return nets

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """Random networks around a codec that `config.init_from` is to fill (its codebooks are random here)."""
        nets, (first, *keys) = self.networks, jax.random.split(rng, 1 + len(KEYS))
        keys, c = dict(zip(KEYS, keys)), self.sizes["c"]
        ids, row, yes, no = jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 2, self.width)), jnp.ones((1, 2), bool), jnp.zeros((1,), jnp.int32)
        codes = jnp.zeros((1, 2, self.levels), jnp.int32)
        books = jnp.ones((self.levels, self.codes, self.codec_network.channels))
        given = {
            "decoder": (codes, books, row, yes, yes, no), "semantic": (ids,), "phones": (ids, ids, jnp.zeros((1, 2, 3))),
            "duration": (row, yes, row, yes), "pitch": (row, yes, row, yes), "phase": (jnp.zeros((1, 2, c)), jnp.ones((1, 2)))}
        given |= dict.fromkeys(("prompt", "voice"), (jnp.zeros((1, 2, c)), yes, no > 0))
        method = dict.fromkeys(("phones", "phase"), "everything")
        params = {name: net.init(keys[name], *given[name], method=method.get(name))["params"] for name, net in nets.items()}
        return params, {"codec": codecs.frozen(self.codec_network, first, self.codec_levels, self.codes)}

    def books(self, rest: Tree) -> quantize.Books:
        """The frozen codec's codes, of the levels that are modelled."""
        found = quantize.books(rest["codec"]["params"]["gen"], rest["codec"]["rest"])
        return jax.tree.map(lambda x: x[: self.levels], found)

    def apply(self, params: Tree, name: str, *args: Any, rng: jax.Array | None = None) -> Any:
        """A network's forward pass; with a key it is in training mode and drops out."""
        rngs = None if rng is None else {"dropout": jax.random.fold_in(rng, KEYS.index(name))}
        return self.networks[name].apply({"params": params[name]}, *args, deterministic=rng is None, rngs=rngs)

    def call(self, params: Tree, name: str, method: str, *args: Any) -> Any:
        """Another method of a network (none of these drop out)."""
        return self.networks[name].apply({"params": params[name]}, *args, method=method)

    # Conditions -------------------------------------------------------------------------------------------------------

    def heard(self, params: Tree, rest: Tree, codes_btq: jax.Array, known_bt: jax.Array, rng: jax.Array | None = None) -> tuple:
        """What the predictors listen to: (encoded known frames, mask). Rows without any are one learned vector."""
        known = known_bt.any(-1)
        z = self.latents(rest, codes_btq, known_bt)
        return self.apply(params, "prompt", z, known_bt, ~known, rng=rng)

    def voiced(self, params: Tree, rest: Tree, h_bnc: jax.Array, codes_btq: jax.Array, known_bt: jax.Array) -> jax.Array:
        """Vectors of phones or tokens, in the voice of the known frames if the system has one."""
        if not self.pools:
            return h_bnc
        return h_bnc + self.apply(params, "voice", self.latents(rest, codes_btq, known_bt), known_bt, ~known_bt.any(-1))[:, None].astype(h_bnc.dtype)

    def tokens(self, params: Tree, ids_bt: jax.Array) -> jax.Array:
        return self.networks["semantic"].apply({"params": params["semantic"]}, ids_bt)

    def frames(self, params: Tree, h_bpc: jax.Array, durations_bp: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Phone vectors -> (frames `[b, size, c]` with their place in the phone, which phone each is of, bool `[b, size, p]`)."""
        align = alignment.alignment(durations_bp, size)
        place = self.call(params, "phones", "place", alignment.phone_position(durations_bp, align))
        return (alignment.expand(h_bpc, align) + place) * align.any(-1)[..., None].astype(h_bpc.dtype), align

    def pitched(self, params: Tree, c_btc: jax.Array, f0_bt: jax.Array, offset_bt2: jax.Array | None = None) -> jax.Array:
        """The condition with the pitch in it, and its phase, of which `offset` is known or 0; F0 is 0 at padding."""
        c = c_btc + self.call(params, "phones", "pitch", prosody.pitch_bins(f0_bt, self.pitch_bins, *self.pitch_range))
        return c + self.call(params, "phase", "__call__", f0_bt, offset_bt2) if self.turns else c

    def offset(self, params: Tree, rest: Tree, codes_btq: jax.Array, f0_bt: jax.Array, known_bt: jax.Array) -> tuple:
        """(offset of the pitch's phase as the known codes tell, coherence of its reader `[b]`), None both where phase is not told."""
        if not self.turns:
            return None, None
        return self.call(params, "phase", "read", self.latents(rest, codes_btq, known_bt), f0_bt, known_bt)

    # Loss -------------------------------------------------------------------------------------------------------------

    @property
    def shares(self) -> tuple[float, ...]:
        """How often each level is drawn."""
        weights = [1 if self.level_law == "uniform" else self.levels - q for q in range(self.levels)]
        if self.level_law == "first":
            weights[0] = max(sum(weights[1:]), 1)
        return tuple(w / sum(weights) for w in weights)

    def draws(self, rng: jax.Array, frames_b: jax.Array, size: int) -> dict[str, Any]:
        """All randomness of a step: masks, which rows lose what, and the key of dropout."""
        keys, rows = jax.random.split(rng, 4), frames_b.shape
        masks = masking.draw(keys[0], frames_b, size, jnp.asarray(self.shares), self.infill, self.longest_prompt)
        u = jax.random.uniform(keys[1], rows)
        both, prompt = self.drop_both, self.drop_both + self.drop_prompt
        alone = u < prompt
        masks = masks._replace(begin_b=jnp.where(alone, 0, masks.begin_b), end_b=jnp.where(alone, frames_b, masks.end_b))
        return {
            "masks": masks, "drop_text": (u < both) | ((u >= prompt) & (u < prompt + self.drop_text)),
            "hide_text": jax.random.uniform(keys[2], rows) < self.hide_text, "dropout": keys[3]}

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        del step
        return self.loss_given(params, rest, batch, self.draws(rng, batch["frames"], batch["codes"].shape[1]))

    def loss_given(self, params: Tree, rest: Tree, batch: Batch, draws: dict) -> tuple[jax.Array, tuple[Tree, dict]]:
        """The loss with its randomness given; `draws["dropout"]` None means no dropout.

        Sums over hidden tokens, to be divided by their number (`metrics["weight"]`). The other terms are each row's mean (over its phones or
        frames inside the target; of the phase all frames) times the row's hidden tokens. `ce/01`, `accuracy/01` and so on are of one level each: what
        rows that drew it add, divided by how often it is drawn.
        """
        rng, masks, size = draws["dropout"], draws["masks"], batch["codes"].shape[1]
        mask = alignment.length_mask(batch["frames"], size)
        codes, target, hidden = masking.hide(batch["codes"], masks, self.codes)
        c, known, errors = self.condition_given(params, rest, batch, mask, target, draws["hide_text"], rng)
        known = known & ~draws["drop_text"][:, None]
        logits = self.apply(params, "decoder", codes, self.books(rest).codes, c, known, mask, masks.level_b, rng=rng)
        true = jnp.take_along_axis(batch["codes"].astype(jnp.int32), masks.level_b[:, None, None], -1)
        ce = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, true, -1)[..., 0]
        right = (logits.argmax(-1) == true[..., 0]).astype(jnp.float32)
        weight = hidden * batch["weight"][:, None]
        row = weight.sum(-1)
        terms = {"ce": (ce * weight).sum(-1), "accuracy": (right * weight).sum(-1)}
        terms |= {name: error * row for name, error in errors.items()}
        total = terms["ce"] + sum(getattr(self, f"{name}_weight") * terms[name] for name in errors if name != "phase") + terms.get("phase", 0.0)
        metrics = {name: term.sum() for name, term in terms.items()}
        for q, share in enumerate(self.shares):
            for name in ("ce", "accuracy"):
                metrics[f"{name}/{q + 1:02}"] = jnp.where(masks.level_b == q, terms[name], 0.0).sum() / share
        return total.sum(), ({}, metrics | {"weight": row.sum()})

    def condition_given(
        self, params: Tree, rest: Tree, batch: Batch, mask: jax.Array, target: jax.Array, hide_b: jax.Array, rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(condition `[b, t, c]`, where it is known, errors `[b]` of the predictors in the target and of the phase's reader) of utterances with their
        phones or tokens.

        In rows of `hide_b` the condition outside of the target is not known.
        """
        known, c, errors = mask & (target | ~hide_b[:, None]), 0.0, {}
        voice = batch["codes"], mask & ~target
        if self.condition != "phones":
            c = self.voiced(params, rest, self.tokens(params, batch["semantic"]), *voice)
        if not self.speaks:
            return c, known, errors
        inside = (alignment.alignment(batch["durations"], mask.shape[1]) & target[..., None]).any(1)
        phones = jnp.where(inside | ~hide_b[:, None], batch["phones"], 0)
        h = self.voiced(params, rest, self.apply(params, "phones", phones, rng=rng), *voice)
        heard = self.heard(params, rest, *voice, rng)
        mean = lambda x, where: (x * where).sum(-1) / jnp.maximum(where.sum(-1), 1)
        log_duration = self.apply(params, "duration", h, phones > 0, *heard, rng=rng)[..., 0]
        errors["duration"] = mean(prosody.duration_error(log_duration, batch["durations"]), inside)
        frames, align = self.frames(params, h, batch["durations"], mask.shape[1])
        known = mask & (known | (align & inside[:, None] & hide_b[:, None, None]).any(-1))  # a phone that begins before the target
        if self.pitch:
            pitch = self.apply(params, "pitch", frames, mask, *heard, rng=rng)
            off, voicing = prosody.pitch_errors(pitch, batch["f0"], self.pitch_mean, self.pitch_deviation)
            errors |= {"pitch": mean(off, target), "voicing": mean(voicing, target)}
            f0 = batch["f0"] * mask
            offset, coherence = self.offset(params, rest, batch["codes"], f0, mask)
            frames = self.pitched(params, frames, f0, offset)
            if coherence is not None:
                errors["phase"] = 1 - coherence
        return c + frames, known, errors

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one training batch: 2 per multiply-add of every matrix product and convolution."""
        nets, (b, t) = self.networks, (sizes["b"], sizes["t"])
        net, w, c, every = nets["decoder"], self.width, self.sizes["c"], self.codec_network.channels
        d, inner = net.width, net.expansion * net.width

        def attention(length: float, keys: float, width: float, source: float) -> float:
            return length * 2 * width**2 + keys * 2 * source * width + 2 * length * keys * width

        def encoder(numbers: Mapping[str, Any], length: float) -> float:
            return numbers["layers"] * (attention(length, length, w, w) + length * w * numbers["hidden"] * (numbers.get("kernel", 9) + 1))

        def predictor(net: Any, length: float) -> float:
            attended = net.layers // net.every * attention(length, t, net.width, w)
            change = length * w * net.width * (net.width != w)
            return change + net.layers * length * net.kernel * net.width**2 + attended + length * net.width * net.outputs

        block = t * (4 * d * net.hidden + 3 * d * inner) + attention(t, t, d, d)
        macs = net.layers * block + t * (w * d + d * self.codes) + net.vector_head * t * (every + 1) * (d + self.codes)
        if self.pools:
            v, times = nets["voice"], self.speaks + (self.condition != "phones")
            macs += times * (t * (c * v.hidden + v.blocks * v.kernel * v.hidden**2) + 2 * v.hidden * w)
        tables = self.levels * self.codes * every * d  # once a batch
        if self.speaks:
            p = sizes["p"]
            macs += encoder(self.phone_encoder, p) + self.prenet * p * 5 * w * w + p * t * w + 3 * t * w + encoder(self.prompt_encoder, t) + t * c * w
            macs += 2 * t * (c + t * 2 + self.phase_harmonics * w) * self.turns
            macs += predictor(nets["duration"], p) + (predictor(nets["pitch"], t) if self.pitch else 0)
        return 2.0 * (b * macs + tables)
