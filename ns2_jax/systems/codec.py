"""The neural audio codec of NaturalSpeech 2 (section 3.1): encoder, residual vector quantiser, decoder, GAN.

From the paper (3.1, 4.3, Table 11): 16 kHz, hop 200, 16 levels x 1024 codes x 256 channels, post-quantisation
latent = sum of the codes, 27 M. It says "loss as SoundStream" and gives no widths or weights. Ours, from what recent
codecs share (DAC, EnCodec): least-squares GAN, multi-scale mel 15, relative feature matching 2, adversarial 1, commitment
0.25, decayed-mean codebooks from a k-means start, quantiser dropout on half of the rows. The modern configuration is DAC's: factorised
codes of 8 channels (`codec.code_width`, learned by gradients with a codebook loss of weight 1) and its discriminators (`judge="dac"`).

Deviations, each a value in `configs/codec.py`: `kind="frame"` (everything at frame rate, for CPUs), the
discriminators start at `adversarial_from`, the decoder hears unquantised latents before `quantise_from`, dead codes
move onto busy ones (`layers.quantize.rvq_update`), and `blur` lets the decoder hear coarse latents as smooth as a model predicts them: what is
spoken through it sounds the better for it.

One step function serves it: `grads` returns generator and discriminator gradients side by side under the keys `gen`
and `disc`, and the optimiser gives each key its own chain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers import discriminators, quantize
from ns2_jax.layers.codec import Codec
from ns2_jax.layers.discriminators import Discriminators
from ns2_jax.maths import spectral
from ns2_jax.systems.system import Base, Batch, Field, Program, Sizes, Tree, tuples

STATISTICS_DECAY = 0.995  # of the latent's mean and deviation in `rest`
BALANCE_DECAY = 0.999  # EnCodec's, of the norms of the losses' gradients
SURE = 5  # cepstra, the first ones, that a model predicts well
COLLAPSED = 0.01  # share of a level's codes in effect under which training stops; healthy runs stay over 0.14
WATCHED_FROM = 100


@dataclasses.dataclass(frozen=True)
class System(Base):
    """Numbers only. `codec` are the fields of `layers.codec.Codec`; STFT sizes have a hop of a quarter."""

    codec: Mapping[str, Any]
    levels: int = 16
    codes: int = 1024
    refine: int = 0  # of the last levels, which go on with the coarse channels; those between then code the waveform's alone
    mel_scales: tuple[tuple[int, int], ...] = ((128, 10), (256, 20), (512, 40), (1024, 80), (2048, 128))
    judge: str = "2d"
    judge_sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    judge_filters: int = 32
    mel_weight: float = 15.0
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    complex_weight: float = 0.0
    balance: bool = False
    adversarial_from: int = 5000
    quantise_from: int = 0
    quantiser_dropout: float = 0.5
    blur: float = 0.0  # frames: the deviation of the widest Gaussian by which latents of coarse levels alone are smoothed
    codebook_decay: float = 0.99  # 1 keeps the codebooks, and the latent's statistics
    dead: float = 0.02
    dtype: str = "float32"

    exported = (r"params/gen/.*", r"rest/(codebooks|mean|deviation)")
    fields = {"audio": Field("bs", "float32"), "weight": Field("b", "float32")}

    def __post_init__(self):
        net = self.network
        if net.coarse and (net.code_width or not net.wave or net.coarse >= self.levels):
            raise ValueError(f"coarse={net.coarse} levels of {self.levels} need Euclidean codes (code_width={net.code_width}), channels for the "
                             f"waveform (wave={net.wave}) and finer levels that code them")
        if self.blur and not net.coarse:
            raise ValueError(f"blur={self.blur} is of latents of coarse levels, of which coarse={net.coarse} has none")
        if self.refine and not (net.coarse and 0 < self.refine < self.levels - net.coarse):
            raise ValueError(f"refine={self.refine}: the last levels of {self.levels} go on with what coarse={net.coarse} levels coded, and "
                             "leave some between for the waveform")

    @property
    def network(self) -> Codec:
        numbers = tuples(self.codec)
        return Codec(**numbers, dtype=jnp.dtype(self.dtype))

    codec_network = network  # the name it has in systems that decode with it

    @property
    def judges(self) -> Discriminators:
        return Discriminators(self.judge, tuple(self.judge_sizes), self.judge_filters, jnp.dtype(self.dtype))

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings."""
        return {"sample_rate": self.network.rate, "hop": self.network.hop}

    @property
    def sizes(self) -> dict[str, int]:
        return {"q": self.levels, "c": self.network.channels, "m": self.network.coarse_channels}

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """Random networks, and Euclidean codebooks by k-means on the first batch's latents (SoundStream III-C).

        A batch of `small` has fewer frames (768) than codes: the start is rough and the decayed means do the rest.
        """
        gen, disc, means = jax.random.split(rng, 3)
        params = {"gen": dict(self.network.init(gen, batch["audio"])["params"]), "disc": self.judges.init(disc, batch["audio"])["params"]}
        z = self.network.apply({"params": params["gen"]}, batch["audio"], method="encode")
        if self.network.code_width:
            quantiser = quantize.Factorised(self.levels, self.codes, self.network.code_width, self.network.channels)
            params["gen"]["quantiser"] = quantiser.init(means)["params"]
            rest = {"counts": jnp.ones((self.levels, self.codes))}
        else:
            rest = quantize.rvq_start(means, z, self.levels, self.codes, self.task)
        if self.balance:
            rest["balance"] = {name: {"norm": jnp.zeros(()), "seen": jnp.zeros(())} for name in self.weights}
        return params, rest | {"mean": z.mean((0, 1)), "square": jnp.square(z).mean((0, 1)), "deviation": z.std((0, 1))}

    @property
    def task(self) -> jax.Array:
        """Which channels each level codes, 0 or 1 `[q, c]`.

        The coarse levels leave those of the waveform to the others. These see all, or with `refine` first the waveform's and at last what
        the coarse ones left: its error is small beside the waveform's, which codes of all channels therefore follow, but is heard more.
        """
        level, slow = jnp.arange(self.levels)[:, None], jnp.arange(self.network.channels) < self.network.coarse_channels
        late = level >= self.network.coarse
        if not self.refine:
            return (late | slow).astype(jnp.float32)
        return jnp.where(late & (level < self.levels - self.refine), ~slow, slow).astype(jnp.float32)

    def mel_loss(self, real_bs: jax.Array, fake_bs: jax.Array) -> jax.Array:
        """Multi-scale L1 of log10 mel magnitudes (DAC's, floor 1e-4), mean over scales: `[b]`."""

        def scale(size: int, bins: int) -> jax.Array:
            mel = lambda x: spectral.log_mel(x, self.network.rate, size, size // 4, bins, floor=1e-4) / jnp.log(10.0)
            return jnp.abs(mel(real_bs) - mel(fake_bs)).mean((1, 2))

        return sum(scale(size, bins) for size, bins in self.mel_scales) / len(self.mel_scales)

    def complex_loss(self, real_bs: jax.Array, fake_bs: jax.Array) -> jax.Array:
        """L1 of complex spectra compressed by |x|^0.3, mean over two scales: `[b]`. In the band whose waveform the codec follows, or
        everywhere; off in the paper's recipe."""
        total = 0.0
        for size in (512, 1024):
            edge = size * self.network.wave // (2 * self.network.hop) or size // 2 + 1
            real, fake = (spectral.stft(x, size, size // 4)[..., :edge] for x in (real_bs, fake_bs))
            bend = jax.lax.stop_gradient(spectral.magnitude(real, 1e-3) ** -0.7)
            total += 0.5 * spectral.magnitude((real - fake) * bend, 1e-4).mean((1, 2))
        return total

    def verdict(self, disc: Tree, audio_bs: jax.Array) -> discriminators.Judged:
        """What the discriminators say of audio."""
        return self.judges.apply({"params": disc}, audio_bs)

    def losses(self, disc: Tree, audio_bs: jax.Array, fake_bs: jax.Array, judged: jax.Array) -> dict[str, jax.Array]:
        """What the decoded waveform is held to, each `[b]`; the discriminators only where `judged`, their mean."""
        adversarial, features = discriminators.opinion(lambda x: self.verdict(disc, x), audio_bs, fake_bs, judged, relative=True)
        parts = {"mel": self.mel_loss(audio_bs, fake_bs), "adversarial": adversarial / self.judges.number, "features": features}
        return parts | ({"complex": self.complex_loss(audio_bs, fake_bs)} if self.complex_weight else {})

    @property
    def weights(self) -> dict[str, float]:
        """Of the `losses`."""
        both = {"mel": self.mel_weight, "adversarial": self.adversarial_weight, "features": self.feature_weight}
        return both | ({"complex": self.complex_weight} if self.complex_weight else {})

    def pull(self, disc: Tree, rest: Tree, audio_bs: jax.Array, fake_bs: jax.Array, weight_b: jax.Array, judged: jax.Array):
        """(gradient of the losses at the waveform `[b, s]`, losses, their gradients' norms as sums over rows).

        With `balance` every loss pulls with its share of the weights however large its gradient is (EnCodec's balancer): rows
        are divided by the decayed mean norm of that loss's gradients.
        """
        if not self.balance:
            def total(fake: jax.Array):
                parts = self.losses(disc, audio_bs, fake, judged)
                return (sum(self.weights[name] * part for name, part in parts.items()) * weight_b).sum(), parts

            gradient, parts = jax.grad(total, has_aux=True)(fake_bs)
            return gradient, parts, {}
        parts, back = jax.vjp(lambda fake: self.losses(disc, audio_bs, fake, judged), fake_bs)
        whole, gradient, norms = sum(self.weights.values()), 0.0, {}
        for name in parts:
            (one,) = back({other: jnp.full_like(part, float(other == name)) for other, part in parts.items()})
            length = jnp.sqrt(jnp.square(one).sum(-1) + 1e-24) * weight_b
            norms[name] = jnp.where(judged, length.sum(), 0.0) if name in ("adversarial", "features") else length.sum()
            known = rest["balance"][name]
            mean = jnp.where(known["seen"] > 0, known["norm"] / jnp.maximum(known["seen"], 1e-9), norms[name] / jnp.maximum(weight_b.sum(), 1e-9))
            gradient += self.weights[name] / whole * one / jnp.maximum(mean, 1e-12) * weight_b[:, None]
        return gradient, parts, norms

    def grads(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[Tree, Tree, dict]:
        audio, weight = batch["audio"], batch["weight"]
        depth_key, which_key = jax.random.split(rng)
        depth = jax.random.randint(depth_key, weight.shape, 1, self.levels + 1)
        drawn = jax.random.uniform(which_key, weight.shape)
        full = drawn >= self.quantiser_dropout
        depth = jnp.where(full, self.levels, depth)
        if self.network.coarse:
            alone = drawn < self.quantiser_dropout / 2
            depth = jnp.where(alone, self.network.coarse, depth)
        judged = self.adversarial_from <= 0 or step >= self.adversarial_from

        def generator(gen: Tree):
            z = self.network.apply({"params": gen}, audio, method="encode")
            if self.network.code_width:
                quantised, commitment, following, stats = quantize.factorised_train(z, gen["quantiser"], depth, weight)
            else:
                quantised, commitment, stats = quantize.rvq_train(z, rest["codebooks"], depth, weight, self.task)
                following = jnp.zeros_like(commitment)
            heard = jnp.where(step >= self.quantise_from, quantised, z)
            if self.blur:
                heard = self.blurred(heard, self.blur * alone * jax.random.uniform(jax.random.fold_in(rng, 2), alone.shape))
            fake = self.network.apply({"params": gen}, heard, method="decode")
            sums = jnp.einsum("btc,b->c", z, weight) / z.shape[1], jnp.einsum("btc,b->c", jnp.square(z), weight) / z.shape[1]
            error = (jnp.square(z - quantised).mean((1, 2)) / (z.var((1, 2)) + 1e-9)) * full
            stats |= {"mean": sums[0], "square": sums[1], "rows": weight.sum()}
            return (fake, commitment, following), (stats, error / jnp.maximum(full.mean(), 1e-6))

        (fake, commitment, following), back, (stats, error) = jax.vjp(generator, params["gen"], has_aux=True)
        gradient, parts, norms = self.pull(params["disc"], rest, audio, fake, weight, judged)
        (gen_grads,) = back((gradient, self.commitment_weight * weight, self.codebook_weight * weight))
        disc_loss, disc_grads = discriminators.lesson(self.verdict, params["disc"], audio, fake, weight / self.judges.number, judged)
        loss = sum(self.weights[name] * part for name, part in parts.items()) + self.commitment_weight * commitment
        parts |= {"commitment": commitment, "quantisation_error": error}
        if self.network.code_width:
            loss, parts = loss + self.codebook_weight * following, parts | {"codebook": following}
        metrics = {name: (part * weight).sum() for name, part in (parts | {"loss": loss}).items()}
        metrics |= {"discriminator": disc_loss, "weight": weight.sum()}
        metrics |= {name: value * weight.sum() for name, value in self.use(rest["counts"]).items()}
        if self.balance:
            stats["balance"] = norms
        return {"gen": gen_grads, "disc": disc_grads}, stats, metrics

    def blurred(self, z_btc: jax.Array, frames_b: jax.Array) -> jax.Array:
        """Latents without what cannot be predicted frame by frame: smoothed over time by Gaussians of a deviation of `frames_b` (0: not), but for
        the first SURE cepstra and the waveform's channels."""
        c, axes, at = self.network.coarse_channels, self.network.axes, jnp.arange(z_btc.shape[1])
        far = (at[:, None] - at) / jnp.maximum(frames_b, 1e-3)[:, None, None]
        near = jnp.exp(-0.5 * jnp.square(far))
        turned = z_btc[..., :c] @ axes
        smooth = jnp.einsum("bts,bsc->btc", near / near.sum(-1, keepdims=True), turned)
        smooth = jnp.where(jnp.arange(c) < SURE, turned, smooth) @ axes.T
        return jnp.where(frames_b[:, None, None] > 0, jnp.concatenate([smooth, z_btc[..., c:]], -1), z_btc)

    def use(self, counts_qk: jax.Array) -> dict[str, jax.Array]:
        """How the codes are used: perplexity and share in use of each level (01 the coarsest), mean perplexity and dead codes of all."""
        p = counts_qk / counts_qk.sum(-1, keepdims=True)
        perplexity = jnp.exp(-(p * jnp.log(p + 1e-10)).sum(-1))
        dead = counts_qk < self.dead * counts_qk.mean(-1, keepdims=True)
        each = {f"perplexity/{q + 1:02}": perplexity[q] for q in range(self.levels)}
        each |= {f"usage/{q + 1:02}": 1 - dead[q].mean() for q in range(self.levels)}
        return {"perplexity": perplexity.mean(), "dead_codes": dead.sum().astype(jnp.float32), **each}

    def alarm(self, metrics: Mapping[str, float], step: int) -> str:
        """What is wrong beyond repair: a level whose codes have fallen together (COLLAPSED of them are left in effect)."""
        fallen = [q + 1 for q in range(self.levels) if metrics[f"perplexity/{q + 1:02}"] < max(COLLAPSED * self.codes, 1.5)]
        if not fallen or step < WATCHED_FROM:
            return ""
        found = metrics[f"perplexity/{fallen[0]:02}"]
        return (f"the codebook of level {fallen[0]} has collapsed: perplexity {found:.1f} of {self.codes} codes"
                + (f" (also levels {fallen[1:]})" if fallen[1:] else "")
                + "; lower config.optim.peak, or raise config.model.commitment_weight, and start again or from an earlier checkpoint")

    def update(self, params: Tree, rest: Tree, stats: Tree, rng: jax.Array, step: jax.Array) -> Tree:
        """Codebooks, and the latent's mean and deviation per channel (a decayed mean over steps)."""
        del params, step
        if self.codebook_decay == 1.0:
            return rest
        if self.network.code_width:
            new = {"counts": self.codebook_decay * rest["counts"] + (1 - self.codebook_decay) * stats["counts"]}
        else:
            new = quantize.rvq_update(rng, rest, stats, self.codebook_decay, self.dead)
        rows = jnp.maximum(stats["rows"], 1e-6)
        if self.balance:
            decay, new["balance"] = BALANCE_DECAY, {}
            for name, norm in stats["balance"].items():
                old, seen = rest["balance"][name], (norm > 0).astype(jnp.float32)  # discriminators that wait have no norm
                kept = jnp.where(seen > 0, decay, 1.0)
                new["balance"][name] = {"norm": kept * old["norm"] + (1 - kept) * norm / rows, "seen": kept * old["seen"] + (1 - kept)}
        for name in ("mean", "square"):
            new[name] = STATISTICS_DECAY * rest[name] + (1 - STATISTICS_DECAY) * stats[name] / rows
        new["deviation"] = jnp.sqrt(jnp.maximum(new["square"] - jnp.square(new["mean"]), 1e-8))
        return new

    def encode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: audio `[b, s]` -> codes int32 `[b, t, q]` and the latents `[b, t, c]` before quantisation and after; `coarse` are those that
        an acoustic model predicts, in the channels and after the levels that are its own."""
        del rng, sizes
        z, books = self.network.apply({"params": params["gen"]}, inputs["audio"], method="encode"), quantize.books(params["gen"], rest)
        codes = quantize.rvq_encode(z, books)
        coarse = quantize.rvq_lookup(books.codes, codes, self.network.coarse or None)[..., : self.network.coarse_channels]
        return {"codes": codes, "latents": z, "quantised": quantize.rvq_lookup(books.codes, codes), "coarse": coarse}

    def decode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, levels: int) -> dict[str, jax.Array]:
        """Program: codes `[b, t, q]` -> audio `[b, s]`, from the first `levels` levels."""
        del rng, sizes
        z = quantize.rvq_lookup(quantize.books(params["gen"], rest).codes, inputs["codes"], levels)
        return {"audio": self.network.apply({"params": params["gen"]}, z, method="decode")}

    def decode_latents(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: latents `[b, t, c]` -> audio `[b, s]`, not quantised."""
        del rest, rng, sizes
        return {"audio": self.network.apply({"params": params["gen"]}, inputs["latents"], method="decode")}

    def programs(self) -> dict[str, Program]:
        audio, codes, latents, coarse = Field("bs", "float32"), Field("btq", "int32"), Field("btc", "float32"), Field("btm", "float32")
        return {
            "encode": Program(self.encode, {"audio": audio}, {"codes": codes, "latents": latents, "quantised": latents, "coarse": coarse}),
            "decode": Program(self.decode, {"codes": codes}, {"audio": audio}, {"levels": self.levels}),
            "decode_latents": Program(self.decode_latents, {"latents": latents}, {"audio": audio}),
        }

    def flops(self, sizes: Sizes) -> float:
        """Encoder, quantiser and decoder of one batch (judges and losses not counted): 2 per multiply-add."""
        net, frames = self.network, sizes["b"] * sizes["s"] / self.network.hop
        macs = self.levels * (self.codes * (net.code_width or net.channels) + 2 * net.code_width * net.channels)  # distances, per frame
        if net.kind == "frame":
            bins, w, low = net.size // 2 + 1, net.width, net.wave * net.size // (2 * net.hop)
            block = 7 * w + 6 * w * w
            macs += (2 * bins + net.mels + net.wave) * w + net.channels * w + sum(net.blocks) * block  # encoder in, out; all blocks
            macs += 3 * net.channels * w + (3 * bins - low) * w + bins * net.mels * 2  # decoder in, head, mel maps
            macs += net.mels * (net.mels + net.cepstrum)  # cepstrum and back
            macs += net.wave * (2 * net.hop + 2 * net.mels + 10 * low) + 2 * net.cepstrum * net.mels * bool(net.wave)  # MDCT, its spectra, levels
            return 2.0 * frames * macs
        rate, w = net.hop, net.width  # positions per frame at the input
        macs += rate * 7 * w
        for stride in net.strides:
            macs += rate * 24 * w * w
            rate //= stride
            macs += rate * 2 * stride * w * 2 * w
            w *= 2
        macs += 3 * w * net.channels + 24 * net.channels**2
        w = net.decoder_width
        macs += 7 * net.channels * w
        for stride in reversed(net.strides):
            macs += rate * 2 * stride * w * (w // 2)
            w, rate = w // 2, rate * stride
            macs += rate * 24 * w * w
        return 2.0 * frames * (macs + rate * 7 * w)
