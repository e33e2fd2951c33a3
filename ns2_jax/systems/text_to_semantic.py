"""Text to semantic tokens: what is said, before anybody says how it sounds (SPEAR-TTS, Kharitonov et al. 2023, arXiv 2302.03540, and SoundStorm's
first stage).

    p(z | x) = prod_i p(z_i | z_{<i}, x)

An encoder reads the text, a decoder writes the tokens of `systems.semantic`, one for every `hop` samples, and then the end
(`layers.language.Coarse` with an encoder). Duplicates stay: SoundStorm needs a token for every frame, and how often one is repeated is how long
a sound takes. A prompt's tokens may stand before those to come, its text before theirs (SoundStorm's dialogues).

Where we leave the papers; each is a number of `System` or of the config, unless it says that it is not:
  * SoundStorm's encoder is ByT5's, trained on text alone before, and frozen; here both are trained on speech with its text
    (`train.frozen=("params/reader/.*", "params/text_table/.*")` freezes one that `init_from` brought). SPEAR-TTS' back-translation is not here.
  * Text is phones or SentencePiece units (`text="bpe"`), the paper's is bytes.
  * Norms with biases, sinusoids for positions (T5 has relative biases); not a number.
  * A length guard: no end before 0.3 of what so long a text takes, none later than twice of it or 1.5 s; the paper has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.layers.language import Coarse
from ns2_jax.maths import alignment, tokens
from ns2_jax.systems.system import Batch, Field, Program, SingleLoss, Sizes, Tree, tuples

TEXTS = {"phones": "phones", "bpe": "units"}
"""Kinds of text, and the field that holds it."""
ROOM = 1.5
"""Frames that a text is given room for, as a multiple of those that are expected."""
SHORTEST, LONGEST, LONGEST_SECONDS = 0.3, 2.0, 1.5


@dataclasses.dataclass(frozen=True)
class System(SingleLoss):
    """Numbers only. `encoder` and `decoder` are those of `layers.language.Stack`."""

    encoder: Mapping[str, Any]
    decoder: Mapping[str, Any]
    tokens: int = 1024
    text: str = "phones"
    vocabulary: int = 128  # text ids, 0 is padding
    width: int = 512
    dropout: float = 0.1
    tied: bool = True
    rate: int = 16000  # Hz
    hop: int = 640  # samples a token
    temperature: float = 0.9  # what sampling starts from, unless it is told (SoundStorm's)
    top_k: int = 125
    frames_per_phone: float = 2.0  # how long a text is expected to take, in tokens
    dtype: str = "float32"

    def __post_init__(self):
        if self.text not in TEXTS:
            raise ValueError(f"text={self.text!r}; expected one of {tuple(TEXTS)}")
        if not self.encoder.get("layers"):
            raise ValueError(f"encoder={dict(self.encoder)} has no layers")

    @property
    def text_name(self) -> str:
        return TEXTS[self.text]

    @property
    def fields(self) -> dict[str, Field]:
        row = {"frames": Field("b", "int32"), "weight": Field("b", "float32")}
        return {self.text_name: Field("bp", "int32"), "semantic": Field("bt", "int32")} | row

    @property
    def audio(self) -> dict[str, int]:
        """What `config.data` must say about the recordings: a frame is a token."""
        return {"sample_rate": self.rate, "hop": self.hop}

    @property
    def network(self) -> Coarse:
        return Coarse(self.vocabulary, self.tokens, tuples(self.decoder), self.width, tied=self.tied, dropout=self.dropout,
                      dtype=jnp.dtype(self.dtype), encoder=tuples(self.encoder))

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        text, one = jnp.ones((1, 2), jnp.int32), jnp.ones((1,), jnp.int32)
        return self.network.init(rng, text, jnp.zeros((1, 2, 1), jnp.int32), one)["params"], {}

    # Loss -------------------------------------------------------------------------------------------------------------

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        del rest, step
        return self.loss_given(params, batch, rng)

    def loss_given(self, params: Tree, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, tuple[Tree, dict]]:
        """Cross entropy of each next token and of the end, in nats; without a key nothing is dropped out.

        Sums over `metrics["weight"]`, the tokens and ends; `accuracy` is how often the most likely one is right, `end` the end's share of nats.
        """
        n, t = batch["frames"], batch["semantic"].shape[1]
        mask = alignment.length_mask(n, t)
        target = jnp.pad(jnp.where(mask, batch["semantic"], self.tokens), ((0, 0), (0, 1)), constant_values=self.tokens)
        rngs = None if rng is None else {"dropout": rng}
        logits, _ = self.network.apply({"params": params}, batch[self.text_name], target[:, :-1, None], n, rng is None, rngs=rngs)
        logits = logits[..., 0, :]
        nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        weight = alignment.length_mask(n + 1, t + 1) * batch["weight"][:, None]
        right = jnp.argmax(logits, -1) == target
        total = (nats * weight).sum()
        end = jnp.take_along_axis(nats, n[:, None], 1)[:, 0] * batch["weight"]
        return total, ({}, {"accuracy": (right * weight).sum(), "end": end.sum(), "weight": weight.sum()})

    # Programs ---------------------------------------------------------------------------------------------------------

    def expected(self, text_bp: jax.Array) -> jax.Array:
        """Tokens that a text usually takes, float32 `[b]`."""
        return (text_bp > 0).sum(-1) * self.frames_per_phone

    def room(self, text_bp: jax.Array) -> jax.Array:
        """Tokens that each piece of a text is given room for, float32 `[b, p]`. How long it takes `translate` decides as it goes."""
        return jnp.where(text_bp > 0, ROOM * self.frames_per_phone, 0.0)

    def translate(
        self, params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, sizes: Sizes, temperature: float, top_k: int, top_p: float, cache: bool,
    ) -> dict[str, jax.Array]:
        """Program: text -> `semantic` int32 `[b, t]`, 0 from `frames` on, and whether each row `ended` (else it was cut at its longest).

        The text is that of the `prompt_semantic` and then that of what is to come; without `prompt_frames` it is all to come. Draws are from the
        `top_k` most likely and of them from the nucleus. One compiled loop, until every row has ended; without `cache` everything is computed
        again for each token: for comparison.
        """
        del rest
        net, stack, end, t = self.network, self.network.trunk(parent=None), self.tokens, sizes["t"]
        call = lambda method, *args, **more: net.apply({"params": params}, *args, method=method, **more)
        text, prompt = inputs[self.text_name], inputs["prompt_frames"]
        first, rows = inputs["prompt_semantic"].astype(jnp.int32)[..., None], prompt.shape[0]
        keys = rng if rng.ndim else jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(rows))
        room = first.shape[1]
        guess = jnp.maximum(self.expected(text) - prompt, 0)
        shortest = jnp.clip(jnp.ceil(SHORTEST * guess).astype(jnp.int32), 1, t)
        longest = jnp.clip(jnp.maximum(LONGEST * guess, LONGEST_SECONDS * self.rate / self.hop).astype(jnp.int32), shortest, t)

        y, kept, _ = call("run", text, first, prompt, keep=cache)
        seen = alignment.length_mask(prompt + 1, room + 1)
        state = {
            "step": jnp.zeros((), jnp.int32), "y": jnp.take_along_axis(y, prompt[:, None, None], 1)[:, 0], "codes": jnp.zeros((rows, t), jnp.int32),
            "frames": jnp.zeros(rows, jnp.int32), "alive": jnp.ones(rows, bool), "ended": jnp.zeros(rows, bool)}
        if cache:
            state["cache"] = stack.cache(kept, t)

        def body(state: dict) -> dict:
            i = state["step"]
            logits = call("logits", state["y"])[:, 0] / max(temperature, 1e-4)
            barred = (jnp.arange(end + 1) == end) & (i < shortest)[:, None]
            logits = tokens.likeliest(jnp.where(barred, tokens.IMPOSSIBLE, logits), top_k)
            code = tokens.categorical(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), tokens.nucleus(logits, top_p))
            ended = state["ended"] | state["alive"] & (code == end)
            alive = state["alive"] & (code != end)
            code, frames = jnp.where(alive, code, 0), state["frames"] + alive
            codes = jax.lax.dynamic_update_slice_in_dim(state["codes"], code[:, None], i, 1)
            found = {"step": i + 1, "codes": codes, "frames": frames, "ended": ended, "alive": alive & (frames < longest)}
            if cache:
                x = call("next", code[:, None], prompt + 1 + i)
                mask = jnp.concatenate([seen, jnp.broadcast_to(jnp.arange(t) <= i, (rows, t))], 1)
                found["y"], found["cache"], _ = stack.step(params["layers"], x, state["cache"], mask, room + 1 + i, text > 0)
            else:
                whole = tokens.join(first, prompt, codes[..., None], jnp.full(rows, i + 1))
                y, _, _ = call("run", text, whole, prompt + i + 1)
                found["y"] = jnp.take_along_axis(y, (prompt + i + 1)[:, None, None], 1)[:, 0]
            return found

        state = jax.lax.while_loop(lambda state: state["alive"].any() & (state["step"] < t), body, state)
        return {"semantic": state["codes"], "frames": state["frames"], "ended": state["ended"].astype(jnp.int32)}

    def programs(self) -> dict[str, Program]:
        count = Field("b", "int32")
        inputs = {self.text_name: self.fields[self.text_name], "prompt_semantic": Field("bu", "int32"), "prompt_frames": count}
        options = {"temperature": self.temperature, "top_k": self.top_k, "top_p": 1.0, "cache": True}
        return {"translate": Program(self.translate, inputs, {"semantic": Field("bt", "int32"), "frames": count, "ended": count}, options, rows=True)}

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one training batch: 2 per multiply-add of every matrix product."""
        p, n, d = sizes["p"], sizes["t"] + 1, self.width

        def stack(numbers: Mapping[str, Any], s: int, crossed: int) -> float:
            inner, dense = numbers.get("inner") or d, (3 if numbers.get("gated") else 2) * d * numbers["hidden"]
            own = 4 * s * d * inner + 2 * s * s * inner + s * dense
            return numbers["layers"] * (own + crossed * (2 * s * d * inner + 2 * p * d * inner + 2 * s * p * inner))

        return 2.0 * sizes["b"] * (stack(self.encoder, p, 0) + stack(self.decoder, n, 1) + n * d * (self.tokens + 1))
