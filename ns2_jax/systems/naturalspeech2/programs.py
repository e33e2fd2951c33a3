"""What a trained NaturalSpeech 2 does: codes of audio and back, durations, pitch, speech, and speech made into other speech."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ns2_jax.layers import pitch_phase, quantize
from ns2_jax.maths import alignment, prosody, samplers
from ns2_jax.systems.system import Batch, Field, Program, Sizes, Tree


class Programs:
    """Methods of the system that are no part of its training."""

    def encode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: audio `[b, s]` -> codes int32 `[b, t, q]`."""
        del params, rng, sizes
        z = self.codec_network.apply({"params": rest["codec"]["params"]["gen"]}, inputs["audio"], method="encode")
        return {"codes": quantize.rvq_encode(z, self.books(rest))}

    def decode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: codes `[b, t, q]` -> audio `[b, s]`."""
        del params, rng, sizes
        return {"audio": self._decode(rest, quantize.rvq_lookup(self.books(rest).codes, inputs["codes"]))}

    def _decode(self, rest: Tree, z_btc: jax.Array) -> jax.Array:
        """Coarse latents have no waveform channels: the decoder makes up what they would say."""
        z_btc = jnp.pad(z_btc, ((0, 0), (0, 0), (0, self.codec_network.channels - z_btc.shape[-1])))
        return self.codec_network.apply({"params": rest["codec"]["params"]["gen"]}, z_btc, method="decode")

    def durations(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, speed: float, window: int,
    ) -> dict[str, jax.Array]:
        """Program: frames of each phone (int32 `[b, p]`, at least 1, 0 at padding), divided by `speed`."""
        del rng, sizes
        real = inputs["phones"] > 0
        prompt = self.prompts(params, rest, inputs, jnp.zeros(real.shape[:1], bool), window=window)["predictors"]
        h = self.apply(params, "phones", inputs["phones"])
        h = h + self.voices(params, rest, inputs, jnp.zeros(real.shape[:1], bool))["predictors"]
        log_duration = self.apply(params, "duration", h, real, *prompt)[..., 0]
        return {"durations": prosody.whole_frames(log_duration, real, speed)}

    def contour(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, window: int) -> dict[str, jax.Array]:
        """Program: the pitch of every frame in Hz, 0 where unvoiced and past the end, float32 `[b, t]`."""
        del rng
        none = jnp.zeros(inputs["phones"].shape[:1], bool)
        prompt = self.prompts(params, rest, inputs, none, window=window)["predictors"]
        h = self.apply(params, "phones", inputs["phones"])
        c, mask = self.frames(params, h, inputs["durations"], sizes["t"])
        pitch = self.apply(params, "pitch", c + self.voices(params, rest, inputs, none)["predictors"], mask, *prompt)
        return {"f0": prosody.hertz(pitch, mask, self.pitch_mean, self.pitch_deviation, *self.pitch_range)}

    def sample(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, steps: int, guidance: float, temperature: float,
        sampler: str, snap: int, window: int,
    ) -> dict[str, jax.Array]:
        """Program: phones, durations, pitch and a prompt -> audio, latents (codec's units), frames.

        `guidance` is the total factor (1: one evaluation a step, else two; of a `guided` system always one); `temperature` the standard
        deviation of the start; `snap` rounds the result to so many levels of codes (0: not). Frames past `sizes["t"]` are cut: callers
        choose a bucket that holds the durations' sum. `window` is that of `prompts`.
        """
        denoise, mask = self._denoiser(params, rest, inputs, sizes["t"], guidance, window)
        start = temperature * jax.random.normal(rng, (*mask.shape, self.sizes["c"])) * mask[..., None]
        x0 = samplers.run(denoise, start, samplers.table(sampler, self.process, steps), jax.random.fold_in(rng, 1))
        return self._finish(rest, x0, mask, snap)

    def convert(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, steps: int, guidance: float, snap: int, window: int,
    ) -> dict[str, jax.Array]:
        """Program: what was said, in another voice or without its noise (section 5.7) -> as `sample`.

        The ODE carries the source's latents (`codes`, with its phones, durations, `f0` and a prompt of its own sound) to t = 1 and back
        with the prompt `target_codes` and the pitch `target_f0`: `steps` of DDIM both ways on one grid, from t = 1e-3, where there is no noise. Few
        steps amplify the error of the first data estimates: 50 or more. The offset of the pitch's phase is the source's both ways,
        of its nearest voiced frame.
        """
        del rng
        size = sizes["t"]
        mask = alignment.length_mask(inputs["durations"].sum(-1), size)
        f0 = inputs["f0"] * mask
        offset, _ = self.offset(params, rest, inputs["codes"], f0, mask)
        away, _ = self._denoiser(params, rest, inputs, size, 1.0, window, offset)
        target = inputs | {"prompt_codes": inputs["target_codes"], "prompt_frames": inputs["target_frames"], "f0": inputs["target_f0"]}
        back, _ = self._denoiser(params, rest, target, size, guidance, window, None if offset is None else pitch_phase.held(offset, f0))
        there = samplers.inverse_ddim(self.process, steps)
        start = self.process.alpha(float(there["t"][0])) * self.latents(rest, inputs["codes"], mask)
        noise = samplers.run(away, start, there)
        return self._finish(rest, samplers.run(back, noise, samplers.table("ddim", self.process, steps + 1)), mask, snap)

    def _denoiser(
        self, params: Tree, rest: Tree, inputs: Batch, size: int, guidance: float, window: int, offset_bt2: jax.Array | None = None,
    ) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], jax.Array]:
        """(`denoise(z [b, t, c], time)` for what `inputs` are conditions of, mask `[b, t]`); what a step does not change is done once."""
        rows = inputs["phones"].shape[0]
        none, all_ = jnp.zeros((rows,), bool), jnp.ones((rows,), bool)
        h = self.apply(params, "phones", inputs["phones"])
        c, mask = self.frames(params, h, inputs["durations"], size)
        c = self.pitched(params, c, inputs["f0"] * mask, offset_bt2)
        heard = self.prompts(params, rest, inputs, none, window=window)["denoiser"]
        voice = self.voices(params, rest, inputs, none)["denoiser"]
        if self.guided:
            c = self.told(params, c + voice, jnp.full((rows,), guidance, jnp.float32))
        elif guidance != 1.0:  # the unconditional rows ride along in the same batch
            null = self.prompts(params, rest, inputs, all_, window=window)["denoiser"]
            heard = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), heard, null)
            nothing = self.call(params, "phones", "without", c, all_) + self.voices(params, rest, inputs, all_)["denoiser"]
            c = jnp.concatenate([c + voice, nothing])
        else:
            c = c + voice
        prepared = self.call(params, "denoiser", "prepare", c, *heard)
        copies = c.shape[0] // rows
        masks = jnp.tile(mask, (copies, 1))

        def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
            z, t = jnp.tile(z, (copies, 1, 1)), jnp.full((c.shape[0],), t)
            x0 = self.clean(self.call(params, "denoiser", "step", z, t, prepared, masks), z, t)
            return (samplers.guide(x0[rows:], x0[:rows], guidance) if copies == 2 else x0) * mask[..., None]

        return denoise, mask

    def _finish(self, rest: Tree, x0: jax.Array, mask: jax.Array, snap: int) -> dict[str, jax.Array]:
        valid = mask[..., None].astype(jnp.float32)
        latents = self.restore(rest, x0) * valid
        if snap:
            books, _, _ = self.coarse(rest)
            latents = quantize.rvq_lookup(books.codes, quantize.rvq_encode(latents, books, snap)) * valid
        audio = self._decode(rest, latents) * jnp.repeat(mask, self.codec_network.hop, 1)
        return {"audio": audio, "latents": latents, "frames": mask.sum(-1).astype(jnp.int32)}

    def programs(self) -> dict[str, Program]:
        audio, codes = Field("bs", "float32"), Field("btq", "int32")
        text, prompt = {"phones": self.fields["phones"]}, {name: self.fields[name] for name in ("prompt_codes", "prompt_frames")}
        durations, pitch = {"durations": self.fields["durations"]}, {"f0": self.fields["f0"]}
        sampled = {"audio": audio, "latents": Field("btc", "float32"), "frames": Field("b", "int32")}
        flow = self.objective == "flow"
        options = {"steps": self.evaluations or (32 if flow else 150), "guidance": self.guidance, "snap": 0, "window": 0}
        how = {"temperature": self.temperature, "sampler": self.sampler or ("sway" if flow else "euler")}
        target = {"target_codes": self.fields["prompt_codes"], "target_frames": self.fields["prompt_frames"], "target_f0": self.fields["f0"]}
        programs = {
            "encode": Program(self.encode, {"audio": audio}, {"codes": codes}),
            "decode": Program(self.decode, {"codes": codes}, {"audio": audio}),
            "durations": Program(self.durations, text | prompt, durations, {"speed": 1.0, "window": 0}),
            "contour": Program(self.contour, text | durations | prompt, pitch, {"window": 0}),
            "sample": Program(self.sample, text | durations | pitch | prompt, sampled, options | how),
        }
        if not self.guided:  # a student knows its own long steps from the noise, not the way there
            given = text | durations | pitch | prompt | target | {"codes": codes}
            programs["convert"] = Program(self.convert, given, sampled, options | {"steps": 150})
        return programs
