"""Speech through semantic tokens, as SoundStorm's paper has it (sections 3 and 4): one model writes what is said, another fills in how it sounds.

    model = inference.load("runs/soundstorm,runs/tokens,runs/text")        # SoundStorm by tokens, their tokenizer, the writer, in any order
    speech = model("Good morning.", "voice.wav")

`Chain` is a system made of the three: its programs are theirs, and `durations` and `sample` are made of them, so that whatever speaks with
a model speaks with this one. A prompt's tokens are those of its codes, heard; those of its words need not be known. Without the writer the
two others turn recordings into other voices (`revoicing`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.inference.model import Model
from ns2_jax.inference.recordings import codec_hash
from ns2_jax.maths import alignment, tokens
from ns2_jax.systems.system import Batch, Field, Program, Sizes, System, Tree

WRITER = "writer_"
"""Before the name of an option that is the writer's."""


def at_frames(tokens_bn: jax.Array, n_b: jax.Array, period: int, hop: int, t: int) -> jax.Array:
    """The tokens, one for every `period` samples, that hold at the centres of `t` frames of `hop`: int32 `[b, t]`; the last of `n_b` to the end."""
    at = (2 * jnp.arange(t) + 1) * hop // (2 * period)
    return jnp.take_along_axis(tokens_bn, jnp.clip(at[None], 0, jnp.maximum(n_b, 1)[:, None] - 1), 1)


@dataclasses.dataclass(frozen=True)
class Chain:
    """Trees `params` and `rest` have a key for each: `sound`, `tokenizer`, `writer`."""

    sound: System
    tokenizer: System
    writer: System

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.sound.sizes)

    @property
    def codec_network(self) -> Any:
        return self.sound.codec_network

    @property
    def codes(self) -> int:
        return self.sound.codes

    @property
    def hop(self) -> int:
        return self.sound.audio["hop"]

    def durations(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes) -> dict[str, jax.Array]:
        """Program: frames that each piece of text is given room for, int32 `[b, p]`. How long it takes `sample` decides."""
        del params, rest, rng, sizes
        room = self.writer.room(inputs[self.writer.text_name]) * self.tokenizer.hop / self.hop
        return {"durations": jnp.ceil(room).astype(jnp.int32)}

    def heard(self, params: Tree, rest: Tree, inputs: Batch) -> jax.Array:
        """The tokens of the prompt's frames, int32 `[b, u]`."""
        n, codes = inputs["prompt_frames"], inputs["prompt_codes"].astype(jnp.int32)
        u, hop, period = codes.shape[1], self.hop, self.tokenizer.hop
        last = jnp.maximum(n - 1, 0)[:, None]  # what follows the end sounds like it: the cut is not heard as silence
        held = jnp.take_along_axis(codes, jnp.minimum(jnp.arange(u)[None], last)[..., None], 1)
        audio = self.sound.programs()["decode"].fn(params["sound"], rest["sound"], {"codes": held}, None, {})["audio"]
        t = -(-u * hop // period)
        audio = jnp.pad(audio * jnp.repeat(alignment.length_mask(n, u), hop, 1), ((0, 0), (0, t * period - u * hop)))
        whole = jnp.maximum(n * hop // period, 1)
        told = {"audio": audio, "frames": whole}
        made = self.tokenizer.programs()["tokenise"].fn(params["tokenizer"], rest["tokenizer"], told, None, {})
        return at_frames(made["tokens"], whole, period, hop, u)

    def sample(self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, **options: Any) -> dict[str, jax.Array]:
        """Program: text and a prompt's codes -> audio of the text, its codes, frames, and of them each phone's (as even as can be: nobody says).

        Options that begin with WRITER are the writer's, the others those of the sound's `infill`. `ended` as in the writer's `translate`.
        """
        theirs = {name.removeprefix(WRITER): value for name, value in options.items() if name.startswith(WRITER)}
        ours = {name: value for name, value in options.items() if not name.startswith(WRITER)}
        n, t, hop, period = inputs["prompt_frames"], sizes["t"], self.hop, self.tokenizer.hop
        rows, u = n.shape[0], inputs["prompt_codes"].shape[1]
        keys = rng if rng.ndim else jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(rows))
        keys = jax.vmap(lambda key: jax.random.split(key))(keys)
        text = {self.writer.text_name: inputs[self.writer.text_name], "prompt_semantic": jnp.zeros((rows, 1), jnp.int32),
                "prompt_frames": jnp.zeros((rows,), jnp.int32)}
        translate = self.writer.programs()["translate"]
        translate.check(theirs)
        written = translate.fn(
            params["writer"], rest["writer"], text, keys[:, 0], dict(sizes) | {"t": max(t * hop // period, 1)}, **theirs)
        m = jnp.minimum(written["frames"] * period // hop, t)
        said = at_frames(written["semantic"], written["frames"], period, hop, t)
        filled = {
            "semantic": tokens.join(self.heard(params, rest, inputs), n, said, m), "begin": n, "end": n + m, "frames": n + m,
            "codes": tokens.join(inputs["prompt_codes"].astype(jnp.int32), n, jnp.zeros((rows, t, inputs["prompt_codes"].shape[2]), jnp.int32), m),
            "schedule": inputs["schedule"]}
        fill, wide = self.sound.programs()["infill"].fn, dict(sizes) | {"t": u + t, "s": (u + t) * hop, "b": 1}

        def one(row: Batch, key: jax.Array) -> dict[str, jax.Array]:
            """A row by itself, with its own key: it sounds the same in every batch."""
            out = fill(params["sound"], rest["sound"], jax.tree.map(lambda x: x[None], row), key, wide, **ours)
            begin = row["begin"]
            return {"audio": jax.lax.dynamic_slice_in_dim(out["audio"][0], begin * hop, t * hop),
                    "codes": jax.lax.dynamic_slice_in_dim(out["codes"][0], begin, t)}

        out = jax.vmap(one)(filled, keys[:, 1])
        number = (text[self.writer.text_name] > 0).sum(-1)[:, None]
        edge = lambda i: m[:, None] * jnp.minimum(i, number) // jnp.maximum(number, 1)
        place = jnp.arange(text[self.writer.text_name].shape[1])[None]
        return out | {"frames": m, "durations": (edge(place + 1) - edge(place)).astype(jnp.int32), "ended": written["ended"]}

    def programs(self) -> dict[str, Program]:
        found = {}
        for part, names in (("sound", ("encode", "decode", "infill")), ("tokenizer", ("tokenise",)), ("writer", ("translate",))):
            for name in names:
                program = getattr(self, part).programs()[name]
                own = lambda params, rest, *args, fn=program.fn, part=part, **more: fn(params[part], rest[part], *args, **more)
                found[name] = dataclasses.replace(program, fn=own)
        text = {self.writer.text_name: Field("bp", "int32")}
        prompt = {"prompt_codes": Field("buq", "uint16"), "prompt_frames": Field("b", "int32")}
        inputs = text | prompt | {"schedule": found["infill"].inputs["schedule"]}
        lengths = {"frames": Field("b", "int32"), "durations": Field("bp", "int32"), "ended": Field("b", "int32")}
        made = {"audio": Field("bs", "float32"), "codes": Field("btq", "int32")} | lengths
        options = dict(found["infill"].options) | {f"{WRITER}{name}": value for name, value in found["translate"].options.items()}
        found["durations"] = Program(self.durations, text, {"durations": Field("bp", "int32")})
        found["sample"] = Program(self.sample, inputs, made, options, rows=True)
        return found


def join(models: Sequence[Model], path: str = "") -> Model:
    """The model that several are together: a SoundStorm of tokens, their tokenizer (its `Model.tokenizer`) and, for it to speak, their writer.

    Raises ValueError for models that are not that, or that do not fit each other.
    """
    kinds = {
        "a SoundStorm of tokens (configs/soundstorm.py:SIZE,semantic)": tokens_alone,
        "a tokenizer (configs/semantic.py:SIZE,kmeans)": lambda one: "tokenise" in one.programs,
        "a writer of tokens (configs/text_to_semantic.py)": lambda one: "translate" in one.programs}
    found = [next((one for one in models if fits(one)), None) for fits in kinds.values()]
    sound, tokenizer, writer = found
    if sound is None or tokenizer is None or len(models) != len([one for one in found if one is not None]):
        raise ValueError(f"{path or 'these models'}: expected {', '.join(kinds)}; the last may be left out. "
                         f"There are {', '.join(one.name for one in models)}")
    for one in models:
        ours, theirs = (sound.rate, int(sound.system.semantic)), (one.rate, int(sound.system.semantic if one is sound else one.system.tokens))
        if ours != theirs:
            raise ValueError(f"{one.name} works at {theirs[0]} Hz with {theirs[1]} tokens, {sound.name} at {ours[0]} Hz with {ours[1]}")
        known = one.config["data"].get("tokenizer")
        if known and known != codec_hash(tokenizer):
            raise ValueError(f"{one.name} was trained on the tokens of {known}, {tokenizer.name} is {codec_hash(tokenizer)}")
    if writer is None:
        sound.tokenizer = tokenizer
        return sound
    if writer.hop != tokenizer.hop:
        raise ValueError(f"{writer.name} writes a token for {writer.hop} samples, {tokenizer.name} makes one for {tokenizer.hop}")
    named = {"sound": sound, "tokenizer": tokenizer, "writer": writer}
    longest = max(bucket["p"] for bucket in writer.buckets)
    buckets = [bucket for bucket in sound.buckets if bucket["p"] <= longest] or sound.buckets[:1]
    config = {**sound.config, "system": f"{writer.config['system']} {sound.config['system']}", "data": {**sound.config["data"], "buckets": buckets}}
    made = Model(Chain(**{name: one.system for name, one in named.items()}), {name: one.params for name, one in named.items()},
                 {name: one.rest for name, one in named.items()}, config, path, mesh=sound._mesh)
    made.units, made.lexicon, made.tokenizer = writer.units, writer.lexicon, tokenizer
    return made


def tokens_alone(model: Model) -> bool:
    """Whether it fills in codes by semantic tokens and needs to be told nothing else."""
    inputs = model.programs["infill"].inputs if "infill" in model.programs else {}
    return "semantic" in inputs and "phones" not in inputs
