"""A vocoder: HiFi-GAN (Kong et al., NeurIPS 2020), and the same training for a generator that ends in an inverse STFT.

    L_G = adversarial + 2 features + 45 |mel(x) - mel(x_hat)|_1 (equation 5), L_D least squares (equation 1),
    both sums over the judges: five periods and three scales ("hifigan"), or cheaper ones (`layers.discriminators`)

Deviations: the scale discriminators' convolutions are dense (`layers.discriminators.Scale`); feature matching compares the maps of all their
layers but the last, the scores, which the published code has among them; strided convolutions pad as "SAME" does. The generator learns from
recordings' mels alone: fine-tuning it on those that an acoustic model makes (the paper's end-to-end experiment) is not built.
Ours, values in `configs/vocoder.py`: several resolutions in the mel loss, which reaches to half the sampling rate as in the published code
whatever the input's `fmax`; `adversarial_from`, before which the judges wait.
`grads` returns generator and discriminators under the keys `gen` and `disc`, which have optimisers of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers import discriminators
from ns2_jax.layers.discriminators import Discriminators
from ns2_jax.layers.vocoder import Vocoder
from ns2_jax.maths import spectral
from ns2_jax.systems.system import Base, Batch, Field, Program, Sizes, Tree, tuples


@dataclasses.dataclass(frozen=True)
class System(Base):
    """Numbers only. `vocoder` are the fields of `layers.vocoder.Vocoder`; `mel_scales` are (STFT size, bands), with a hop of a quarter."""

    vocoder: Mapping[str, Any]
    mel_scales: tuple[tuple[int, int], ...] = ((1024, 80),)
    judge: str = "hifigan"
    judge_sizes: tuple[int, ...] = (1, 2, 4)
    judge_filters: int = 32
    mel_weight: float = 45.0
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    adversarial_from: int = 0
    dtype: str = "float32"

    exported = (r"params/gen/.*",)
    fields = {"audio": Field("bs", "float32"), "weight": Field("b", "float32")}

    @property
    def network(self) -> Vocoder:
        return Vocoder(**tuples(self.vocoder), dtype=jnp.dtype(self.dtype))

    codec_network = network  # what turns audio into frames and back, as in a codec

    @property
    def judges(self) -> Discriminators:
        return Discriminators(self.judge, tuple(self.judge_sizes), self.judge_filters, jnp.dtype(self.dtype))

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.network.rate, "hop": self.network.hop}

    @property
    def sizes(self) -> dict[str, int]:
        return {"c": self.network.mels}

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        gen, disc = jax.random.split(rng)
        mel = jnp.zeros((1, 2, self.network.mels))
        return {"gen": self.network.init(gen, mel)["params"], "disc": self.judges.init(disc, batch["audio"])["params"]}, {}

    def mel_loss(self, real_bs: jax.Array, fake_bs: jax.Array) -> jax.Array:
        """L1 of natural log-mels, mean over scales: `[b]`."""
        mel = lambda x, size, bins: spectral.log_mel(x, self.network.rate, size, size // 4, bins, self.network.floor)
        return sum(jnp.abs(mel(real_bs, *scale) - mel(fake_bs, *scale)).mean((1, 2)) for scale in self.mel_scales) / len(self.mel_scales)

    def grads(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[Tree, Tree, dict]:
        """Sums over rows, to be divided by their number; the discriminators judge what the generator made before its update."""
        del rest, rng
        audio, weight = batch["audio"], batch["weight"]
        mel, judged = self.network.encode(audio), self.adversarial_from <= 0 or step >= self.adversarial_from
        judge = lambda disc, x: self.judges.apply({"params": disc}, x)

        def generator(gen: Tree):
            fake = self.network.apply({"params": gen}, mel)
            adversarial, features = discriminators.opinion(lambda x: judge(params["disc"], x), audio, fake, judged)
            parts = {"mel": self.mel_loss(audio, fake), "adversarial": adversarial, "features": features}
            loss = self.mel_weight * parts["mel"] + self.adversarial_weight * adversarial + self.feature_weight * features
            return (loss * weight).sum(), (fake, parts | {"loss": loss})

        gen_grads, (fake, parts) = jax.grad(generator, has_aux=True)(params["gen"])
        disc_loss, disc_grads = discriminators.lesson(judge, params["disc"], audio, fake, weight, judged)
        metrics = {name: (part * weight).sum() for name, part in parts.items()}
        return {"gen": gen_grads, "disc": disc_grads}, {}, metrics | {"discriminator": disc_loss, "weight": weight.sum()}

    def encode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: audio `[b, s]` -> its log-mel `[b, t, c]`."""
        del params, rest, rng, sizes
        return {"mel": self.network.encode(inputs["audio"])}

    def decode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: log-mel `[b, t, c]` -> audio `[b, s]`."""
        del rest, rng, sizes
        return {"audio": self.network.apply({"params": params["gen"]}, inputs["mel"])}

    def programs(self) -> dict[str, Program]:
        audio, mel = {"audio": Field("bs", "float32")}, {"mel": Field("btc", "float32")}
        return {"encode": Program(self.encode, audio, mel), "decode": Program(self.decode, mel, audio)}

    def flops(self, sizes: Sizes) -> float:
        """The generator of one batch (mels and judges not counted): 2 per multiply-add."""
        net, frames = self.network, sizes["b"] * sizes["s"] / self.network.hop
        if net.kind == "istft":
            bins, w = net.size // 2 + 1, net.width
            return 2.0 * frames * (7 * net.mels * w + net.blocks * (7 * w + 6 * w * w) + 3 * bins * w + net.mels * bins)
        macs, positions, w = 7 * net.mels * net.width, 1, net.width
        for stride in net.strides:
            macs += positions * 2 * stride * w * (w // 2)
            w, positions = w // 2, positions * stride
            macs += positions * 2 * len(net.dilations) * sum(net.kernels) * w * w
        return 2.0 * frames * (macs + positions * 7 * w)
