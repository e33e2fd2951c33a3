"""The denoiser of NaturalSpeech 2 (section 4.2): a WaveNet whose every third block listens to the prompt through FiLM.

Learned queries first squeeze the prompt into a few vectors; in an attention block the hidden frames attend to these, and
what comes back makes a scale and a shift of the gate's input. What depends on condition and prompt alone is made by
`prepare`, once, so that a sampler's loop does not repeat it.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ns2_jax.layers.attention import MultiHeadAttention
from ns2_jax.layers.conv import Conv1D
from ns2_jax.layers.linear import Dense, LayerNorm, constrain, named, sinusoid

near_zero = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
Prepared = dict[str, jax.Array]


class Film(nn.Module):
    """Attended frames `[b, t, c]` -> (scale, shift), each `[b, t, features]`, near zero at the start.

    `kind="conv"`: two convolutions of three taps with a leaky ReLU between (the layout that meets the paper's 183 M);
    `"linear"`: one pointwise map.
    """

    kind: str
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x_btc: jax.Array, valid_bt1: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.kind == "conv":
            h = Conv1D(x_btc.shape[-1], 3, dtype=self.dtype, name="first")(constrain(x_btc * valid_bt1))
            h = constrain(nn.leaky_relu(h, 0.2) * valid_bt1)
            both = Conv1D(2 * self.features, 3, kernel_init=near_zero, dtype=self.dtype, name="second")(h)
        elif self.kind == "linear":
            both = Dense(2 * self.features, kernel_init=near_zero, dtype=self.dtype, name="only")(x_btc)
        else:
            raise ValueError(f"film={self.kind!r}; expected 'conv' or 'linear'")
        return tuple(jnp.split(both, 2, -1))


class WaveNetBlock(nn.Module):
    """Time added, dilated convolution to `filters` channels, condition added, gate, residual and skip halves."""

    width: int
    filters: int
    kernel: int
    dilation: int
    attention: bool
    heads: int
    film: str
    dropout: float
    dtype: Any

    def setup(self):
        self.time = Dense(self.width, ("embed", None), dtype=self.dtype)
        self.conv = Conv1D(self.filters, self.kernel, dilation=self.dilation, dtype=self.dtype)
        self.condition = Dense(self.filters, dtype=self.dtype)
        self.out = Dense(2 * self.width, ("mlp", "embed"), dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)
        if self.attention:
            self.norm = LayerNorm(dtype=self.dtype)
            self.listen = MultiHeadAttention(self.width, self.heads, self.dtype)
            self.modulate = Film(self.film, self.filters, self.dtype)

    def prepare(self, c_btc: jax.Array, tokens_bnc: jax.Array) -> Prepared:
        """The parts that depend neither on the noisy frames nor on time."""
        prepared = {"condition": self.condition(c_btc)}
        if self.attention:
            prepared["key"], prepared["value"] = self.listen.project(tokens_bnc)
        return prepared

    def __call__(
        self, x_btc: jax.Array, time_bc: jax.Array, prepared: Prepared, tokens_mask: jax.Array, valid_bt1: jax.Array, deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """(the next x, this block's skip), each `[b, t, width]`."""
        y = constrain((x_btc + self.time(time_bc)[:, None]) * valid_bt1)
        h = checkpoint_name(self.conv(y), "conv") + prepared["condition"]
        if self.attention:
            heard = self.listen.attend(self.norm(y), prepared["key"], prepared["value"], tokens_mask)
            scale, shift = self.modulate(heard, valid_bt1)
            h = h * (1 + checkpoint_name(scale, "film")) + checkpoint_name(shift, "film")
        signal, gate = jnp.split(h, 2, -1)
        h = checkpoint_name(jnp.tanh(signal) * nn.sigmoid(gate), "gate")
        residual, skip = jnp.split(self.out(self.drop(h, deterministic=deterministic)), 2, -1)
        return constrain((x_btc + residual) * 0.5**0.5), skip


class WaveNetGroup(nn.Module):
    """`len(dilations)` blocks; the last one listens to the prompt unless `attention` is off."""

    dilations: tuple[int, ...]
    attention: bool
    numbers: Any  # the rest of a block's numbers

    def setup(self):
        last = len(self.dilations) - 1
        self.blocks = [
            WaveNetBlock(dilation=d, attention=self.attention and i == last, **self.numbers) for i, d in enumerate(self.dilations)]

    def prepare(self, c_btc: jax.Array, tokens_bnc: jax.Array) -> list[Prepared]:
        return [block.prepare(c_btc, tokens_bnc) for block in self.blocks]

    def __call__(self, carry: tuple, time_bc: jax.Array, prepared: list[Prepared], *rest: Any) -> tuple[jax.Array, jax.Array]:
        x, skips = carry
        for block, own in zip(self.blocks, prepared):
            x, skip = block(x, time_bc, own, *rest)
            skips = skips + skip
        return x, skips


class WaveNet(nn.Module):
    """Noisy latents `[b, t, channels]`, time `[b]`, condition and prompt -> predicted clean latents, float32.

    `blocks` blocks in groups of `len(dilations)` (scanned), the last of each group listening to the prompt; left-over
    blocks follow without attention. `queries=0` lets the blocks attend to the prompt's frames themselves (the paper's
    ablation). `remat` names what is kept for the backward pass besides each group's input, of "conv", "film", "gate" (or
    "nothing"); the rest is computed again. An empty tuple keeps everything. Receptive field, frames: 1 plus dilation *
    (kernel - 1) of every block, left-over ones too; with `film="conv"` at least 4 of each that listens (beside its own
    convolution, not after it).
    """

    channels: int
    width: int = 512
    filters: int = 1024
    blocks: int = 40
    dilations: tuple[int, ...] = (2, 2, 2)
    kernel: int = 3
    heads: int = 8
    queries: int = 32
    film: str = "conv"
    dropout: float = 0.2
    time_hidden: int = 2048
    time_scale: float = 1000.0
    remat: tuple[str, ...] = ()
    unroll: int = 1
    dtype: Any = jnp.float32

    def setup(self):
        numbers = dict(width=self.width, filters=self.filters, kernel=self.kernel, heads=self.heads, film=self.film,
                       dropout=self.dropout, dtype=self.dtype)
        self.input = Dense(self.width, (None, "embed"), dtype=self.dtype)
        self.time1 = Dense(self.time_hidden)
        self.time2 = Dense(self.width, ("mlp", "embed"))
        if self.queries:
            init = named(nn.initializers.normal(1.0), (None, "embed"))
            self.query_tokens = self.param("query_tokens", init, (self.queries, self.width))
            self.squeeze = MultiHeadAttention(self.width, self.heads, self.dtype)
        self.count, left = divmod(self.blocks, len(self.dilations))
        self.groups = WaveNetGroup(tuple(self.dilations), True, numbers)
        self.tail = WaveNetGroup(tuple(self.dilations[:left]), False, numbers) if left else None
        self.head1 = Dense(self.width, dtype=self.dtype)
        self.head2 = Dense(self.channels, ("embed", None), kernel_init=nn.initializers.zeros)

    def _scan(self, body: Any, length: int) -> Any:
        return nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=length, unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"})

    def tokens(self, prompt_buc: jax.Array, prompt_mask_bu: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the blocks attend to, and its mask: the queries' answers, or the prompt itself."""
        if not self.queries:
            return prompt_buc, prompt_mask_bu
        queries = jnp.broadcast_to(self.query_tokens.astype(self.dtype), (prompt_buc.shape[0], *self.query_tokens.shape))
        answers = self.squeeze(queries, prompt_buc, prompt_mask_bu)
        return answers, jnp.ones(answers.shape[:2], bool)

    def prepare(self, c_btc: jax.Array, prompt_buc: jax.Array, prompt_mask_bu: jax.Array) -> dict:
        """Everything a sampling loop needs of condition and prompt: per-block projections, stacked over groups."""
        c, (tokens, mask) = c_btc.astype(self.dtype), self.tokens(prompt_buc, prompt_mask_bu)
        _, groups = self._scan(lambda group, carry, _: (carry, group.prepare(c, tokens)), self.count)(self.groups, (), None)
        return {"groups": groups, "tail": self.tail.prepare(c, tokens) if self.tail else [], "mask": mask}

    def _start(self, z_btc: jax.Array, t_b: jax.Array, mask_bt: jax.Array) -> tuple[tuple, jax.Array, jax.Array]:
        valid = mask_bt[..., None].astype(self.dtype)
        x = constrain(nn.relu(self.input(z_btc)) * valid)
        h = self.time1(sinusoid(t_b, self.width, self.time_scale))
        time = self.time2(h * jnp.tanh(nn.softplus(h)))  # Mish
        return (x, jnp.zeros_like(x)), time.astype(self.dtype), valid

    def _finish(self, carry: tuple, valid_bt1: jax.Array) -> jax.Array:
        h = nn.relu(self.head1(carry[1] / self.blocks))
        return self.head2(h.astype(jnp.float32)) * valid_bt1.astype(jnp.float32)

    def step(self, z_btc: jax.Array, t_b: jax.Array, prepared: dict, mask_bt: jax.Array) -> jax.Array:
        """One evaluation inside a sampling loop, from what `prepare` made. No dropout."""
        carry, time, valid = self._start(z_btc, t_b, mask_bt)
        common = (prepared["mask"], valid, True)
        carry, _ = self._scan(lambda group, carry, own: (group(carry, time, own, *common), None), self.count)(
            self.groups, carry, prepared["groups"])
        if self.tail:
            carry = self.tail(carry, time, prepared["tail"], *common)
        return self._finish(carry, valid)

    def __call__(
        self, z_btc: jax.Array, t_b: jax.Array, c_btc: jax.Array, prompt_buc: jax.Array, prompt_mask_bu: jax.Array, mask_bt: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """One evaluation for training: projections are made inside each group, so remat can drop them."""
        carry, time, valid = self._start(z_btc, t_b, mask_bt)
        c, (tokens, tokens_mask) = c_btc.astype(self.dtype), self.tokens(prompt_buc, prompt_mask_bu)

        def body(group: nn.Module, carry: tuple, _: None) -> tuple[tuple, None]:
            return group(carry, time, group.prepare(c, tokens), tokens_mask, valid, deterministic), None

        if self.remat:
            body = nn.remat(body, prevent_cse=False, policy=jax.checkpoint_policies.save_only_these_names(*self.remat))
        carry, _ = self._scan(body, self.count)(self.groups, carry, None)
        if self.tail:
            carry, _ = body(self.tail, carry, None)
        return self._finish(carry, valid)
