"""A tokenizer of what is said: a Conformer that learns from speech alone (BEST-RQ), and k-means on one of its layers.

BEST-RQ (Chiu et al. 2022, arXiv 2202.01855, section 3): a frozen random projection of log-mel stacks and a frozen random codebook give
every frame a class, the nearest code by cosine. Spans of 400 ms of the input are replaced by noise of deviation 0.1, about a third of the
frames, and the Conformer says the classes there:

    L = - sum over masked frames of log p(class | masked input)

k-means (`stage="cluster"`, what w2v-BERT's and SoundStorm's semantic tokens are): the encoder is frozen in `rest/encoder`, channels of its
layer are brought to mean 0 and deviation 1 (AudioLM, section 3.2), and the codebook is the decayed mean of what is nearest to each code.
Nothing is differentiated: params are empty, the statistics are counts and sums (`layers.quantize.rvq_update`).

A frame is `hop` samples, 40 ms; it has `hop / mel_hop` mel frames. Ours: the mel spectrum loses its mean over the utterance, which is
voice and channel, and is divided by the deviation of each band in the first batch of the training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers import quantize
from ns2_jax.layers.speech_encoder import SpeechEncoder
from ns2_jax.maths import alignment, masking, spectral
from ns2_jax.systems.system import Base, Batch, Field, Program, Sizes, Tree, tuples

NOISE = 0.1  # deviation of what replaces a masked frame
DECAY = 0.99  # of the layer's mean and square


@dataclasses.dataclass(frozen=True)
class System(Base):
    """Numbers only. `network` are the fields of `layers.speech_encoder.SpeechEncoder`; `size` samples a window, a multiple of `mel_hop`."""

    network: Mapping[str, Any]
    stage: str = "predict"  # or "cluster"
    targets: int = 8192
    target_width: int = 16
    mask_chance: float = 0.04  # that a span begins at a frame; 0.01 for each of its mel frames
    mask_frames: int = 10
    layer: int = 6  # whose output is clustered, from 1
    tokens: int = 1024
    codebook_decay: float = 0.99
    dead: float = 0.02
    rate: int = 16000  # Hz
    hop: int = 640  # samples
    mel_hop: int = 160
    size: int = 480
    mels: int = 80
    floor: float = 3e-5
    dtype: str = "float32"

    exported = (r"params/.*", r"rest/.*")
    fields = {"audio": Field("bs", "float32"), "frames": Field("b", "int32"), "weight": Field("b", "float32")}

    def __post_init__(self):
        if self.stage not in ("predict", "cluster"):
            raise ValueError(f"stage={self.stage!r}; expected 'predict' or 'cluster'")
        if not 1 <= self.layer <= self.network["layers"]:
            raise ValueError(f"layer={self.layer} of an encoder of {self.network['layers']} layers")
        if self.hop % self.mel_hop:
            raise ValueError(f"hop={self.hop} is not a multiple of mel_hop={self.mel_hop}")

    @property
    def net(self) -> SpeechEncoder:
        return SpeechEncoder(self.targets, **tuples(self.network), dtype=jnp.dtype(self.dtype))

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.rate, "hop": self.hop}

    @property
    def sizes(self) -> dict[str, int]:
        return {"c": self.net.width}

    # Features -----------------------------------------------------------------------------------------------------------

    def mel(self, audio_bs: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """Log-mel stacks without their mean over the utterance, zero at padding: `[b, t, stack, mels]`."""
        b, t = mask_bt.shape
        audio = audio_bs.reshape(b, t, self.hop) * mask_bt[..., None]  # what follows the last whole frame is not heard
        mel = spectral.log_mel(audio.reshape(b, -1), self.rate, self.size, self.mel_hop, self.mels, self.floor).reshape(b, t, -1, self.mels)
        valid = mask_bt[..., None, None]
        mean = (mel * valid).sum((1, 2), keepdims=True) / jnp.maximum(mel.shape[2] * valid.sum((1, 2), keepdims=True), 1)
        return (mel - mean) * valid

    def features(self, encoder: Tree, audio_bs: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """`[b, t, stack * mels]` at unit scale."""
        mel = self.mel(audio_bs, mask_bt) / jnp.maximum(encoder["deviation"], 1e-3)
        return mel.reshape(*mask_bt.shape, -1)

    def classes(self, encoder: Tree, features_btf: jax.Array) -> jax.Array:
        """The random-projection quantiser's class of every frame, int32 `[b, t]`."""
        low = quantize.unit(features_btf @ encoder["projection"])
        return jnp.argmax(low @ encoder["codes"].T, -1).astype(jnp.int32)

    def layer_output(self, params: Tree, encoder: Tree, audio_bs: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """What layer `layer` says, unmasked: float32 `[b, t, c]`."""
        net = SpeechEncoder(self.targets, **tuples(self.network) | {"layers": self.layer}, dtype=jnp.dtype(self.dtype))
        first = params | {"conformer": {"blocks": jax.tree.map(lambda x: x[: self.layer], params["conformer"]["blocks"])}}
        return net.apply({"params": first}, self.features(encoder, audio_bs, mask_bt), mask_bt, method="hidden").astype(jnp.float32)

    # Training -----------------------------------------------------------------------------------------------------------

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        keys = jax.random.split(rng, 4)
        wide = self.hop // self.mel_hop * self.mels
        mask = alignment.length_mask(batch["frames"], batch["audio"].shape[1] // self.hop)
        mel = self.mel(batch["audio"], mask)
        mean_square = jnp.square(mel).sum((0, 1, 2)) / jnp.maximum(mel.shape[2] * mask.sum(), 1)
        bound = (6 / (wide + self.target_width)) ** 0.5  # Xavier
        given = jnp.zeros((1, 2, wide)), jnp.ones((1, 2), bool)
        params = self.net.init(keys[0], *given)["params"]
        encoder = {
            "projection": jax.random.uniform(keys[1], (wide, self.target_width), minval=-bound, maxval=bound),
            "codes": quantize.unit(jax.random.normal(keys[2], (self.targets, self.target_width))), "deviation": jnp.sqrt(mean_square)}
        if self.stage == "predict":
            return params, encoder
        book = jax.random.normal(keys[3], (1, self.tokens, self.net.width))
        counts = jnp.ones((1, self.tokens))
        c = self.net.width
        return {}, {"encoder": {"params": params, "rest": encoder}, "kmeans": {"codebooks": book, "counts": counts, "sums": book},
                    "mean": jnp.zeros((c,)), "square": jnp.ones((c,))}

    def grads(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[Tree, Tree, dict]:
        mask = alignment.length_mask(batch["frames"], batch["audio"].shape[1] // self.hop)
        if self.stage == "cluster":
            return {}, *self.cluster(rest, batch, mask)
        x = self.features(rest, batch["audio"], mask)
        classes = self.classes(rest, x)
        where, noise, drop = jax.random.split(rng, 3)
        hidden = masking.spans(where, mask.shape, self.mask_chance, self.mask_frames) & mask
        x = jnp.where(hidden[..., None], NOISE * jax.random.normal(noise, x.shape), x)
        weight = hidden * batch["weight"][:, None]

        def loss(params: Tree) -> tuple[jax.Array, dict]:
            logits = self.net.apply({"params": params}, x, mask, False, rngs={"dropout": drop})
            ce = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, classes[..., None], -1)[..., 0]
            right = (logits.argmax(-1) == classes).astype(jnp.float32)
            total = (ce * weight).sum()
            return total, {"loss": total, "accuracy": (right * weight).sum(), "weight": weight.sum()}

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        used = jnp.zeros(self.targets).at[classes].add(mask * batch["weight"][:, None])
        p = used / jnp.maximum(used.sum(), 1.0)
        return grads, {}, metrics | {"classes": jnp.exp(-(p * jnp.log(p + 1e-10)).sum()) * metrics["weight"]}

    def standardised(self, rest: Tree, h_btc: jax.Array) -> jax.Array:
        return (h_btc - rest["mean"]) * jax.lax.rsqrt(jnp.maximum(rest["square"] - jnp.square(rest["mean"]), 1e-6))

    def cluster(self, rest: Tree, batch: Batch, mask: jax.Array) -> tuple[Tree, dict]:
        """(statistics, metrics): `loss` is the mean squared distance to the nearest code, per channel."""
        h = self.layer_output(rest["encoder"]["params"], rest["encoder"]["rest"], batch["audio"], mask)
        weight = (mask * batch["weight"][:, None]).reshape(-1)
        x, raw = (y.reshape(-1, y.shape[-1]) for y in (self.standardised(rest, h), h))
        book = rest["kmeans"]["codebooks"][0]
        hits = jax.nn.one_hot(quantize.nearest(x, book), self.tokens, dtype=jnp.float32)
        distance = jnp.square(x - hits @ book).mean(-1)
        hits = hits * weight[:, None]
        stats = {"counts": hits.sum(0)[None], "sums": (hits.T @ x)[None], "rows": weight.sum()}
        stats |= {"mean": weight @ raw, "square": weight @ jnp.square(raw)}
        counts = rest["kmeans"]["counts"][0]
        p = counts / counts.sum()
        spread = jnp.exp(-(p * jnp.log(p + 1e-10)).sum())
        return stats, {"loss": (distance * weight).sum(), "perplexity": spread * weight.sum(), "weight": weight.sum()}

    def update(self, params: Tree, rest: Tree, stats: Tree, rng: jax.Array, step: jax.Array) -> Tree:
        """k-means' codebook, and the mean and square of the layer it works on."""
        del params, step
        if self.stage == "predict":
            return rest
        book = quantize.rvq_update(rng, rest["kmeans"], {name: stats[name] for name in ("counts", "sums")}, self.codebook_decay, self.dead)
        rows = jnp.maximum(stats["rows"], 1e-6)
        moved = {name: DECAY * rest[name] + (1 - DECAY) * stats[name] / rows for name in ("mean", "square")}
        return rest | moved | {"kmeans": book}

    # Programs -----------------------------------------------------------------------------------------------------------

    def listen(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: what layer `layer` says of a recording, float32 `[b, t, c]`."""
        del rng, sizes
        mask = alignment.length_mask(inputs["frames"], inputs["audio"].shape[1] // self.hop)
        return {"hidden": self.layer_output(params, rest, inputs["audio"], mask)}

    def tokenise(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: audio -> a token for every `hop` samples, int32 `[b, t]`, 0 past `frames`."""
        encoder = rest["encoder"]
        h = self.standardised(rest, self.listen(encoder["params"], encoder["rest"], inputs, rng, sizes)["hidden"])
        tokens = quantize.nearest(h.reshape(-1, h.shape[-1]), rest["kmeans"]["codebooks"][0]).reshape(h.shape[:2])
        return {"tokens": jnp.where(alignment.length_mask(inputs["frames"], h.shape[1]), tokens, 0)}

    def programs(self) -> dict[str, Program]:
        inputs = {name: self.fields[name] for name in ("audio", "frames")}
        if self.stage == "predict":
            return {"listen": Program(self.listen, inputs, {"hidden": Field("btc", "float32")})}
        return {"tokenise": Program(self.tokenise, inputs, {"tokens": Field("bt", "int32")})}

    def flops(self, sizes: Sizes) -> float:
        """Projections and the Conformer of one batch, forward: 2 per multiply-add."""
        net, t = self.net, sizes["t"]
        wide, d, inner = self.hop // self.mel_hop * self.mels, net.width, net.expansion * net.width
        block = t * (4 * d * net.inner + 3 * d * inner + 4 * d * d) + 2 * t * t * d
        if self.stage == "cluster":
            return 2.0 * sizes["b"] * (t * wide * d + self.layer * block + 3 * t * self.tokens * d)
        quantiser = wide * self.target_width + self.targets * self.target_width
        return 2.0 * sizes["b"] * (t * (wide * d + quantiser + d * self.targets) + net.layers * block)
