"""Every layer by itself: a row alone is the row in a batch, and outputs and gradients are the same on every mesh.

Layers that the smoke systems contain are held to the meshes there, parameter by parameter (`tests/systems`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.layers import attention, codec, conformer, conv, discriminators, linear, pitch_phase, predictors, quantize, recurrent, style
from ns2_jax.layers import tacotron, transformer, unet, vocoder, wavenet
from ns2_jax.runtime import mesh as runtime_mesh
from ns2_jax.systems import system as systems
from tests import meshes

B, T, U, C, S = 8, 12, 8, 16, 1600  # rows, frames, prompt frames, channels, samples
RNG = np.random.default_rng(0)
FRAMES = RNG.normal(size=(B, T, C)).astype(np.float32)
PROMPT = RNG.normal(size=(B, U, C)).astype(np.float32)
AUDIO = (0.1 * RNG.normal(size=(B, S))).astype(np.float32)
MASK = np.arange(T) < np.arange(T - B + 1, T + 1)[:, None]
PROMPT_MASK = np.arange(U) < np.arange(1, B + 1)[:, None]
TIMES = np.linspace(0.05, 0.95, B).astype(np.float32)
IDS = np.where(MASK, RNG.integers(1, 32, (B, T)), 0).astype(np.int32)
ENCODER = dict(layers=2, hidden=32, heads=4, kernel=3)
CODEC = dict(rate=16000, hop=200, channels=8)


class Lstm(nn.Module):
    """The function with arrays of its own."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        array = lambda name, shape, names: self.param(name, linear.named(nn.initializers.normal(0.3), names), shape)
        return recurrent.lstm(x, array("kernel", (C, 64), ("embed", "mlp")), array("recurrent", (16, 64), ("embed", "mlp")),
                              array("bias", (64,), ("mlp",)))


class Rvq(nn.Module):
    """The quantiser on codebooks of its own; straight through, as in training."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        books = self.param("codebooks", linear.named(nn.initializers.normal(0.5), ("codebook", "vocab", "embed")), (3, 32, C))
        return quantize.rvq_lookup(books, quantize.rvq_encode(z, quantize.Books(books, books))) + z


class Factorised(quantize.Factorised):
    """The factorised quantiser as it trains: what it gives and both its losses."""

    @nn.compact
    def __call__(self, z: jax.Array) -> tuple[jax.Array, ...]:
        super().__call__()
        return quantize.factorised_train(z, nn.meta.unbox(self.variables["params"]), jnp.full(len(z), self.levels), jnp.ones(len(z)))[:3]


class Phase(pitch_phase.PitchPhase):
    """What it tells of the offset that it reads, and the reader's coherence."""

    def __call__(self, z: jax.Array, f0: jax.Array) -> tuple[jax.Array, ...]:
        offset, coherence = self.read(z, f0)
        return super().__call__(f0, offset), coherence


conv1d = lambda **numbers: (conv.Conv1D(32, 5, **numbers), (FRAMES,))
LAYERS: dict[str, tuple[nn.Module, tuple[np.ndarray, ...]]] = {
    "conv1d": conv1d(),
    "conv1d_stride": (conv.Conv1D(32, 4, stride=2), (FRAMES,)),
    "conv1d_dilation": conv1d(dilation=3),
    "conv1d_weight_norm": conv1d(weight_norm=True),
    "conv1d_product": conv1d(dilation=2, as_product=True),
    "conv_transpose": (conv.ConvTranspose1D(32, 5), (FRAMES,)),
    "conv_depthwise": (nn.Sequential([linear.Dense(32), conv.DepthwiseConv1D(7)]), (FRAMES,)),
    "conv2d": (conv.Conv2D(32, (3, 9), (1, 2), (2, 1)), (RNG.normal(size=(B, T, 16, 8)).astype(np.float32),)),
    "dense_norm": (nn.Sequential([linear.Dense(32), linear.LayerNorm()]), (FRAMES,)),
    "embed": (linear.Embed(32, 16), (IDS,)),
    "attention": (attention.MultiHeadAttention(16, 4), (FRAMES, PROMPT, PROMPT_MASK)),
    "phone_encoder": (transformer.PhoneEncoder(32, 16, ENCODER, dropout=0.0), (IDS,)),
    "prompt_encoder": (transformer.PromptEncoder(16, ENCODER), (PROMPT, PROMPT_MASK, np.arange(B) == 2)),
    "predictor": (predictors.Predictor(layers=4, every=2, width=16, heads=4), (FRAMES, MASK, PROMPT, PROMPT_MASK)),
    "wavenet": (wavenet.WaveNet(8, width=16, filters=32, blocks=4, dilations=(1, 2, 4), heads=4, queries=4, time_hidden=32),
                (FRAMES[..., :8], TIMES, FRAMES, PROMPT, PROMPT_MASK, MASK)),
    "conformer": (conformer.Conformer(layers=2, width=16, hidden=32, heads=4, dropout=0.0), (FRAMES, MASK)),
    "codec_conv": (codec.Codec("conv", width=8, decoder_width=32, strides=(2, 4, 5, 5), **CODEC), (AUDIO,)),
    "codec_frame": (codec.Codec("frame", cepstrum=4, width=16, blocks=(1, 1), size=800, mels=40, **CODEC), (AUDIO,)),
    "codec_wave": (codec.Codec("frame", cepstrum=4, wave=3, width=16, blocks=(1, 1), size=800, mels=40, **CODEC), (AUDIO,)),
    "judge_1d": (discriminators.Discriminators("1d", (256,), 16), (AUDIO,)),
    "judge_2d": (discriminators.Discriminators("2d", (128,), 8), (AUDIO,)),
    "judge_dac": (discriminators.Discriminators("dac", (256,), 8), (AUDIO,)),
    "judge_scale": (discriminators.Scale(2, 2, jnp.float32), (AUDIO,)),
    "vocoder_hifigan": (vocoder.Vocoder(rate=16000, hop=5, mels=C, width=16, strides=(5,), kernels=(3, 5), dilations=(1, 3)), (FRAMES,)),
    "vocoder_istft": (vocoder.Vocoder("istft", rate=16000, hop=200, size=800, mels=C, fmax=0.0, width=16, blocks=1), (FRAMES,)),
    "style_encoder": (style.StyleEncoder(16, dropout=0.0), (FRAMES, MASK, np.arange(B) == 2)),
    "styled_transformer": (style.StyledTransformer(2, 16, 32, 4, kernel=3), (FRAMES, MASK, PROMPT[:, 0])),
    "unet": (unet.UNet(16, (1, 2), style_channel=True), (FRAMES, TIMES, FRAMES[::-1].copy(), PROMPT[:, 0], MASK)),
    "frame_net": (unet.FrameNet(16, 2), (FRAMES, TIMES, FRAMES[::-1].copy(), PROMPT[:, 0], MASK)),
    "lstm": (Lstm(), (FRAMES,)),
    "bilstm": (recurrent.BiLSTM(8, 0.1), (FRAMES, MASK)),
    "conv1d_folded": (conv.FoldedConv1D(8, 5, 2, 3), (FRAMES,)),
    "text_encoder": (tacotron.TextEncoder(32, 16, dropout=0.0), (IDS,)),
    "voice_encoder": (tacotron.VoiceEncoder(8, hidden=16, blocks=1), (PROMPT, PROMPT_MASK, np.arange(B) == 2)),
    "pitch_phase": (Phase(16, 2, C, 0.0125), (FRAMES, np.where(MASK, np.linspace(90, 300, T), 0).astype(np.float32))),
    "rvq": (Rvq(), (FRAMES,)),
    "rvq_factorised": (Factorised(3, 16, 4, C), (FRAMES,)),
}


@dataclasses.dataclass(frozen=True)
class OneLayer(systems.Base):
    """A layer as a system: its outputs, each number with a weight of its own, are the loss. `stats` are the gradients of
    what goes in (floats only)."""

    layer: nn.Module
    count: int

    def build(self, rng: jax.Array, batch: dict) -> tuple[Any, Any]:
        return self.layer.init(rng, *self.given(batch))["params"], {}

    def given(self, batch: dict) -> list[jax.Array]:
        return [batch[str(i)] for i in range(self.count)]

    def outputs(self, params: Any, *given: jax.Array) -> Any:
        return self.layer.apply({"params": params}, *given)

    def grads(self, params: Any, rest: Any, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[Any, Any, dict]:
        floats = {name: x for name, x in batch.items() if jnp.issubdtype(x.dtype, jnp.floating)}

        def loss(params: Any, floats: dict) -> jax.Array:
            leaves = jax.tree.leaves(self.outputs(params, *self.given(batch | floats)))
            weigh = lambda x: jnp.sin(0.3 + jnp.arange(x[0].size, dtype=jnp.float32)).reshape(x.shape[1:])
            return sum((leaf.astype(jnp.float32) * weigh(leaf)).sum() for leaf in leaves)

        value, (grads, inputs) = jax.value_and_grad(loss, (0, 1))(params, floats)
        return grads, inputs, {"loss": value, "weight": jnp.float32(B)}


def started(name: str) -> tuple[OneLayer, Any, dict]:
    """(the layer as a system, params without a zero in the last layers, its batch)."""
    layer, given = LAYERS[name]
    one, batch = OneLayer(layer, len(given)), {str(i): x for i, x in enumerate(given)}
    params, _ = one.init(jax.random.key(0), batch)
    rng = np.random.default_rng(0)  # of its own: the same whichever tests ran before
    noise: Callable[[Any], Any] = lambda x: np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(np.float32)
    return one, jax.tree.map(noise, params), batch


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_alone_is_the_row_in_a_batch(name):
    one, params, batch = started(name)
    together = jax.jit(one.outputs)(params, *one.given(batch))
    alone = jax.jit(one.outputs)(params, *(x[3:4] for x in one.given(batch)))
    for whole, single in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(np.asarray(whole[3:4], np.float32), np.asarray(single, np.float32), atol=2e-5, rtol=2e-5)


IN_SYSTEMS = ("conformer", "phone_encoder", "prompt_encoder", "predictor", "wavenet", "codec_frame", "codec_wave", "judge_1d", "vocoder_istft",
              "style_encoder", "styled_transformer", "frame_net", "bilstm", "conv1d_folded", "text_encoder", "voice_encoder", "pitch_phase")


def without_a_kink(x: jax.Array, slope: float = 0.01) -> jax.Array:
    """A leaky ReLU whose slope turns over a tenth: at the kink itself a rounding, which any two meshes differ by, flips a
    whole slope, and among thousands of values one is always that near."""
    return x * (slope + (1 - slope) * jax.nn.sigmoid(10 * x))


LONG = ("judge_2d", "judge_dac", "judge_scale", "vocoder_hifigan")
"""A minute of compiling each: with --slow."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in LAYERS if name not in IN_SYSTEMS])
def test_the_same_on_every_mesh(name, monkeypatch):
    monkeypatch.setattr(nn, "leaky_relu", without_a_kink)
    monkeypatch.setattr(discriminators, "PERIODS", (2, 5))  # the others differ by a number, and take a minute to compile
    one, params, batch = started(name)
    both = [dict(data=2, fsdp=2, sequence=2), dict(fsdp=2, sequence=4)] * name.startswith("conv")  # where time is cut as well as kernels
    which = [*meshes.checked, *both]
    meshes.check_system(one, params, {}, batch, jax.random.key(0), meshes=which)


def test_time_is_cut_over_the_sequence_axis():
    """A long row alone, which no other axis can cut: each of eight devices holds an eighth of the activations and asks its neighbours for edges."""
    net = wavenet.WaveNet(8, width=16, filters=32, blocks=4, dilations=(1, 2, 4), heads=4, queries=4, time_hidden=32)
    one, shape = OneLayer(net, 6), lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    batch = {str(i): x for i, x in enumerate([
        shape(1, 4096, 8), shape(1), shape(1, 4096, C), shape(1, U, C), jax.ShapeDtypeStruct((1, U), bool), jax.ShapeDtypeStruct((1, 4096), bool)])}
    params, _ = jax.eval_shape(one.init, jax.random.key(0), batch)

    def compiled(count: int) -> Any:
        mesh = runtime_mesh.make_mesh({"fsdp": 1, "sequence": count})
        with jax.set_mesh(mesh), systems.rules(runtime_mesh.RULES):
            run = jax.jit(lambda p, b: one.grads(p, {}, b, None, None)[0], in_shardings=runtime_mesh.replicated(mesh))
            return meshes.compiled(run, params, batch)

    alone, cut = compiled(1), compiled(8)
    assert cut.memory_analysis().temp_size_in_bytes < alone.memory_analysis().temp_size_in_bytes / 5
    assert "collective-permute" in cut.as_text() and "collective-permute" not in alone.as_text()
