"""VALL-E (Wang et al. 2023, arXiv 2301.02111) and VALL-E 2 (Chen et al. 2024, arXiv 2406.05370): speech as a language of codec codes.

    p(C | x, C~) = p(c_1 | C~_1, x; AR)  prod_{j > 1} p(c_j | c_{<j}, x, C~; NAR)

An autoregressive model (`params["ar"]`, `layers.language.Coarse`) writes the codec's first level after the text and the first level of a prompt; a
non-autoregressive one (`params["nar"]`, `Fine`) fills in the others, one level at a time, knowing all levels of the prompt. The text is that of the
prompt and then that of the target, so a prompt comes with what it says. VALL-E 2 adds grouped codes (`group`), repetition-aware sampling (options of
program `sample`, `maths.tokens`) and text in SentencePiece units (`text="bpe"`).

Where the papers are silent, or where we leave them; every one is a number of `System`:
  * A row is a prompt and a target by one speaker, two utterances (transform `speaker_prefix`): the papers crop 10 to 20 s of one recording, which
    short recordings do not have. The AR loss counts prompt and target alike (paper), the NAR loss the target.
  * The AR model's first slot of audio is a begin vector (inference of public versions: without one it cannot speak unprompted); it stands for the
    paper's <EOS> after the text too. Text slots see each other (`prefix`); `False` is causal throughout.
  * Norms come before each part (public versions; the papers do not say), activations are GELU, positions sinusoids that begin at 0 in text and audio.
  * `norms="projected"` is the NAR model's AdaLN as in the paper, `a_i`, `b_i` linear in the stage's embedding: one projection for each of 25 norms,
    52 M. "table" looks them up: the same functions of a stage.
  * The last group of codes may hold the end after some codes (`tail="end"`). VALL-E 2 leaves out leading frames until groups are full
    (`tail="clip"`). The prompt loses leading frames in either case, so that the target begins with a group of its own.
  * `guide_weight` (0 in the paper's layout): one head of the AR model is told which phone each frame speaks, by the cross entropy of its attention
    among the text. A small model with little time finds the text by itself too late. The head then also says when each phone is said.
  * No label smoothing, no z-loss. The stage is drawn for each row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers import quantize
from ns2_jax.layers.codec import Codec
from ns2_jax.layers.language import Coarse, Fine
from ns2_jax.maths.tokens import join
from ns2_jax.systems.system import Batch, Field, SingleLoss, Sizes, Tree, tuples
from ns2_jax.systems.valle import cost
from ns2_jax.systems.valle.programs import Programs

PARTS = ("ar", "nar")
TAILS = ("end", "clip")
TEXTS = ("phones", "bpe")


@dataclasses.dataclass(frozen=True)
class System(Programs, SingleLoss):
    """Numbers only. `codec` are the fields of `layers.codec.Codec`; `ar` and `nar` those of `layers.language.Stack`."""

    codec: Mapping[str, Any]
    ar: Mapping[str, Any]
    nar: Mapping[str, Any]
    levels: int = 8  # of the codec, from the first: what is modelled
    codec_levels: int = 16  # that the codec has
    codes: int = 1024
    text: str = "phones"
    vocabulary: int = 128  # text ids, 0 is padding
    width: int = 1024
    dropout: float = 0.1
    group: int = 1  # codes of a step of the AR model
    tail: str = "end"
    prefix: bool = True
    tied: bool = True
    norms: str = "projected"
    parts: Sequence[str] = PARTS  # which are trained
    prompt_weight: float = 1.0  # of a prompt's codes in the AR loss
    guide_weight: float = 0.0
    temperature: float = 1.0  # what sampling starts from, unless it is told
    top_p: float = 0.8
    frames_per_phone: float = 6.5  # where no prompt says how fast somebody speaks
    dtype: str = "float32"

    def __post_init__(self):
        for name, known in (("tail", TAILS), ("text", TEXTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected one of {known}")
        if not self.parts or set(self.parts) - set(PARTS):
            raise ValueError(f"parts={tuple(self.parts)}; expected some of {PARTS}")
        if not 2 <= self.levels <= self.codec_levels:
            raise ValueError(f"levels={self.levels}; expected 2 to codec_levels={self.codec_levels}")
        if self.group < 1:
            raise ValueError(f"group={self.group}; expected 1 or more codes")
        if self.guide_weight and (self.text != "phones" or not 0 <= self.ar.get("guided", -1) < self.ar["layers"]):
            raise ValueError(f"guide_weight={self.guide_weight} needs text='phones', whose times are known, and ar.guided, one of the layers")

    # Networks ---------------------------------------------------------------------------------------------------------

    @property
    def text_names(self) -> tuple[str, str]:
        """The fields with the text of the prompt and of the target."""
        return ("prompt_phones", "phones") if self.text == "phones" else ("prompt_units", "units")

    @property
    def fields(self) -> dict[str, Field]:
        fields = {
            "codes": Field("btq", "uint16"), "frames": Field("b", "int32"), "prompt_codes": Field("buq", "uint16"),
            "prompt_frames": Field("b", "int32"), "weight": Field("b", "float32")}
        fields |= {name: Field("bp", "int32") for name in self.text_names}
        return fields | {name: Field("bp", "int32") for name in ("durations", "prompt_durations") if self.guide_weight}

    @property
    def idle(self) -> tuple[str, ...]:
        """Regexes of the params that no loss of this configuration reaches."""
        return tuple(f"params/{part}/.*" for part in PARTS if part not in self.parts)

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.codec_network.rate, "hop": self.codec_network.hop}

    @property
    def sizes(self) -> dict[str, int]:
        return {"q": self.levels}

    @property
    def codec_network(self) -> Codec:
        return Codec(**tuples(self.codec))  # float32: it is the exported codec, bit for bit

    @property
    def coarse(self) -> Coarse:
        return Coarse(self.vocabulary, self.codes, tuples(self.ar), self.width, self.group, self.prefix, self.tied, self.dropout,
                      jnp.dtype(self.dtype))

    @property
    def fine(self) -> Fine:
        return Fine(self.vocabulary, self.codes, self.levels, tuples(self.nar), self.width, self.norms, self.dropout, jnp.dtype(self.dtype))

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """Random networks around a codec that `config.init_from` is to fill (its codebooks are random here)."""
        keys, net = iter(jax.random.split(rng, 5)), self.codec_network
        text, one, yes = jnp.ones((1, 2), jnp.int32), jnp.ones((1,), jnp.int32), jnp.ones((1, 2), bool)
        params = {
            "ar": self.coarse.init(next(keys), text, jnp.zeros((1, 2, self.group), jnp.int32), one)["params"],
            "nar": self.fine.init(next(keys), text, jnp.zeros((1, 2, self.levels), jnp.int32), yes, yes, one)["params"]}
        own = {"mean": jnp.zeros((net.channels,)), "deviation": jnp.ones((net.channels,))}
        gen = dict(net.init(next(keys), jnp.zeros((1, 8 * net.hop)))["params"])
        if net.code_width:
            gen["quantiser"] = quantize.Factorised(self.codec_levels, self.codes, net.code_width, net.channels).init(next(keys))["params"]
        else:
            own["codebooks"] = jax.random.normal(next(keys), (self.codec_levels, self.codes, net.channels)) * self.codec_levels**-0.5
        return params, {"codec": {"params": {"gen": gen}, "rest": own}}

    # Loss -------------------------------------------------------------------------------------------------------------

    def joined_text(self, batch: Batch) -> jax.Array:
        """Text of the prompt and of the target, `[b, 2 p]`."""
        prompt, target = (batch[name] for name in self.text_names)
        return join(prompt, (prompt > 0).sum(-1), target, (target > 0).sum(-1))

    def skipped(self, batch: Batch) -> jax.Array:
        """Leading frames `[b]` that the AR model does not see: groups are whole, and the target begins one (`tail`)."""
        clipped = batch["prompt_frames"] + batch["frames"] if self.tail == "clip" else batch["prompt_frames"]
        return clipped % self.group

    def grouped(self, codes_bt: jax.Array, skip_b: jax.Array, n_b: jax.Array, groups: int) -> jax.Array:
        """The codes of `n_b` frames from frame `skip_b` on, by groups, int32 `[b, groups, g]`; the end from then on."""
        at = jnp.arange(groups * self.group)[None] + skip_b[:, None]
        codes = jnp.take_along_axis(codes_bt.astype(jnp.int32), jnp.minimum(at, codes_bt.shape[1] - 1), 1)
        return jnp.where(at < n_b[:, None], codes, self.codes).reshape(codes.shape[0], groups, self.group)

    def draws(self, rng: jax.Array, rows: int) -> dict[str, jax.Array]:
        """All randomness of a step: the level that each row's NAR loss is of, and the keys of dropout."""
        keys = jax.random.split(rng, 3)
        return {"level": jax.random.randint(keys[0], (rows,), 1, self.levels), "ar": keys[1], "nar": keys[2]}

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        del rest, step
        return self.loss_given(params, batch, self.draws(rng, len(batch["frames"])))

    def loss_given(self, params: Tree, batch: Batch, draws: dict) -> tuple[jax.Array, tuple[Tree, dict]]:
        """The loss with its randomness given; `draws["ar"]` and `draws["nar"]` None mean no dropout.

        Sums of nats, to be divided by the frames of the targets (`metrics["weight"]`); accuracies are of the targets' codes. `ar` and `nar` are of
        one code of a target.
        """
        text = self.joined_text(batch)
        codes = join(batch["prompt_codes"], batch["prompt_frames"], batch["codes"], batch["frames"], edge=True)
        total, metrics = 0.0, {"weight": (batch["frames"] * batch["weight"]).sum()}
        if "ar" in self.parts:
            loss, found = self.ar_loss(params["ar"], text, codes[..., 0], batch, draws["ar"])
            total, metrics = total + loss, metrics | found
        if "nar" in self.parts:
            loss, found = self.nar_loss(params["nar"], text, codes, batch, draws["level"], draws["nar"])
            total, metrics = total + loss, metrics | found
        return total, ({}, metrics)

    def ar_loss(self, params: Tree, text: jax.Array, codes_bt: jax.Array, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, dict]:
        """Cross entropy of each next group, prompt, target and end alike; the guided head's."""
        prompt, n_b, skip = batch["prompt_frames"], batch["prompt_frames"] + batch["frames"], self.skipped(batch)
        slots = -(-codes_bt.shape[1] // self.group)
        target = self.grouped(codes_bt, skip, n_b, slots + 1)
        full = (n_b - skip) // self.group
        rngs = None if rng is None else {"dropout": rng}
        logits, looks = self.coarse.apply({"params": params}, text, target[:, :-1], full, rng is None, rngs=rngs)
        nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        first = jnp.arange(slots + 1)[None] * self.group + skip[:, None]  # frame that a group begins with
        valid = (jnp.arange(slots + 1)[None] <= full[:, None]) * batch["weight"][:, None]
        prompted = first < prompt[:, None]
        weight = valid * jnp.where(prompted, self.prompt_weight, 1.0)
        said = (valid * ~prompted)[..., None] * (target < self.codes)
        right = jnp.argmax(logits, -1) == target
        metrics = {"ar": (nats * said).sum(), "ar_accuracy": (right * said).sum()}
        total = (nats * weight[..., None]).sum()
        if self.guide_weight:
            counts = [(batch[name] > 0).sum(-1) for name in self.text_names]
            ends = jnp.cumsum(join(batch["prompt_durations"], counts[0], batch["durations"], counts[1]), -1)
            phone = (first[..., None] >= ends[:, None]).sum(-1)
            phone = jnp.minimum(phone, jnp.maximum(sum(counts) - 1, 0)[:, None])
            guide = -jnp.take_along_axis(looks, phone[..., None], -1)[..., 0]
            metrics["guide"] = (guide * valid).sum()
            total = total + self.guide_weight * metrics["guide"]
        return total, metrics

    def nar_loss(
        self, params: Tree, text: jax.Array, codes: jax.Array, batch: Batch, level_b: jax.Array, rng: jax.Array | None,
    ) -> tuple[jax.Array, dict]:
        """Cross entropy of one level of the targets, drawn for each row."""
        at, prompt = jnp.arange(codes.shape[1])[None], batch["prompt_frames"][:, None]
        mask, prompted = at < prompt + batch["frames"][:, None], at < prompt
        rngs = None if rng is None else {"dropout": rng}
        logits = self.fine.apply({"params": params}, text, codes, mask, prompted, level_b, rng is None, rngs=rngs)
        target = jnp.take_along_axis(codes.astype(jnp.int32), level_b[:, None, None], -1)
        nats = (jax.nn.logsumexp(logits, -1, keepdims=True) - jnp.take_along_axis(logits, target, -1))[..., 0]
        weight = (mask & ~prompted) * batch["weight"][:, None]
        right = jnp.argmax(logits, -1) == target[..., 0]
        loss = (nats * weight).sum()
        return loss, {"nar": loss, "nar_accuracy": (right * weight).sum()}

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one training batch: 2 per multiply-add of every matrix product."""
        return cost.forward(self, sizes)

    def cache_bytes(self, sizes: Sizes) -> int:
        """Memory of the keys and values that sampling `b` rows keeps."""
        return cost.cache(self, sizes)
