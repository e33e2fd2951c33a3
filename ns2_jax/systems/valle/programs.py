"""What a trained VALL-E does: codes of audio and back, how long a text may take, and speech."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers import quantize
from ns2_jax.maths import alignment, tokens
from ns2_jax.systems.system import Batch, Field, Program, Sizes, Tree

ROOM = 1.5
"""Frames that a text is given room for, as a multiple of those that are expected; a bucket must hold them."""
SHORTEST, LONGEST = 0.3, 2.0
"""The length guard: no end before the one, none later than the other, as multiples of what is expected. Ours; the papers have none."""
LONGEST_SECONDS = 1.5
"""A short text may take at least so long."""


def row_keys(rng: jax.Array, rows: int) -> jax.Array:
    """One key a row: they are given, or follow from one."""
    return rng if rng.ndim else jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(rows))


class Programs:
    """Methods of the system that are no part of its training."""

    def books(self, rest: Tree) -> quantize.Books:
        """The frozen codec's codes, of the levels that are modelled."""
        books = quantize.books(rest["codec"]["params"]["gen"], rest["codec"]["rest"])
        return jax.tree.map(lambda x: x[: self.levels], books)

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

    # Length -----------------------------------------------------------------------------------------------------------

    def expected(self, inputs: Batch) -> jax.Array:
        """Frames that the target's text takes at the prompt's speed, float32 `[b]`; at a usual one where there is no prompt."""
        prompt, target = ((inputs[name] > 0).sum(-1) for name in self.text_names)
        usual = self.frames_per_phone
        speed = jnp.clip(inputs["prompt_frames"] / jnp.maximum(prompt, 1), usual / 3, 3 * usual)
        return target * jnp.where((prompt > 0) & (inputs["prompt_frames"] > 0), speed, usual)

    def durations(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: frames that each piece of text is given room for, int32 `[b, p]`. How long it takes `sample` decides as it speaks."""
        del params, rest, rng, sizes
        there = inputs[self.text_names[1]] > 0
        each = ROOM * self.expected(inputs) / jnp.maximum(there.sum(-1), 1)
        return {"durations": jnp.where(there, jnp.ceil(each)[:, None], 0).astype(jnp.int32)}

    # Speech -----------------------------------------------------------------------------------------------------------

    def sample(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, best_of: int, **options: Any) -> dict[str, jax.Array]:
        """Program: text, and a prompt with its text -> audio of the target, its codes, frames, and frames of each phone.

        `best_of` takes are made and the one kept that ended and whose finer levels the NAR model holds most likely (`likelihood`, nats of a
        code). `ended` is 0 where the speech was cut at its longest length. The other options are those of `generate`.
        """
        rows = inputs["prompt_frames"].shape[0]
        keys = row_keys(rng, rows)
        if best_of > 1:
            inputs = jax.tree.map(lambda x: jnp.repeat(x, best_of, 0), dict(inputs))
            keys = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(best_of)))(keys).reshape(-1)
        made = self.generate(params["ar"], inputs, keys, sizes["t"], **options)
        joined, codes, likelihood = self.fill(params["nar"], inputs, made["codes"], made["frames"])
        made |= {"codes": codes, "joined": joined, "prompt_frames": inputs["prompt_frames"], "likelihood": likelihood}
        if best_of > 1:
            rank = (likelihood - 1e3 * (1 - made["ended"])).reshape(rows, best_of)  # of those that did not end, the likeliest
            best = jnp.arange(rows) * best_of + jnp.argmax(rank, -1)
            made = jax.tree.map(lambda x: jnp.take(x, best, axis=0), made)
        return self._voice(rest, made, sizes["t"])

    def generate(
        self, params: Tree, inputs: Batch, keys: jax.Array, t: int, temperature: float, top_p: float, repetition_window: int,
        repetition_share: float, trigger: str, redraw: str, cache: bool, least: int,
    ) -> dict[str, jax.Array]:
        """The AR model's codes int32 `[b, t]`, their number `frames`, whether they `ended`, how many were drawn again, and `durations`.

        One compiled loop, until every row has ended. `repetition_*`, `trigger` and `redraw` are `maths.tokens.repetition_aware`'s; its window
        holds generated codes only, and codes of a group are drawn one after the other so that it is defined. The end may be drawn
        inside a group: the codes before it count. `least` frames are spoken at least, whatever the guard says. Without `cache` everything is
        computed again for each group: for comparison.
        """
        net, stack, g, end = self.coarse, self.coarse.trunk(parent=None), self.group, self.codes
        call = lambda method, *args, **more: net.apply({"params": params}, *args, method=method, **more)
        text, rows = self.joined_text(inputs), keys.shape[0]
        prompt, p = inputs["prompt_frames"] // g, text.shape[1]  # groups
        room, steps = inputs["prompt_codes"].shape[1] // g, -(-t // g)
        first = self.grouped(inputs["prompt_codes"][..., 0], inputs["prompt_frames"] % g, inputs["prompt_frames"], room)
        guess, said = self.expected(inputs), (inputs[self.text_names[1]] > 0).sum(-1)
        shortest = jnp.maximum(jnp.ceil(SHORTEST * guess).astype(jnp.int32), said)
        longest = jnp.maximum(LONGEST * guess, LONGEST_SECONDS * self.codec_network.rate / self.codec_network.hop).astype(jnp.int32)
        shortest = jnp.minimum(jnp.maximum(shortest, least), t)
        longest = jnp.clip(longest, shortest, t)

        y, kept, looks = call("run", text, first, prompt, keep=cache)
        last = lambda x: jnp.take_along_axis(x, prompt[:, None, None], 1)[:, 0]
        guided = looks is not None
        seen = jnp.concatenate([text > 0, jnp.arange(room + 1) <= prompt[:, None]], 1)
        state = {
            "step": jnp.zeros((), jnp.int32), "y": last(y), "codes": jnp.zeros((rows, steps, g), jnp.int32), "frames": jnp.zeros(rows, jnp.int32),
            "alive": jnp.ones(rows, bool), "ended": jnp.zeros(rows, bool), "again": jnp.zeros(rows, jnp.int32),
            "recent": jnp.full((rows, repetition_window), -1, jnp.int32)}
        if guided:
            state |= {"look": last(looks), "looks": jnp.zeros((rows, steps, p))}
        if cache:
            state["cache"] = stack.cache(kept, steps)

        def draw(state: dict) -> dict:
            """One group."""
            logits = call("logits", state["y"]) / max(temperature, 1e-4)
            drawn = []
            for place in range(g):
                at = state["step"] * g + place
                barred = (jnp.arange(end + 1) == end) & (at < shortest)[:, None]
                own = jax.vmap(lambda key: jax.random.fold_in(key, at))(keys)  # noqa: B023  used at once
                code, again = tokens.repetition_aware(
                    own, jnp.where(barred, tokens.IMPOSSIBLE, logits[:, place]), state["recent"], top_p, repetition_share, trigger, redraw)
                state["ended"] |= state["alive"] & (code == end)
                state["alive"] &= code != end
                state["again"] += state["alive"] & again
                state["frames"] += state["alive"]
                drawn.append(jnp.where(state["alive"], code, 0))
                state["alive"] &= state["frames"] < longest
                if repetition_window:
                    state["recent"] = jnp.concatenate([state["recent"][:, 1:], drawn[-1][:, None]], 1)
            state["codes"] = jax.lax.dynamic_update_slice_in_dim(state["codes"], jnp.stack(drawn, 1)[:, None], state["step"], 1)
            if guided:
                state["looks"] = jax.lax.dynamic_update_slice_in_dim(state["looks"], state["look"][:, None], state["step"], 1)
            return state

        def body(state: dict) -> dict:
            state, i = draw(dict(state)), state["step"]
            if cache:
                x = call("next", jax.lax.dynamic_index_in_dim(state["codes"], i, 1, False), prompt + 1 + i)
                mask = jnp.concatenate([seen, jnp.broadcast_to(jnp.arange(steps) <= i, (rows, steps))], 1)
                given = (params["layers"], x, state["cache"], mask, p + 1 + room + i, text > 0)
                state["y"], state["cache"], look = stack.step(*given)
            else:
                whole = tokens.join(first, prompt, state["codes"], jnp.full(rows, i + 1))
                y, _, looks = call("run", text, whole, prompt + i + 1)
                at = (prompt + i + 1)[:, None, None]
                state["y"] = jnp.take_along_axis(y, at, 1)[:, 0]
                look = jnp.take_along_axis(looks, at, 1)[:, 0] if guided else None
            return state | {"step": i + 1} | ({"look": look} if guided else {})

        state = jax.lax.while_loop(lambda state: state["alive"].any() & (state["step"] < steps), body, state)
        out = {name: state[name].astype(jnp.int32) for name in ("frames", "ended", "again")}
        out["codes"] = state["codes"].reshape(rows, -1)[:, :t]
        out["durations"] = self._durations(inputs, state["looks"] if guided else None, out["frames"], t)
        return out

    def _durations(self, inputs: Batch, looks: jax.Array | None, frames: jax.Array, t: int) -> jax.Array:
        """Frames of each phone int32 `[b, p]`, at least one: where the guided head looked, on the best monotonic path; even without one."""
        prompt, target = ((inputs[name] > 0).sum(-1) for name in self.text_names)
        p = inputs[self.text_names[1]].shape[1]
        there = jnp.arange(p)[None] < target[:, None]
        if looks is None or not self.guide_weight:
            edge = lambda i: frames[:, None] * jnp.minimum(i, target[:, None]) // jnp.maximum(target, 1)[:, None]
            return (edge(jnp.arange(1, p + 1)[None]) - edge(jnp.arange(p)[None])).astype(jnp.int32)
        place = jnp.minimum(prompt[:, None] + jnp.arange(p), looks.shape[-1] - 1)
        own = jnp.take_along_axis(looks, jnp.broadcast_to(place[:, None], (*looks.shape[:2], p)), -1)
        own = jnp.where(there[:, None], jnp.maximum(own, -20.0), 0.0)
        return alignment.viterbi(jnp.repeat(own, self.group, 1)[:, :t], frames, target, jnp.zeros_like(there))[0]

    def fill(self, params: Tree, inputs: Batch, codes_bt: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The NAR model's greedy levels: (codes of prompt and target joined `[b, u + t, q]`, the target's `[b, t, q]`, mean log-likelihood of its
        finer codes `[b]`)."""
        prompt, text, t = inputs["prompt_frames"], self.joined_text(inputs), codes_bt.shape[1]
        target = jnp.zeros((*codes_bt.shape, self.levels), jnp.int32).at[..., 0].set(codes_bt)
        start = tokens.join(inputs["prompt_codes"].astype(jnp.int32), prompt, target, frames, edge=True)
        at = jnp.arange(start.shape[1])[None]
        mask, prompted = at < (prompt + frames)[:, None], at < prompt[:, None]

        def level(codes: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = self.fine.apply({"params": params}, text, codes, mask, prompted, jnp.full(prompt.shape, q))
            best = jnp.argmax(logits, -1).astype(jnp.int32)
            nats = logits.max(-1) - jax.nn.logsumexp(logits, -1)
            own = (jnp.arange(self.levels) == q) & ~prompted[..., None]
            return jnp.where(own, best[..., None], codes), (nats * (mask & ~prompted)).sum(-1)

        joined, nats = jax.lax.scan(level, start, jnp.arange(1, self.levels))
        places = jnp.minimum(prompt[:, None] + jnp.arange(t), start.shape[1] - 1)
        found = jnp.take_along_axis(joined, places[..., None], 1) * alignment.length_mask(frames, t)[..., None]
        last = jnp.maximum(prompt + frames - 1, 0)[:, None, None]  # what follows the end sounds like it
        joined = jnp.where(mask[..., None], joined, jnp.take_along_axis(joined, last, 1))
        return joined, found, nats.sum(0) / jnp.maximum(frames * (self.levels - 1), 1)

    def _voice(self, rest: Tree, made: dict[str, jax.Array], t: int) -> dict[str, jax.Array]:
        """Prompt and target are decoded together, so that nothing is heard where they meet; the target's part is kept."""
        hop = self.codec_network.hop
        audio = self.decode({}, rest, {"codes": made["joined"]}, None, {})["audio"]
        audio = jnp.pad(audio, ((0, 0), (0, t * hop)))
        cut = jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, t * hop))(audio, made["prompt_frames"] * hop)
        cut = cut * jnp.repeat(alignment.length_mask(made["frames"], t), hop, 1)
        return {"audio": cut} | {name: made[name] for name in ("codes", "frames", "durations", "ended", "again", "likelihood")}

    def programs(self) -> dict[str, Program]:
        audio, codes, number = Field("bs", "float32"), Field("btq", "int32"), Field("b", "int32")
        names = (*self.text_names, "prompt_codes", "prompt_frames")
        spoken = {name: self.fields[name] for name in names}
        length = {name: self.fields[name] for name in names if name != "prompt_codes"}
        durations = {"durations": Field("bp", "int32")}
        sampled = {"audio": audio, "codes": codes, "frames": number, "ended": number, "again": number, "likelihood": Field("b", "float32")}
        options = {"temperature": self.temperature, "top_p": self.top_p, "repetition_window": 10, "repetition_share": 0.1, "trigger": "with_itself",
                   "redraw": "all", "best_of": 1, "cache": True, "least": 0}
        return {
            "encode": Program(self.encode, {"audio": audio}, {"codes": codes}),
            "decode": Program(self.decode, {"codes": codes}, {"audio": audio}),
            "durations": Program(self.durations, length, durations),
            "sample": Program(self.sample, spoken, sampled | durations, options, rows=True),
        }

