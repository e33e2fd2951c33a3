"""Transformers that are language models of codec frames: text, then groups of codes, then what comes next (VALL-E, VALL-E 2).

A sequence is two blocks of slots: text, and audio. Positions (sinusoids) begin at 0 in each, so a longer text moves no frame. Slots that are
padding are never seen, and what is valid does not depend on how many there are. `Coarse` is autoregressive over groups of frames of the
first level, or of any other tokens, after the text or (with an encoder) looking at it; `Fine` fills in one further level at a time, all frames
at once. Both share `Stack`: pre-norm blocks, GELU, a norm at the end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.attention import MultiHeadAttention
from ns2_jax.layers.linear import Dense, Embed, LayerNorm, constrain, named, sinusoid

STAGES = ("none", "table", "projected")


class StageNorm(nn.Module):
    """Layer norm over channels whose gain and bias are those of a stage (AdaLN): `a_i * norm(x) + b_i`.

    `kind="projected"`: linear in the stage's vector `[b, c]`; "table": looked up by the stage's number int `[b]`, which is the same class of
    functions with a fraction of the parameters; "none": one gain and bias for all.
    """

    kind: str = "none"
    stages: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bsc: jax.Array, stage: jax.Array | None) -> jax.Array:
        width = x_bsc.shape[-1]
        if self.kind == "none":
            return LayerNorm(dtype=self.dtype, name="norm")(x_bsc)
        if self.kind == "projected":
            change = Dense(2 * width, ("embed", "mlp"), kernel_init=nn.initializers.zeros, name="change")(stage.astype(jnp.float32))
        else:
            change = Embed(self.stages, 2 * width, nn.initializers.zeros, name="change")(stage)
        gain, bias = jnp.split(change[:, None], 2, -1)
        x = x_bsc.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)
        return (x * (1.0 + gain) + bias).astype(self.dtype)


Memory = tuple[jax.Array, jax.Array, jax.Array]
"""What a crossed block looks at: keys and values of its own, and where there is something."""


class Block(nn.Module):
    """Self-attention, where it is `crossed` attention to a memory `[b, p, width]`, and two dense layers, each after its norm and added to its
    input. `gated` is GEGLU (T5 1.1); `inner` is the width of the attentions, 0 that of all."""

    width: int
    hidden: int
    heads: int
    dropout: float
    norms: str
    stages: int
    dtype: Any
    crossed: bool = False
    gated: bool = False
    inner: int = 0

    def setup(self):
        norm = lambda: StageNorm(self.norms, self.stages, self.dtype)
        self.norm1, self.norm2 = norm(), norm()
        self.attention = MultiHeadAttention(self.width, self.heads, self.dtype, self.inner)
        if self.crossed:
            self.memory_norm, self.memory = norm(), MultiHeadAttention(self.width, self.heads, self.dtype, self.inner)
        self.widen = Dense(self.hidden * (1 + self.gated), ("embed", "mlp"), dtype=self.dtype)
        self.narrow = Dense(self.width, ("mlp", "embed"), dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def _rest(self, x: jax.Array, attended: jax.Array, stage: jax.Array | None, deterministic: bool, look: Any = None) -> jax.Array:
        """What follows the self-attention; `look` attends to the memory."""
        x = constrain(x + self.drop(attended, deterministic=deterministic))
        if look is not None:
            x = constrain(x + self.drop(look(self.memory_norm(x, stage)), deterministic=deterministic))
        h = self.widen(self.norm2(x, stage))
        if self.gated:
            h, gate = jnp.split(h, 2, -1)
            h = nn.gelu(gate) * h
        else:
            h = nn.gelu(h)
        return constrain(x + self.drop(self.narrow(self.drop(h, deterministic=deterministic)), deterministic=deterministic))

    def __call__(
        self, x_bsc: jax.Array, mask: jax.Array, stage: jax.Array | None = None, deterministic: bool = True, text_mask: jax.Array | None = None,
        memory: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...], jax.Array | None]:
        """(output; keys and values `[b, s, h, d]`, then those of the `memory`, which comes with its mask; where the first head looks among the
        text of `text_mask` `[b, p]`, `[b, s - p, p]`)."""
        h = self.norm1(x_bsc, stage)
        kept = self.attention.project(h)
        looks = look = None
        if text_mask is not None:
            p = text_mask.shape[1]
            looks = self.attention.point(h[:, p:], kept[0][:, :p], text_mask)
        if memory is not None:
            seen, where = memory
            kept = (*kept, *self.memory.project(seen))
            look = lambda h: self.memory.attend(h, *kept[2:], where)
        return self._rest(x_bsc, self.attention.attend(h, *kept[:2], mask), stage, deterministic, look), kept, looks

    def one(
        self, x_bc: jax.Array, key_bhsd: jax.Array, value_bhsd: jax.Array, mask_bs: jax.Array, slot: jax.Array, text_mask: jax.Array | None,
        memory: Memory | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """The same for one more slot, whose key and value are put into the cache at `slot`; of the `memory` the cache holds them already."""
        h = self.norm1(x_bc[:, None], None)
        put = lambda cache, new: jax.lax.dynamic_update_slice_in_dim(cache, jnp.swapaxes(new, 1, 2).astype(cache.dtype), slot, 2)
        key, value = (put(cache, new) for cache, new in zip((key_bhsd, value_bhsd), self.attention.project(h)))
        looks = None
        if text_mask is not None:
            looks = self.attention.point(h, jnp.swapaxes(key[:, :, : text_mask.shape[1]], 1, 2), text_mask)[:, 0]
        attended = self.attention.attend_one(h[:, 0], key, value, mask_bs)
        look = None if memory is None else lambda h: self.memory.attend_one(h[:, 0], *memory)[:, None]
        return self._rest(x_bc[:, None], attended[:, None], None, True, look)[:, 0], key, value, looks


class Cache(NamedTuple):
    """Keys and values of every layer, `[b, h, s, d]` each, and of the memory it looks at: what a step does not compute again."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    memory_keys: tuple[jax.Array, ...] = ()
    memory_values: tuple[jax.Array, ...] = ()


class Stack(nn.Module):
    """`layers` blocks (scanned: one compiled body) and a final norm, `[b, s, width] -> [b, s, width]`.

    `norms` and `stages` are those of `StageNorm`; `crossed`, `gated` and `inner` those of `Block`. `guided` is the layer whose first head is asked
    where in the text it looks (-1: none).
    """

    layers: int
    width: int
    hidden: int
    heads: int
    dropout: float = 0.1
    norms: str = "none"
    stages: int = 1
    guided: int = -1
    remat: bool = False
    unroll: int = 1
    dtype: Any = jnp.float32
    crossed: bool = False
    gated: bool = False
    inner: int = 0

    def block(self, **own: Any) -> Block:
        return Block(self.width, self.hidden, self.heads, self.dropout, self.norms, self.stages, self.dtype, self.crossed, self.gated, self.inner,
                     **own)

    @nn.compact
    def __call__(
        self, x_bsc: jax.Array, mask: jax.Array, stage: jax.Array | None = None, deterministic: bool = True, text_mask: jax.Array | None = None,
        keep: bool = False, memory: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...] | None, jax.Array | None]:
        """(output, keys and values `[layers, b, s, h, d]` if they are to be kept, where the guided head looks `[b, s - p, p]`).

        `mask` is true where a slot may be seen, `[b, s]` or by each slot its own `[b, s, s]`; `stage` is what `StageNorm` takes; `memory` is
        what crossed blocks look at, `[b, p, width]` with its mask `[b, p]`.
        """
        if self.norms not in STAGES:
            raise ValueError(f"norms={self.norms!r}; expected one of {STAGES}")
        asked = text_mask is not None and self.guided >= 0
        at = jnp.arange(self.layers)

        def body(block: nn.Module, carry: tuple, i: jax.Array) -> tuple[tuple, Any]:
            x, looked = carry
            x, own, looks = block(x, mask, stage, deterministic, text_mask if asked else None, memory)
            looked = jnp.where(i == self.guided, looks, looked) if asked else looked
            return (x, looked), (own if keep else None)

        if self.remat:
            body = nn.remat(body, prevent_cse=False)
        looked = jnp.zeros((x_bsc.shape[0], x_bsc.shape[1] - text_mask.shape[1], text_mask.shape[1])) if asked else None
        start = (constrain(x_bsc.astype(self.dtype)), looked)
        (x, looked), kept = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers,
            unroll=self.unroll, metadata_params={nn.PARTITION_NAME: "layers"})(self.block(name="blocks"), start, at)
        return StageNorm(self.norms, self.stages, self.dtype, name="norm")(x, stage), kept, looked

    def cache(self, kept: tuple[jax.Array, ...], slots: int) -> Cache:
        """What `__call__` kept, with room for `slots` more (of the memory there will be no more)."""
        room = lambda x, more: jnp.pad(jnp.swapaxes(x, 2, 3), ((0, 0), (0, 0), (0, 0), (0, more), (0, 0)))
        return Cache(*(tuple(room(x, slots * (place < 2))[i] for i in range(self.layers)) for place, x in enumerate(kept)))

    def step(
        self, params: Any, x_bc: jax.Array, cache: Cache, mask_bs: jax.Array, slot: jax.Array, text_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache, jax.Array | None]:
        """One more slot, outside of Linen: `params` are this stack's. Returns (output `[b, width]`, the cache with it, where the guided
        head looks `[b, p]`). Layers are unrolled, so that their caches are updated where they lie. `text_mask` is also that of the memory."""
        x, keys, values, looked, block = x_bc.astype(self.dtype), [], [], None, self.block(parent=None)
        for i in range(self.layers):
            own = {"params": jax.tree.map(lambda leaf: leaf[i], params["blocks"])}  # noqa: B023  used at once
            asked = text_mask if i == self.guided else None
            memory = (cache.memory_keys[i], cache.memory_values[i], text_mask) if self.crossed else None
            x, key, value, looks = block.apply(own, x, cache.keys[i], cache.values[i], mask_bs, slot, asked, memory, method="one")
            looked = looks if asked is not None else looked
            keys.append(key)
            values.append(value)
        norm = StageNorm(self.norms, self.stages, self.dtype, parent=None)
        return norm.apply({"params": params["norm"]}, x[:, None], None)[:, 0], cache._replace(keys=tuple(keys), values=tuple(values)), looked


def text_vectors(table: Embed, ids_bp: jax.Array, width: int) -> jax.Array:
    """Ids -> vectors with positions, float32 `[b, p, width]`."""
    return table(ids_bp) * width**0.5 + sinusoid(jnp.arange(ids_bp.shape[1]), width)


class Coarse(nn.Module):
    """Text ids and groups of codes -> logits of each next group: the autoregressive model.

    Slots are `p` of text and `1 + n` of audio: a begin vector, then the n groups so far. Logits at audio slot i are of group i: `codes` codes
    and the end, which has the number `codes`. A group's `group` codes are independent given the past (VALL-E 2, section 3.2): its
    embeddings are joined and projected on the way in, and its vector is spread to so many on the way out. With `prefix` text slots see each
    other, else only those before.

    With an `encoder` (the numbers of another Stack) text has no slots: the encoder reads it, both ways, and every layer looks at what it says
    (Vaswani et al. 2017; SPEAR-TTS, T5).
    """

    text: int
    codes: int
    stack: Any  # the numbers of Stack
    width: int
    group: int = 1
    prefix: bool = True
    tied: bool = True
    dropout: float = 0.1
    dtype: Any = jnp.float32
    encoder: Any = None

    def setup(self):
        init = nn.initializers.normal(self.width**-0.5)
        if self.encoder:
            self.reader = Stack(width=self.width, dropout=self.dropout, dtype=self.dtype, **self.encoder)
        self.text_table = Embed(self.text, self.width, init, self.dtype)
        self.table = Embed(self.codes + 1, self.width, init, self.dtype)
        self.begin = self.param("begin", named(nn.initializers.normal(1.0), ("embed",)), (self.width,))
        if self.group > 1:
            self.gather = Dense(self.width, ("mlp", "embed"), dtype=self.dtype)
            self.spread = Dense(self.group * self.width, ("embed", "mlp"), dtype=self.dtype)
        if not self.tied:
            self.head = Dense(self.codes + 1, ("embed", "vocab"), dtype=self.dtype)
        self.layers = self.trunk()
        self.drop = nn.Dropout(self.dropout)

    def trunk(self, **own: Any) -> Stack:
        return Stack(width=self.width, dropout=self.dropout, dtype=self.dtype, crossed=bool(self.encoder), **self.stack, **own)

    def read(self, text_bp: jax.Array, deterministic: bool = True) -> tuple[jax.Array, jax.Array] | None:
        """What the encoder makes of the text, `[b, p, width]`, and where it is; None without one."""
        if not self.encoder:
            return None
        x = self.drop(text_vectors(self.text_table, text_bp, self.width), deterministic=deterministic)
        return self.reader(x, text_bp > 0, None, deterministic)[0], text_bp > 0

    def groups(self, codes_bng: jax.Array) -> jax.Array:
        """Codes `[b, n, g]` -> one vector a group `[b, n, width]`, without positions. The end's number is read as its row, and is never seen."""
        x = self.table(codes_bng) * self.width**0.5
        return x[..., 0, :] if self.group == 1 else self.gather(x.reshape(*x.shape[:2], -1))

    def first(self, text_bp: jax.Array, codes_bng: jax.Array) -> jax.Array:
        """All slots' vectors `[b, p + 1 + n, width]`; with an encoder those of audio alone."""
        begin = jnp.broadcast_to(self.begin.astype(self.dtype), (text_bp.shape[0], 1, self.width))
        audio = jnp.concatenate([begin, self.groups(codes_bng)], 1)
        audio = audio + sinusoid(jnp.arange(audio.shape[1]), self.width)
        return audio if self.encoder else jnp.concatenate([text_vectors(self.text_table, text_bp, self.width), audio], 1)

    def mask(self, text_bp: jax.Array, n_b: jax.Array, n: int) -> jax.Array:
        """Which slot sees which, bool `[b, p + 1 + n, p + 1 + n]` (with an encoder without p); rows have `n_b` groups."""
        p = 0 if self.encoder else text_bp.shape[1]
        valid = jnp.concatenate([text_bp[:, :p] > 0, jnp.arange(n + 1) <= n_b[:, None]], 1)
        at = jnp.arange(p + 1 + n)
        seen = at[None] <= at[:, None]
        if self.prefix:
            seen |= at[None] < p
        return valid[:, None] & seen

    def logits(self, y: jax.Array) -> jax.Array:
        """Of vectors `[..., width]`: float32 `[..., g, codes + 1]`."""
        if self.group > 1:
            y = self.spread(y)
        y = y.reshape(*y.shape[:-1], self.group, self.width)
        if not self.tied:
            return self.head(y).astype(jnp.float32)
        return self.table.logits(y)

    def __call__(
        self, text_bp: jax.Array, codes_bng: jax.Array, n_b: jax.Array, deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array | None]:
        """(logits `[b, 1 + n, g, codes + 1]`, where the guided head looks in the text from each audio slot `[b, 1 + n, p]`)."""
        y, _, looks = self.run(text_bp, codes_bng, n_b, deterministic)
        return self.logits(y), looks

    def run(self, text_bp: jax.Array, codes_bng: jax.Array, n_b: jax.Array, deterministic: bool = True, keep: bool = False) -> tuple:
        """(vectors of the audio slots `[b, 1 + n, width]`, what `Stack` keeps, where the guided head looks)."""
        x = self.drop(self.first(text_bp, codes_bng), deterministic=deterministic)
        mask = self.mask(text_bp, n_b, codes_bng.shape[1])
        y, kept, looks = self.layers(x, mask, None, deterministic, None if self.encoder else text_bp > 0, keep, self.read(text_bp, deterministic))
        return y[:, y.shape[1] - 1 - codes_bng.shape[1] :], kept, looks

    def next(self, codes_bg: jax.Array, position_b: jax.Array) -> jax.Array:
        """The vector of one group at its audio position (the begin vector has 0), `[b, width]`."""
        return self.groups(codes_bg[:, None])[:, 0] + sinusoid(position_b, self.width)


class Fine(nn.Module):
    """Text, a prompt with all its levels and a target with the levels so far -> logits of the target's next level, all frames at once.

    Slots are `p` of text and `t` of audio, and all valid ones see each other. Of prompt frames the embeddings of all levels are added, of
    target frames those below the level that is asked for. `level` `[b]` runs from 1 to `levels - 1`; logits are tied to its own embedding.
    """

    text: int
    codes: int
    levels: int
    stack: Any
    width: int
    norms: str = "table"
    dropout: float = 0.1
    dtype: Any = jnp.float32

    def setup(self):
        init = nn.initializers.normal(self.width**-0.5)
        self.text_table = Embed(self.text, self.width, init, self.dtype)
        self.table = self.param("table", named(init, ("codebook", "vocab", "embed")), (self.levels, self.codes, self.width))
        if self.norms == "projected":
            self.stage = Embed(self.levels - 1, self.width, nn.initializers.normal(1.0))
        self.layers = Stack(width=self.width, norms=self.norms, stages=self.levels - 1, dropout=self.dropout, dtype=self.dtype, **self.stack)
        self.drop = nn.Dropout(self.dropout)

    def frames(self, codes_btq: jax.Array, prompted_bt: jax.Array, level_b: jax.Array) -> jax.Array:
        """Sums of embeddings over the levels that a frame shows, `[b, t, width]`."""

        def level(total: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
            table, codes, q = inputs
            shown = prompted_bt | (q < level_b)[:, None]
            return total + jnp.where(shown[..., None], jnp.take(table, codes, axis=0).astype(self.dtype), 0), None

        start = jnp.zeros((*codes_btq.shape[:2], self.width), self.dtype)
        codes = jnp.moveaxis(codes_btq, -1, 0).astype(jnp.int32)
        x, _ = jax.lax.scan(level, start, (self.table, codes, jnp.arange(self.levels)))
        return x * (self.width / self.levels) ** 0.5

    def __call__(
        self, text_bp: jax.Array, codes_btq: jax.Array, mask_bt: jax.Array, prompted_bt: jax.Array, level_b: jax.Array, deterministic: bool = True,
    ) -> jax.Array:
        """Codes `[b, t, levels]` (those at `level` and below it in the target are not looked at) -> logits float32 `[b, t, codes]`."""
        p, t = text_bp.shape[1], codes_btq.shape[1]
        audio = self.frames(codes_btq, prompted_bt, level_b) + sinusoid(jnp.arange(t), self.width)
        x = jnp.concatenate([text_vectors(self.text_table, text_bp, self.width), audio], 1)
        x = self.drop(x, deterministic=deterministic)
        stage = self.stage(level_b - 1) if self.norms == "projected" else level_b - 1
        y, _, _ = self.layers(x, jnp.concatenate([text_bp > 0, mask_bt], 1), stage, deterministic)
        own = jnp.take(self.table, level_b, axis=0).astype(self.dtype)
        return jnp.einsum("btc,bkc->btk", y[:, p:], own, preferred_element_type=jnp.float32)
