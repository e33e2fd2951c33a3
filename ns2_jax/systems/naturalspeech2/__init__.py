"""NaturalSpeech 2 (Shen et al., ICLR 2024, arXiv 2304.09116): latent diffusion over codec frames, steered by a prompt.

Phones are encoded, expanded by durations, and joined by a pitch embedding; a WaveNet predicts clean latents from noisy
ones, listening to the prompt through 32 queries and FiLM; the frozen codec in `rest` turns latents into audio.

    L = data + score + 0.1 CE-RVQ (equation 6) + duration + pitch (equation 7)   [+ phase, ours]

Choices where the paper is silent, or where we leave it; all but those marked (fixed) are numbers of `System`:
  * What is diffused are the channels of the codec's coarse levels, where it has such: `small`'s 6 levels of 16 in 44 channels of 76, whose decoder
    makes up the rest. With a codec without coarse levels, as `base`'s, it is the sum of all levels, as in the paper.
  * Latents, target and prompt alike, are centred, turned to axes that are less correlated where the codec knows some (`layers.codec.Codec.axes`;
    not the paper's codec), and divided by their deviations there to the power `whiten` (`layers.latents`).
  * The score term is a second weight on the data loss (`maths.process.score_loss`); as printed it is 4e12 at t = 1e-5.
    The default `min_snr` caps it at 5; `literal` is the paper's.
  * The network predicts clean latents (`prediction="x0"`, the paper) or velocity, `x0 = alpha z - sigma v` (`"v"`: ours,
    the same losses on the same x0). A small network with little time learns to copy what noise left intact too slowly.
  * Sampling starts from N(0, temperature^2); the paper's is 1 / 1.2. A model that is far from converged speaks much more
    clearly from less, at the price of variety.
  * CE-RVQ divides squared distances by a scale per level; fine levels would otherwise see a uniform distribution. `ce_scaled=False` is the paper
    as printed. `ce_levels` and `ce_by_signal` leave out deep levels and weigh by alpha^2; neither is the paper's.
  * Pitch is standardised log F0 on voiced frames (L1) and a voicing logit on all. Duration is log(1 + frames), its mean over an utterance's phones
    counts as often as the utterance has frames; times are stratified over the rows of a batch (fixed).
  * Rows lose prompt, text or both with `drop_*` for classifier-free guidance.
  * `voice` pools the prompt into one vector too (`layers.tacotron.VoiceEncoder`), which joins every phone and frame: ours, off in the paper's
    layout. A small network that hears the prompt through its 32 queries alone learns words long before voices.
  * `phase_harmonics` tells the denoiser where in the pitch's period a frame begins (`layers.pitch_phase`): ours, off in the paper's layout.
  * `phone_position` gives frames their place in the phone and its log duration: ours, off in the paper's layout.
  * `objective="flow"` replaces process, prediction and the terms of data and score: the same network learns the velocity of flow matching,
    `u = eps - x0` on `z = (1 - t) x0 + t eps` (Lipman et al. 2023; without a smallest noise, as in F5-TTS), with the mean square as its loss.
  * `guided` tells the denoiser the guidance factor, one evaluation for any: for students of `systems.distill`, no part of the paper.
The paper's ablations: `prompt_in_denoiser`, `prompt_in_predictors`, `ce_weight=0`, `denoiser.queries=0`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers import quantize
from ns2_jax.layers.codec import Codec
from ns2_jax.layers.guidance import Strength
from ns2_jax.layers.latents import CoarseLatents
from ns2_jax.layers.pitch_phase import PitchPhase
from ns2_jax.layers.predictors import Predictor
from ns2_jax.layers.tacotron import VoiceEncoder
from ns2_jax.layers.transformer import PhoneEncoder, PromptEncoder, Transformer
from ns2_jax.layers.wavenet import WaveNet
from ns2_jax.maths import alignment, process, prosody, samplers
from ns2_jax.systems.naturalspeech2 import cost
from ns2_jax.systems.naturalspeech2.programs import Programs
from ns2_jax.systems.naturalspeech2.rvq import ce_rvq
from ns2_jax.systems.system import Batch, Denoising, Field, SingleLoss, Sizes, Tree, tuples


KEYS = ("denoiser", "duration", "phones", "pitch", "prompt", "voice")
"""Of `params`; the order numbers the networks' dropout keys."""


def _numbers(module: Any, given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with lists as tuples. Raises ValueError for a number that `module` does not have or `own` already sets."""
    known = {field.name for field in dataclasses.fields(module)} - {"parent", "name", "dtype", *own}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a number of {module.__name__}; it takes {sorted(known)}")
    return tuples(given)


def _make(module: Any, given: Mapping[str, Any], **own: Any) -> Any:
    return module(**_numbers(module, given, own), **own)


@dataclasses.dataclass(frozen=True)
class System(Programs, CoarseLatents, SingleLoss):
    """Numbers only. `codec` are the fields of `layers.codec.Codec`; the other mappings those of their layers."""

    codec: Mapping[str, Any]
    phone_encoder: Mapping[str, Any]  # layers.transformer.Transformer
    prompt_encoder: Mapping[str, Any]
    duration: Mapping[str, Any]  # layers.predictors.Predictor
    pitch: Mapping[str, Any]
    denoiser: Mapping[str, Any]  # layers.wavenet.WaveNet
    voice: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # layers.tacotron.VoiceEncoder; without `hidden`, or with 0: none, the paper
    levels: int = 16
    codes: int = 1024
    phones: int = 128
    width: int = 512  # of both encoders and of the condition
    prenet: int = 2
    encoder_dropout: float = 0.2
    pitch_bins: int = 512
    pitch_range: tuple[float, float] = (50.0, 1100.0)  # Hz
    pitch_mean: float = 5.0  # of log F0 (148 Hz)
    pitch_deviation: float = 0.4
    phase_harmonics: int = 0  # of the pitch, whose phase the denoiser is told; 0: none, the paper
    whiten: float = 1.0
    phone_position: bool = True
    prompt_in_denoiser: bool = True
    prompt_in_predictors: bool = True
    beta_start: float = 0.05
    beta_end: float = 20.0
    t_lowest: float = 1e-5
    objective: str = "paper"  # or "flow", for which the betas and the five after the next do not count
    flow_weight: float = 1.0
    data_weight: float = 1.0
    score_weight: float = 1.0
    prediction: str = "x0"  # or "v"
    score_loss: str = "min_snr"
    snr_cap: float = 5.0
    ce_weight: float = 0.1
    ce_levels: int = 0  # the first so many levels; 0 is all
    ce_by_signal: bool = False  # weigh CE-RVQ by alpha^2: at high noise the deep codes cannot be predicted
    ce_scaled: bool = True  # divide its distances by a scale per level
    duration_weight: float = 1.0
    pitch_weight: float = 1.0
    voicing_weight: float = 1.0
    drop_prompt: float = 0.1
    drop_text: float = 0.05
    drop_both: float = 0.1
    temperature: float = samplers.START_DEVIATION  # what sampling starts with, unless it is told
    guidance: float = 1.0  # so of the total factor,
    sampler: str = ""  # of the sampler ("": Euler's, of flow matching with F5-TTS's warp of time),
    evaluations: int = 0  # and of its steps (0: the paper's 150, of flow matching 32)
    guided: bool = False
    unroll: int = 1
    dtype: str = "float32"

    fresh = (r"params/phase/.*",)  # what a model to go on from may not have
    fields = {
        "phones": Field("bp", "int32"), "durations": Field("bp", "int32"), "f0": Field("bt", "float32"),
        "codes": Field("btq", "uint16"), "frames": Field("b", "int32"), "prompt_codes": Field("buq", "uint16"),
        "prompt_frames": Field("b", "int32"), "weight": Field("b", "float32"),
    }

    def __post_init__(self):
        if self.score_loss not in process.SCORE_LOSSES:
            raise ValueError(f"score_loss={self.score_loss!r}; expected one of {process.SCORE_LOSSES}")
        if self.prediction not in ("x0", "v"):
            raise ValueError(f"prediction={self.prediction!r}; expected 'x0' or 'v'")
        if self.objective not in ("paper", "flow"):
            raise ValueError(f"objective={self.objective!r}; expected 'paper' or 'flow'")

    # Networks ---------------------------------------------------------------------------------------------------------

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.codec_network.rate, "hop": self.codec_network.hop}

    @property
    def sizes(self) -> dict[str, int]:
        return {"q": self.levels, "c": self.codec_network.coarse_channels}

    @property
    def process(self) -> process.Process:
        return process.VP(self.beta_start, self.beta_end) if self.objective == "paper" else process.Flow()

    @property
    def pools(self) -> bool:
        """Is there a voice beside the prompt's frames?"""
        return bool(self.voice.get("hidden"))

    @property
    def codec_network(self) -> Codec:
        return _make(Codec, self.codec)  # float32: it is the exported codec, bit for bit

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained modules by their key in `params`."""
        dtype = jnp.dtype(self.dtype)
        own = dict(width=self.width, dropout=self.encoder_dropout, dtype=dtype)
        numbers = lambda given: {"unroll": self.unroll} | dict(given)
        encoder = lambda given: _numbers(Transformer, numbers(given), own)
        told = {"guidance": Strength(self.width, dtype=dtype)} if self.guided else {}
        voice = {"voice": _make(VoiceEncoder, self.voice, width=self.width, dtype=dtype)} if self.pools else {}
        phase = {}
        if self.phase_harmonics:
            phase["phase"] = PitchPhase(self.width, self.phase_harmonics, self.sizes["c"], self.codec_network.hop / self.codec_network.rate, dtype)
        return told | voice | phase | {
            "phones": PhoneEncoder(self.phones, encoder=encoder(self.phone_encoder), prenet=self.prenet, pitch_bins=self.pitch_bins,
                                   position=self.phone_position, **own),
            "prompt": PromptEncoder(encoder=encoder(self.prompt_encoder), **own),
            "duration": _make(Predictor, numbers(self.duration), outputs=1, dtype=dtype),
            "pitch": _make(Predictor, numbers(self.pitch), outputs=2, dtype=dtype),
            "denoiser": _make(WaveNet, numbers(self.denoiser), channels=self.sizes["c"], dtype=dtype),
        }

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """Random networks around a codec that `config.init_from` is to fill (its codebooks are random here)."""
        nets, keys = self.networks, iter(jax.random.split(rng, 7))
        b, net, c = 1, self.codec_network, self.sizes["c"]
        ids, row, yes = jnp.ones((b, 2), jnp.int32), jnp.zeros((b, 2, self.width)), jnp.ones((b, 2), bool)
        latents, prompt, no = jnp.zeros((b, 2, c)), (row, yes), jnp.zeros((b,), bool)
        params = {
            "phones": nets["phones"].init(next(keys), ids, ids, jnp.zeros((b, 2, 3)), method="everything")["params"],
            "prompt": nets["prompt"].init(next(keys), latents, yes, no)["params"],
            "duration": nets["duration"].init(next(keys), row, yes, *prompt)["params"],
            "pitch": nets["pitch"].init(next(keys), row, yes, *prompt)["params"],
            "denoiser": nets["denoiser"].init(next(keys), latents, jnp.zeros((b,)), row, *prompt, yes)["params"],
        }
        if self.pools:
            params["voice"] = nets["voice"].init(jax.random.fold_in(rng, 8), latents, yes, no)["params"]
        if self.phase_harmonics:
            params["phase"] = nets["phase"].init(jax.random.fold_in(rng, 9), latents, jnp.ones((b, 2)), method="everything")["params"]
        if self.guided:
            params["guidance"] = nets["guidance"].init(jax.random.fold_in(rng, 7), jnp.ones((b,)))["params"]
        c, codec = net.channels, {"mean": jnp.zeros((net.channels,)), "deviation": jnp.ones((net.channels,))}
        gen = dict(net.init(next(keys), jnp.zeros((1, 8 * net.hop)))["params"])
        if net.code_width:
            gen["quantiser"] = quantize.Factorised(self.levels, self.codes, net.code_width, c).init(next(keys))["params"]
        else:
            codec["codebooks"] = jax.random.normal(next(keys), (self.levels, self.codes, c)) * self.levels**-0.5
        return params, {"codec": {"params": {"gen": gen}, "rest": codec}}

    def books(self, rest: Tree) -> quantize.Books:
        """The frozen codec's codes."""
        return quantize.books(rest["codec"]["params"]["gen"], rest["codec"]["rest"])

    def apply(self, params: Tree, name: str, *args: Any, rng: jax.Array | None = None) -> Any:
        """A network's forward pass; with a key it is in training mode and drops out."""
        rngs = None if rng is None else {"dropout": jax.random.fold_in(rng, KEYS.index(name))}
        return self.networks[name].apply({"params": params[name]}, *args, deterministic=rng is None, rngs=rngs)

    def call(self, params: Tree, name: str, method: str, *args: Any) -> Any:
        """Another method of a network (none of these drop out)."""
        return self.networks[name].apply({"params": params[name]}, *args, method=method)

    # Conditions -------------------------------------------------------------------------------------------------------

    def prompts(
        self, params: Tree, rest: Tree, inputs: Batch, dropped_b: jax.Array, rng: jax.Array | None = None, window: int = 0,
    ) -> dict[str, tuple]:
        """(encoded prompt, mask) for `predictors` and `denoiser` (the same, unless an ablation takes it from one).

        With a `window` that many frames are encoded at a time, as long as prompts of training were; what listens to them listens to all.
        """
        mask = alignment.length_mask(inputs["prompt_frames"], inputs["prompt_codes"].shape[1])
        z = self.latents(rest, inputs["prompt_codes"], mask)
        size = window or mask.shape[1]
        parts, said = z.reshape(-1, size, z.shape[-1]), mask.reshape(-1, size)

        def encoded(dropped_b: jax.Array) -> tuple[jax.Array, jax.Array]:
            dropped_b = dropped_b | ~mask.any(-1)
            y, _ = self.apply(params, "prompt", parts, said, jnp.repeat(dropped_b, mask.shape[1] // size), rng=rng)
            return y.reshape(*mask.shape, -1), mask | dropped_b[:, None]

        full = encoded(dropped_b)
        if self.prompt_in_predictors and self.prompt_in_denoiser:
            return {"predictors": full, "denoiser": full}
        null = encoded(jnp.ones_like(dropped_b))
        return {"predictors": full if self.prompt_in_predictors else null, "denoiser": full if self.prompt_in_denoiser else null}

    def voices(self, params: Tree, rest: Tree, inputs: Batch, dropped_b: jax.Array) -> dict[str, jax.Array]:
        """What joins every phone and frame that `predictors` and `denoiser` hear, `[b, 1, c]`, as `prompts`; zeros where there is no `voice`."""
        if not self.pools:
            return dict.fromkeys(("predictors", "denoiser"), jnp.zeros((dropped_b.shape[0], 1, self.width), jnp.dtype(self.dtype)))
        mask = alignment.length_mask(inputs["prompt_frames"], inputs["prompt_codes"].shape[1])
        z = self.latents(rest, inputs["prompt_codes"], mask)
        voice = lambda dropped_b: self.apply(params, "voice", z, mask, dropped_b)[:, None]
        full, said = voice(dropped_b), {"predictors": self.prompt_in_predictors, "denoiser": self.prompt_in_denoiser}
        null = full if all(said.values()) else voice(jnp.ones_like(dropped_b))
        return {listener: full if hears else null for listener, hears in said.items()}

    def pitch_ids(self, f0_bt: jax.Array) -> jax.Array:
        """F0 in Hz -> rows of the pitch table: 0 unvoiced, then `pitch_bins - 1` log-spaced bins over `pitch_range`."""
        return prosody.pitch_bins(f0_bt, self.pitch_bins, *self.pitch_range)

    def frames(self, params: Tree, h_bpc: jax.Array, durations_bp: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Phone vectors -> (frames `[b, size, c]` with their place in the phone, mask `[b, size]`)."""
        align = alignment.alignment(durations_bp, size)
        mask = align.any(-1)
        c = alignment.expand(h_bpc, align)
        if self.phone_position:
            c = c + self.call(params, "phones", "place", alignment.phone_position(durations_bp, align))
        return c * mask[..., None].astype(c.dtype), mask

    def pitched(self, params: Tree, c_btc: jax.Array, f0_bt: jax.Array, offset_bt2: jax.Array | None = None) -> jax.Array:
        """The condition with the pitch in it, and its phase, of which `offset` is known or 0; F0 is 0 at padding."""
        c = c_btc + self.call(params, "phones", "pitch", self.pitch_ids(f0_bt))
        return c + self.call(params, "phase", "__call__", f0_bt, offset_bt2) if self.phase_harmonics else c

    def offset(self, params: Tree, rest: Tree, codes_btq: jax.Array, f0_bt: jax.Array, mask_bt: jax.Array) -> tuple:
        """(offset of the pitch's phase as the codes tell, coherence of its reader `[b]`), None both where phase is not told."""
        if not self.phase_harmonics:
            return None, None
        return self.call(params, "phase", "read", self.latents(rest, codes_btq, mask_bt), f0_bt)

    def told(self, params: Tree, c_btc: jax.Array, factor_b: jax.Array) -> jax.Array:
        """The condition with the guidance factors in it, of a system that is `guided`."""
        return c_btc + self.networks["guidance"].apply({"params": params["guidance"]}, factor_b)[:, None]

    # Loss -------------------------------------------------------------------------------------------------------------

    def draws(self, rng: jax.Array, rows: int, frames: int) -> dict[str, jax.Array]:
        """All randomness of a step: times, noise, which rows lose what, and the key of dropout."""
        keys = jax.random.split(rng, 4)
        u = jax.random.uniform(keys[2], (rows,))
        both, prompt = self.drop_both, self.drop_both + self.drop_prompt
        return {
            "t": process.stratified(keys[0], rows, self.t_lowest),
            "noise": jax.random.normal(keys[1], (rows, frames, self.sizes["c"])),
            "drop_prompt": u < prompt, "drop_text": (u < both) | ((u >= prompt) & (u < prompt + self.drop_text)),
            "dropout": keys[3],
        }

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        del step
        return self.loss_given(params, rest, batch, self.draws(rng, *batch["f0"].shape))

    def loss_given(self, params: Tree, rest: Tree, batch: Batch, draws: dict) -> tuple[jax.Array, tuple[Tree, dict]]:
        """The loss with its randomness given; `draws["dropout"]` None means no dropout.

        Everything is a sum over valid frames, to be divided by their number (`metrics["weight"]`). The duration term
        is each row's mean over its phones (the paper's per-phone mean) times the row's frames, so that it is one number
        per phone whatever the length; the pitch term counts voiced frames only.
        """
        rng, t = draws["dropout"], draws["t"]
        mask = alignment.length_mask(batch["frames"], batch["f0"].shape[1])
        weight = mask * batch["weight"][:, None]
        c, prompts, voice, prior = self.conditions(params, rest, batch, mask, draws["drop_prompt"], rng)
        c = self.call(params, "phones", "without", c, draws["drop_text"]) + voice

        x0 = self.latents(rest, batch["codes"], mask)
        alpha, sigma = self.process.levels(t, x0)
        z = self.process.diffuse(x0, draws["noise"], t) * mask[..., None]
        predicted = self.apply(params, "denoiser", z, t, c, *prompts["denoiser"], mask, rng=rng)
        x0_hat = self.clean(predicted, z, t)
        terms = self.diffusion_terms(rest, x0_hat, x0, batch["codes"], alpha, sigma)
        if self.objective == "flow":
            terms["flow"] = jnp.square(predicted - (draws["noise"] - x0)).mean(-1)
        total = self.weighed(terms, *(("flow",) if self.objective == "flow" else ("data", "score"))) + self.prior(prior)
        terms |= prior
        if self.ce_weight:
            total = total + self.ce_weight * terms["ce"]
        metrics = {name: (term * weight).sum() for name, term in terms.items()}
        for i in range(4):  # the data term by quarter of t; t is stratified, so a quarter of the rows fall in each
            inside = (jnp.floor(t * 4) == i)[:, None]
            metrics[f"data_t{i}"] = 4 * (terms["data"] * weight * inside).sum()
        return (total * weight).sum(), ({}, metrics | {"weight": weight.sum()})

    def conditions(
        self, params: Tree, rest: Tree, batch: Batch, mask_bt: jax.Array, dropped_b: jax.Array, rng: jax.Array | None,
    ) -> tuple[jax.Array, dict[str, tuple], jax.Array, dict[str, jax.Array]]:
        """(frames with their pitch, prompts, the denoiser's voice, terms of `prior`) of a batch whose rows `dropped_b` have no prompt."""
        prompts = self.prompts(params, rest, batch, dropped_b, rng)
        h = self.apply(params, "phones", batch["phones"], rng=rng)
        voices = self.voices(params, rest, batch, dropped_b)
        log_duration = self.apply(params, "duration", h + voices["predictors"], batch["phones"] > 0, *prompts["predictors"], rng=rng)[..., 0]
        c, _ = self.frames(params, h, batch["durations"], mask_bt.shape[1])
        pitch = self.apply(params, "pitch", c + voices["predictors"], mask_bt, *prompts["predictors"], rng=rng)
        terms, f0 = self.prior_terms(log_duration, pitch, batch), batch["f0"] * mask_bt
        offset, coherence = self.offset(params, rest, batch["codes"], f0, mask_bt)
        if coherence is not None:
            terms["phase"] = jnp.broadcast_to(1 - coherence[:, None], f0.shape)
        return self.pitched(params, c, f0, offset), prompts, voices["denoiser"], terms

    def denoising(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array | None = None) -> Denoising:
        """A batch as `systems.distill` needs it; with a key, in training mode. Nothing is dropped but what guidance asks for."""
        mask, none = alignment.length_mask(batch["frames"], batch["f0"].shape[1]), jnp.zeros(batch["frames"].shape, bool)
        c, prompts, voice, prior = self.conditions(params, rest, batch, mask, none, rng)
        if not self.guided:
            nothing = self.call(params, "phones", "without", c, ~none) + self.voices(params, rest, batch, ~none)["denoiser"]
            null = nothing, self.prompts(params, rest, batch, ~none)["denoiser"]
        c = c + voice

        def said(z: jax.Array, t: jax.Array, c: jax.Array, heard: tuple, rng: jax.Array | None) -> jax.Array:
            return self.clean(self.apply(params, "denoiser", z, t, c, *heard, mask, rng=rng), z, t) * mask[..., None]

        def denoise(z: jax.Array, t: jax.Array, factor_b: jax.Array | None = None, rng: jax.Array | None = None) -> jax.Array:
            if self.guided:
                return said(z, t, self.told(params, c, jnp.ones(t.shape) if factor_b is None else factor_b), prompts["denoiser"], rng)
            x0 = said(z, t, c, prompts["denoiser"], rng)
            if factor_b is None:
                return x0
            return samplers.guide(said(z, t, *null, rng), x0, factor_b[:, None, None])

        return Denoising(self.latents(rest, batch["codes"], mask), mask, mask * batch["weight"][:, None], self.prior(prior), denoise)

    def clean(self, predicted: jax.Array, z: jax.Array, t_b: jax.Array) -> jax.Array:
        """What the network says of `z [b, t, c]` at times `t_b`, as clean latents."""
        if self.objective == "flow":
            return process.x0_from_u(z, predicted, *self.process.levels(t_b, z))
        return predicted if self.prediction == "x0" else process.x0_from_v(z, predicted, *self.process.levels(t_b, z))

    def weighed(self, terms: Mapping[str, jax.Array], *names: str) -> jax.Array:
        """The sum of those terms with their weights, `[b, t]`."""
        return sum(getattr(self, f"{name}_weight") * terms[name] for name in names)

    def prior(self, terms: Mapping[str, jax.Array]) -> jax.Array:
        """What of the loss is not the denoiser's, `[b, t]`: the predictors', and that of the reader of the phase if there is one."""
        return self.weighed(terms, "duration", "pitch", "voicing") + terms.get("phase", 0.0)

    def diffusion_terms(
        self, rest: Tree, x0_hat: jax.Array, x0: jax.Array, codes_btq: jax.Array, alpha: jax.Array, sigma: jax.Array,
    ) -> dict[str, jax.Array]:
        """Equation 6, each term `[b, t]` (mean over channels and levels)."""
        error = x0_hat - x0
        score = process.score_loss(self.score_loss, error, alpha, sigma, self.snr_cap)
        terms = {"data": jnp.square(error).mean(-1), "score": score.mean(-1)}
        if self.ce_weight:
            codes = codes_btq[..., : self.ce_depth]
            loss, right = ce_rvq(self.restore(rest, x0_hat), codes, self.coarse(rest)[0], self.unroll, self.ce_scaled)
            weight = jnp.square(alpha[..., 0]) if self.ce_by_signal else 1.0
            terms |= {"ce": loss.mean(0) * weight, "ce_accuracy_first": right[0], "ce_accuracy_last": right[-1]}
        return terms

    @property
    def ce_depth(self) -> int:
        """How many levels of codes the cross entropy is of."""
        return min(self.ce_levels or self.levels, self.codec_network.coarse or self.levels)

    def prior_terms(self, log_duration_bp: jax.Array, pitch_bt2: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Equation 7's L1 losses, as `[b, t]`."""
        real = (batch["phones"] > 0).astype(jnp.float32)
        off = prosody.duration_error(log_duration_bp, batch["durations"]) * real
        per_phone = off.sum(-1) / jnp.maximum(real.sum(-1), 1.0)
        pitch, voicing = prosody.pitch_errors(pitch_bt2, batch["f0"], self.pitch_mean, self.pitch_deviation)
        return {"duration": jnp.broadcast_to(per_phone[:, None], pitch.shape), "pitch": pitch, "voicing": voicing}

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one training batch: 2 per multiply-add of every matrix product and convolution."""
        return cost.forward(self, sizes)
