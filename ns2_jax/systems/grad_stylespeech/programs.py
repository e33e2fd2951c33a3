"""What a trained Grad-StyleSpeech does: mels of audio and back, durations, speech, and alignments where it learned them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ns2_jax.maths import alignment, prosody, samplers
from ns2_jax.maths.spectral import LOUDEST
from ns2_jax.systems.system import Batch, Field, Program, Sizes, Tree


class Programs:
    """Methods of the system that are no part of its training."""

    def encode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: audio `[b, s]` -> its log-mel `[b, t, c]`, in nats."""
        del params, rest, rng, sizes
        return {"mel": self.vocoder_network.encode(inputs["audio"])}

    def decode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: log-mel `[b, t, c]` -> audio `[b, s]`, by the vocoder."""
        del params, rng, sizes
        return {"audio": self._vocode(rest, inputs["mel"])}

    def _vocode(self, rest: Tree, mel_btc: jax.Array) -> jax.Array:
        return self.vocoder_network.apply({"params": rest["vocoder"]["params"]["gen"]}, mel_btc)

    def _styles(self, params: Tree, inputs: Batch, dropped_b: jax.Array, window: int) -> jax.Array:
        """Of the prompt that a program is given."""
        mask = alignment.length_mask(inputs["prompt_frames"], inputs["prompt_mel"].shape[1])
        return self.styles(params, self.scaled(inputs["prompt_mel"], mask), inputs["prompt_frames"], dropped_b, window=window)

    def durations(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, speed: float, window: int,
    ) -> dict[str, jax.Array]:
        """Program: frames of each phone (int32 `[b, p]`, at least 1, 0 at padding): divided by `speed` first, rounded then."""
        del rest, rng, sizes
        real = inputs["phones"] > 0
        s = self._styles(params, inputs, jnp.zeros(real.shape[:1], bool), window)
        log_duration = self.apply(params, "duration", self.apply(params, "text", inputs["phones"]), real, s)
        return {"durations": prosody.whole_frames(log_duration, real, speed)}

    def sample(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, steps: int, guidance: float, temperature: float,
        sampler: str, window: int,
    ) -> dict[str, jax.Array]:
        """Program: phones, durations and a prompt -> audio, log-mel (nats), frames.

        `guidance` is the total factor (1: one evaluation a step, else two; of a `guided` system always one); `temperature` the standard deviation
        of the start, Grad-TTS's 1 / tau, which samplers that add noise (`ml`, `euler_maruyama`, `renoise`) forget on the way; `window` that of
        `styles`. Frames past `sizes["t"]` are cut: callers choose a bucket that holds the durations' sum.
        """
        denoise, mu, mask = self._denoiser(params, inputs, sizes["t"], guidance, window)
        start = temperature * jax.random.normal(rng, mu.shape) * mask[..., None]
        residual = samplers.run(denoise, start, samplers.table(sampler, self.process, steps), jax.random.fold_in(rng, 1))
        mel = (residual + mu) * self.mel_deviation + self.mel_mean
        mel = jnp.where(mask[..., None], jnp.maximum(mel, self.silence), self.silence)
        after = self.vocoder_network.reach("decode")[1]  # what fills its bucket ends in silence too
        audio = self._vocode(rest, jnp.pad(mel, ((0, 0), (0, after), (0, 0)), constant_values=self.silence))
        audio = audio[:, : mask.shape[1] * self.vocoder_network.hop] * jnp.repeat(mask, self.vocoder_network.hop, 1)
        return {"audio": audio, "mel": mel, "frames": mask.sum(-1).astype(jnp.int32)}

    def _denoiser(
        self, params: Tree, inputs: Batch, size: int, guidance: float, window: int,
    ) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], jax.Array, jax.Array]:
        """(`denoise(z [b, t, c], time)` of the residual Y - mu, mu, mask).

        Guided, the data prediction is that of the null style plus `guidance` times the difference. The two branches have averages of their own,
        so their residuals differ: R_t = alpha R_0 + sigma eps = (Y_t - (1 - alpha) mu) - alpha mu, where the bracket, alpha Y_0 + sigma eps, is the
        same for both. The null branch is therefore asked at R_t + alpha (mu - mu_null), and its answer is given back on the scale of mu.
        """
        rows = inputs["phones"].shape[0]
        h = self.apply(params, "text", inputs["phones"])
        s = self._styles(params, inputs, jnp.zeros((rows,), bool), window)
        mu, mask = self.average(params, h, inputs["durations"], s, size)
        if guidance == 1.0 or self.guided:
            s = self.told(params, s, jnp.full((rows,), guidance, jnp.float32)) if self.guided else s
            return (lambda z, t: self._clean(params, z, t, mu, s, mask)), mu, mask
        null = self._styles(params, inputs, jnp.ones((rows,), bool), window)
        mu_null, _ = self.average(params, h, inputs["durations"], null, size)
        both = jnp.concatenate([mu, mu_null]), jnp.concatenate([s, null]), jnp.tile(mask, (2, 1))

        def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
            apart = mu - mu_null
            x0 = self._clean(params, jnp.concatenate([z, z + self.process.alpha(t) * apart]), t, *both)
            return samplers.guide(x0[rows:] - apart, x0[:rows], guidance)

        return denoise, mu, mask

    def _clean(self, params: Tree, z: jax.Array, t: jax.Array, mu: jax.Array, s: jax.Array, mask: jax.Array) -> jax.Array:
        """The data prediction, kept within what a log-mel can be: at t = 1 an error of the noise prediction counts 150 times."""
        t = jnp.full(z.shape[:1], t)
        x0 = self.clean(self.heard(params, z, t, mu, s, mask), z, t)
        lowest, highest = ((edge - self.mel_mean) / self.mel_deviation for edge in (self.silence, LOUDEST))
        return (jnp.clip(x0 + mu, lowest, highest) - mu) * mask[..., None]

    def align(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: the best alignment by the aligner learned on the way. `durations` in frames sum to `frames`, a pause may have none; `score`
        is the mean log-likelihood ratio of a frame, nats."""
        del rest, rng, sizes
        mask = alignment.length_mask(inputs["frames"], inputs["audio"].shape[1] // self.vocoder_network.hop)
        scores = self.alignments(params, self.mels(inputs["audio"], mask), mask, inputs, 0.0)
        phones = inputs["phones"]
        durations, best = alignment.viterbi(scores, inputs["frames"], (phones > 0).sum(-1), phones == self.pause)
        return {"durations": durations, "score": best / jnp.maximum(inputs["frames"], 1)}

    def programs(self) -> dict[str, Program]:
        audio, mel, frames = Field("bs", "float32"), Field("btc", "float32"), Field("b", "int32")
        text, durations = {"phones": Field("bp", "int32")}, {"durations": Field("bp", "int32")}
        prompt = {"prompt_mel": Field("buc", "float32"), "prompt_frames": frames}
        sampler = self.sampler or ("sway" if self.objective == "flow" else "dpm")
        options = {"steps": self.evaluations, "guidance": self.guidance, "temperature": self.temperature, "sampler": sampler, "window": 0}
        programs = {
            "encode": Program(self.encode, {"audio": audio}, {"mel": mel}),
            "decode": Program(self.decode, {"mel": mel}, {"audio": audio}),
            "durations": Program(self.durations, text | prompt, durations, {"speed": 1.0, "window": 0}),
            "sample": Program(self.sample, text | durations | prompt, {"audio": audio, "mel": mel, "frames": frames}, options),
        }
        if self.aligner:
            inputs = {"audio": audio, "phones": Field("bp", "int32"), "frames": frames}
            programs["align"] = Program(self.align, inputs, durations | {"score": Field("b", "float32")})
        return programs
