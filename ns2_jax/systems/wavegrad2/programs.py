"""What a trained WaveGrad 2 does: durations, speech by any schedule and in windows of any length, and how well it knows what it hears."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.maths import prosody, samplers, schedules
from ns2_jax.systems.system import Batch, Field, Program, Sizes, Tree

DEVIATION = 2.4
"""Of log-mel magnitudes in speech, about."""


class Programs:
    """Methods of the system that are no part of its training."""

    def schedule(self, steps: int) -> np.ndarray:
        """Log signal-to-noise ratios `[steps]` of the ancestral sampler: the listed schedule of so many steps, the training's own, or equal
        distances from the training's noisiest level to `cleanest`. Raises ValueError for one that begins with too much signal."""
        trained = schedules.logsnr(schedules.linear(*self.betas))
        listed = {len(betas): schedules.logsnr(betas) for betas in self.schedules}
        found = listed.get(steps, trained if steps == len(trained) else schedules.grid(steps, min(self.cleanest, trained[0]), trained[-1]))
        schedules.check(found, self.most_signal)
        return found

    def durations(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, speed: float) -> dict[str, jax.Array]:
        """Program: frames of each phone (int32 `[b, p]`, at least 1, 0 at padding), divided by `speed`."""
        del rest, rng, sizes
        real = inputs["phones"] > 0
        voice = self.voices(params, inputs, jnp.zeros(real.shape[:1], bool))
        log_duration = self.apply(params, "duration", self.text(params, inputs["phones"], voice), real)
        return {"durations": prosody.whole_frames(log_duration, real, speed)}

    def sample(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, steps: int, guidance: float, temperature: float,
        sampler: str, chunk: int, overlap: int,
    ) -> dict[str, jax.Array]:
        """Program: phones, durations and a prompt -> audio `[b, s]` and frames `[b]`.

        `sampler` is "ancestral" (the paper's) or one of `maths.samplers`, on the same network. `guidance` is the total factor (1: one
        evaluation a step). With a `chunk` the decoder hears so many frames at a time and `overlap` on both sides (-1: as far as it can
        hear, which gives what the whole at once would), so that memory does not grow with the length. Frames past `sizes["t"]` are cut:
        callers choose a bucket that holds the durations' sum.
        """
        del rest
        denoise, mask = self._denoiser(params, inputs, sizes["t"], guidance, chunk, overlap)
        if sampler == "ancestral":
            rows = schedules.ancestral(self.process, self.schedule(steps))
        else:
            rows = samplers.table(sampler, self.process, steps)
        x0 = self._follow(denoise, mask, rows, temperature, rng)
        return {"audio": x0, "frames": mask.sum(-1).astype(jnp.int32)}

    def trial(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, temperature: float) -> dict[str, jax.Array]:
        """Program: a schedule as an input, `logsnr` `[b, n]` in any order, and how far what it says is from the recording: `distance` `[b]`,
        the mean difference of log-mel in nepers, and `last_signal` `[b]`, its last abar. All rows follow the first row's schedule."""
        del rest
        denoise, mask = self._denoiser(params, inputs, sizes["t"], 1.0, 0, 0)
        ratios = jnp.sort(inputs["logsnr"][0])[::-1]
        made = self._follow(denoise, mask, schedules.ancestral(self.process, ratios), temperature, rng)
        heard = inputs["audio"][:, : made.shape[1]] * jnp.repeat(mask, self.hop, 1)
        off = jnp.abs(self.mel(made) - self.mel(heard)).mean(-1) * DEVIATION
        distance = (off * mask).sum(-1) / jnp.maximum(mask.sum(-1), 1)
        return {"distance": distance, "last_signal": jnp.broadcast_to(jax.nn.sigmoid(2 * ratios[-1]), distance.shape)}

    def score(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, window: int) -> dict[str, jax.Array]:
        """Program: the training loss of the noise, `loss` `[b, t]` for each frame (0 past the end), of recordings at a `place` `[b]` of the
        training schedule in [0, 1]. With a `window` the decoder hears windows of so many frames, one after the other and each by itself, as
        in training; the noise is the same."""
        del rest
        size = sizes["t"]
        evaluate, mask = self._decoder(params, inputs, size, window, 0)
        level, sigma = self.level(inputs["place"])
        noise = jax.random.normal(rng, (mask.shape[0], size * self.hop))
        heard = inputs["audio"][:, : size * self.hop] * jnp.repeat(mask, self.hop, 1)
        off = jnp.abs(evaluate(level[:, None] * self.shaped(heard) + sigma[:, None] * noise, level) - noise)
        return {"loss": off.reshape(*mask.shape, self.hop).mean(-1) * mask}

    def _decoder(
        self, params: Tree, inputs: Batch, size: int, chunk: int, overlap: int, dropped: bool = False,
    ) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], jax.Array]:
        """(`eps(y [b, s], level [b])` for what `inputs` are conditions of, mask `[b, t]`), of the unconditional model where `dropped`."""
        real, hop = inputs["phones"] > 0, self.hop
        rows = jnp.full(real.shape[:1], dropped)
        voice = self.voices(params, inputs, jnp.zeros_like(rows))
        h = self.text(params, inputs["phones"], voice)
        c, mask = self.frames(params, h, inputs["durations"], real, size)
        if dropped:
            c, voice = self.call(params, "frames", "without", c, rows), self.voices(params, inputs, rows)
        net = self.networks["decoder"]
        run = lambda y, c, level, mask: net.apply({"params": params["decoder"]}, y, c, level, voice, mask)
        if not chunk or chunk >= size:
            return lambda y, level: run(y, c, level, mask), mask
        side = net.reach() if overlap < 0 else overlap
        count = -(-size // chunk)

        def windows(x: jax.Array, step: int) -> jax.Array:
            """`[windows, b, (chunk + 2 side) * step, ...]`"""
            pads = (side * step, (side + count * chunk - size) * step)
            x = jnp.pad(x, ((0, 0), pads) + ((0, 0),) * (x.ndim - 2))
            return jnp.stack([x[:, i * chunk * step : ((i + 1) * chunk + 2 * side) * step] for i in range(count)])

        conditions = windows(c, 1), windows(mask, 1)

        def by_windows(y: jax.Array, level: jax.Array) -> jax.Array:
            found = jax.lax.map(lambda part: run(part[0], part[1], level, part[2]), (windows(y, hop), *conditions))
            inside = found[:, :, side * hop : (side + chunk) * hop]
            return jnp.moveaxis(inside, 0, 1).reshape(y.shape[0], -1)[:, : size * hop]

        return by_windows, mask

    def _denoiser(
        self, params: Tree, inputs: Batch, size: int, guidance: float, chunk: int, overlap: int,
    ) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], jax.Array]:
        """(`denoise(y [b, s], time)`, which estimates the clean waveform, mask `[b, t]`)."""
        eps, mask = self._decoder(params, inputs, size, chunk, overlap)
        null = self._decoder(params, inputs, size, chunk, overlap, True)[0] if guidance != 1.0 else None
        most = self.clamp * self.gain * (1 + self.emphasis)

        def denoise(y: jax.Array, t: jax.Array) -> jax.Array:
            level, sigma = self.process.alpha(t), self.process.sigma(t)
            levels = jnp.full((y.shape[0],), level)
            found = eps(y, levels)
            found = found if null is None else samplers.guide(null(y, levels), found, guidance)
            x0 = (y - sigma * found) / level
            return jnp.clip(x0, -most, most) if most else x0

        return denoise, mask

    def _follow(self, denoise: Callable, mask: jax.Array, rows: samplers.Table, temperature: float, rng: jax.Array) -> jax.Array:
        """Audio `[b, s]` from noise, zero past the end."""
        valid = jnp.repeat(mask, self.hop, 1).astype(jnp.float32)
        start = temperature * jax.random.normal(rng, valid.shape)
        return self.unshaped(samplers.run(denoise, start, rows, jax.random.fold_in(rng, 1)) * valid) * valid

    def programs(self) -> dict[str, Program]:
        take = lambda *names: {name: self.fields[name] for name in names}
        text, prompt, recording = take("phones"), take("prompt_audio", "prompt_frames"), take("audio")
        durations, audio, number = take("durations"), Field("bs", "float32"), Field("b", "float32")
        spoken = text | durations | prompt
        options = {"steps": self.steps, "guidance": 1.0, "temperature": self.temperature, "sampler": "ancestral", "chunk": 0, "overlap": -1}
        return {
            "durations": Program(self.durations, text | prompt, durations, {"speed": 1.0}),
            "sample": Program(self.sample, spoken, {"audio": audio, "frames": Field("b", "int32")}, options),
            "score": Program(self.score, spoken | recording | {"place": number}, {"loss": Field("bt", "float32")}, {"window": self.window}),
            "trial": Program(self.trial, spoken | recording | {"logsnr": Field("bn", "float32")},
                             {"distance": number, "last_signal": number}, {"temperature": self.temperature}),
        }
