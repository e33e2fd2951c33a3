"""What a trained SoundStorm does: codes of audio and back, durations, pitch, speech in the voice of a prompt, spans filled in."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ns2_jax.layers import quantize
from ns2_jax.maths import alignment, masking, prosody
from ns2_jax.systems.system import Batch, Field, Program, Sizes, Tree


class Programs:
    """Methods of the system that are no part of its training."""

    def encode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: audio `[b, s]` -> codes int32 `[b, t, q]` of the levels that are modelled."""
        del params, rng, sizes
        z = self.codec_network.apply({"params": rest["codec"]["params"]["gen"]}, inputs["audio"], method="encode")
        return {"codes": quantize.rvq_encode(z, self.books(rest))}

    def decode(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: codes `[b, t, q]` -> audio `[b, s]`."""
        del params, rng, sizes
        z = quantize.rvq_lookup(self.books(rest).codes, inputs["codes"])
        return {"audio": self.codec_network.apply({"params": rest["codec"]["params"]["gen"]}, z, method="decode")}

    def _said(self, params: Tree, rest: Tree, inputs: Batch) -> tuple[jax.Array, tuple]:
        """(phone vectors in the prompt's voice, what the predictors hear of the prompt)."""
        voice = inputs["prompt_codes"], alignment.length_mask(inputs["prompt_frames"], inputs["prompt_codes"].shape[1])
        return self.voiced(params, rest, self.apply(params, "phones", inputs["phones"]), *voice), self.heard(params, rest, *voice)

    def durations(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, speed: float) -> dict[str, jax.Array]:
        """Program: frames of each phone (int32 `[b, p]`, at least 1, 0 at padding), divided by `speed`."""
        del rng, sizes
        real = inputs["phones"] > 0
        h, heard = self._said(params, rest, inputs)
        log_duration = self.apply(params, "duration", h, real, *heard)
        return {"durations": prosody.whole_frames(log_duration[..., 0], real, speed)}

    def contour(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: the pitch of every frame in Hz, 0 where unvoiced and past the end, float32 `[b, t]`."""
        del rng
        h, heard = self._said(params, rest, inputs)
        c, align = self.frames(params, h, inputs["durations"], sizes["t"])
        pitch = self.apply(params, "pitch", c, align.any(-1), *heard)
        return {"f0": prosody.hertz(pitch, align.any(-1), self.pitch_mean, self.pitch_deviation, *self.pitch_range)}

    def sample(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, steps: int, guidance: float, temperature: float,
        top_p: float, choice: float,
    ) -> dict[str, jax.Array]:
        """Program: phones, durations, pitch and a prompt whose words are not known -> audio, codes int32 `[b, t, q]`, frames.

        The prompt stands before the first frame, as one recording with what follows; a row with no prompt frames gets a voice by chance.
        `passes(steps)` are made, shared among the levels by `schedule` (int32 `[b, q]`; zeros: `steps` for the first, one for
        each other). `guidance` is the total factor (1: one evaluation a pass, else two). Frames past `sizes["t"]` are cut: callers choose
        a bucket that holds the durations' sum.
        """
        prompt, n = inputs["prompt_codes"].astype(jnp.int32), inputs["prompt_frames"][:, None]
        u = prompt.shape[1]
        c, align = self.frames(params, self._said(params, rest, inputs)[0], inputs["durations"], sizes["t"])
        mask = align.any(-1)
        c = self.pitched(params, c, inputs["f0"] * mask) if self.pitch else c
        at = jnp.arange(u)[None] - (u - n)  # right-aligned
        heard = at >= 0
        prompt = jnp.take_along_axis(prompt, jnp.maximum(at, 0)[..., None], 1)
        before = lambda left, right: jnp.concatenate([left, right], 1)
        codes = before(prompt, jnp.zeros((*mask.shape, self.levels), jnp.int32))
        none = jnp.zeros_like(heard)
        known, target = before(none, mask), before(none, mask)
        c = before(jnp.zeros((*heard.shape, c.shape[-1]), c.dtype), c)
        filled = self._fill(params, rest, codes, target, before(heard, mask), c, known, inputs["schedule"], rng, steps, guidance,
                            temperature, top_p, choice)[:, u:]
        return self._spoken(rest, filled, mask)

    def fill_in(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, steps: int, guidance: float, temperature: float,
        top_p: float, choice: float,
    ) -> dict[str, jax.Array]:
        """Program: a recording's codes whose frames from `begin` to `end` are made anew -> as `sample`.

        The condition (phones, durations and pitch, or tokens) is of all `frames`, those that stay included: a prompt with its words
        (`begin` behind it), a continuation, an edited word. What stays is given back as it was.
        """
        mask = alignment.length_mask(inputs["frames"], sizes["t"])
        at = jnp.arange(sizes["t"])
        target = mask & (at >= inputs["begin"][:, None]) & (at < inputs["end"][:, None])
        c, voice = 0.0, (inputs["codes"], mask & ~target)
        if self.condition != "phones":
            c = self.voiced(params, rest, self.tokens(params, inputs["semantic"]), *voice)
        if self.speaks:
            h = self.voiced(params, rest, self.apply(params, "phones", inputs["phones"]), *voice)
            frames, _ = self.frames(params, h, inputs["durations"], sizes["t"])
            if self.pitch:
                f0 = inputs["f0"] * mask
                frames = self.pitched(params, frames, f0, self.offset(params, rest, inputs["codes"], f0, mask & ~target)[0])
            c = c + frames
        codes = self._fill(params, rest, inputs["codes"], target, mask, c, mask, inputs["schedule"], rng, steps, guidance, temperature, top_p,
                           choice)
        return self._spoken(rest, codes, mask)

    def passes(self, steps: int) -> int:
        """How often decoding asks the decoder, with `steps` for the first level and one for each other."""
        return steps + self.levels - 1

    def _fill(
        self, params: Tree, rest: Tree, codes: jax.Array, target: jax.Array, mask: jax.Array, c: jax.Array, known: jax.Array,
        schedule: jax.Array, rng: jax.Array, steps: int, guidance: float, temperature: float, top_p: float, choice: float,
    ) -> jax.Array:
        """Codes with all levels of the target decoded. Without guidance's prompt only the target is seen, without any condition."""
        books, rows = self.books(rest).codes, codes.shape[0]
        known = known & mask
        if guidance != 1.0:  # the unconditional rows ride along in the same batch
            c, known, mask = (jnp.concatenate(pair) for pair in ((c, c), (known, jnp.zeros_like(known)), (mask, target)))
        copies = c.shape[0] // rows

        def logits_of(codes: jax.Array, level: jax.Array) -> jax.Array:
            logits = self.apply(params, "decoder", jnp.tile(codes, (copies, 1, 1)), books, c, known, mask, jnp.tile(level, copies))
            if copies == 1:
                return logits
            with_, without = jax.nn.log_softmax(logits[:rows], -1), jax.nn.log_softmax(logits[rows:], -1)
            return without + guidance * (with_ - without)

        return masking.decode(
            logits_of, codes, target, schedule, jax.random.split(rng, rows), blank=self.codes, total=self.passes(steps),
            temperature=temperature, top_p=top_p, choice=choice)

    def _spoken(self, rest: Tree, codes: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        codes = jnp.where(mask[..., None], jnp.minimum(codes, self.codes - 1), 0)  # a schedule with too few passes leaves blanks
        z = quantize.rvq_lookup(self.books(rest).codes, codes) * mask[..., None]
        audio = self.codec_network.apply({"params": rest["codec"]["params"]["gen"]}, z, method="decode")
        return {"audio": audio * jnp.repeat(mask, self.codec_network.hop, 1), "codes": codes, "frames": mask.sum(-1).astype(jnp.int32)}

    def programs(self) -> dict[str, Program]:
        audio, codes, count = Field("bs", "float32"), Field("btq", "int32"), Field("b", "int32")
        text = {name: self.fields[name] for name in ("phones", "durations", "f0", "semantic") if name in self.fields}
        prompt = {"prompt_codes": Field("buq", "uint16"), "prompt_frames": count}
        schedule, made = {"schedule": Field("bq", "int32")}, {"audio": audio, "codes": codes, "frames": count}
        options = {"steps": self.steps, "guidance": 1.0, "temperature": self.temperature, "top_p": self.top_p, "choice": self.choice}
        span = {"codes": codes, "frames": count, "begin": count, "end": count}
        found = {
            "encode": Program(self.encode, {"audio": audio}, {"codes": codes}),
            "decode": Program(self.decode, {"codes": codes}, {"audio": audio}),
            "infill": Program(self.fill_in, text | span | schedule, made, options)}
        if self.condition == "phones":  # where tokens are needed too, somebody must say them first
            said = {"phones": text["phones"]}
            found["durations"] = Program(self.durations, said | prompt, {"durations": text["durations"]}, {"speed": 1.0})
            found["sample"] = Program(self.sample, text | prompt | schedule, made, options)
            if self.pitch:
                found["contour"] = Program(self.contour, said | {"durations": text["durations"]} | prompt, {"f0": text["f0"]})
        return found
