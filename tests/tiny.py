"""Untrained models of the smallest size, written as exports, and a toy system whose every output can be foretold."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import aligner as aligner_config
from configs import codec as codec_config
from configs import distill as distill_config
from configs import grad_stylespeech as grad_config
from configs import naturalspeech2 as ns2_config
from configs import semantic as semantic_config
from configs import soundstorm as soundstorm_config
from configs import text_to_semantic as text_config
from configs import valle as valle_config
from configs import vocoder as vocoder_config
from configs import wavegrad2 as wavegrad2_config
from ns2_jax import inference
from ns2_jax.runtime import checkpoints, state, weights
from ns2_jax.systems import system as systems
from ns2_jax.systems.system import Field, Program

SPEECH = Path(__file__).parent / "evals" / "sentence.flac"
CONFIGS = {"aligner": aligner_config, "codec": codec_config, "distill": distill_config, "grad_stylespeech": grad_config,
           "naturalspeech2": ns2_config, "semantic": semantic_config, "soundstorm": soundstorm_config, "text_to_semantic": text_config,
           "valle": valle_config, "vocoder": vocoder_config, "wavegrad2": wavegrad2_config}


def _fill(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers of a sensible size for a parameter of that name: nothing is compiled to get them."""
    noise = rng.normal(size=shape).astype(np.float32)
    name = path.rsplit("/", 1)[-1]
    if name == "kernel":
        quiet = 0.3 if path.startswith("params/duration/") else 1.0  # or some phones would be longer than the bucket
        return noise * np.float32(quiet * np.prod(shape[:-1]) ** -0.5)
    if name in ("scale", "gain", "alpha", "deviation", "counts"):
        return 1 + np.float32(0.03) * noise
    return noise * np.float32(0.5 if name in ("codebooks", "sums") else 0.03)  # not zero anywhere, or all outputs would be equal


@functools.cache
def _model(name: str, seed: int, size: str = "smoke") -> tuple[dict, dict]:
    config = CONFIGS[name].get_config(size)
    system = systems.make(name, config.model.to_dict())
    bucket = dict(config.data.buckets[0])
    batch = systems.shapes(system.fields, state.bucket_sizes(bucket, system.sizes, config.data.hop))
    params, rest = jax.eval_shape(system.init, jax.random.key(0), batch)
    rng = np.random.default_rng(seed)
    flat = {path: _fill(path, leaf.shape, rng) for path, leaf in state.flatten({"params": params, "rest": rest}).items()}
    return state.nest(flat), json.loads(json.dumps(config.to_dict(), default=list))


def write_model(name: str, folder: Path, seed: int = 0, size: str = "smoke") -> str:
    """A model that `inference.load` reads, with a run.json as a trained one has; `size` is the config's argument."""
    tree, config = _model(name, seed, size)
    weights.write_weights(folder, tree)
    return _about(config, folder)


def write_run(name: str, folder: Path, seed: int = 0, step: int = 7, size: str = "smoke") -> str:
    """The same model as a run: one checkpoint whose average it is, while its newest params are others."""
    tree, config = _model(name, seed, size)
    store = checkpoints.Checkpoints(str(folder))
    params, rest = tree.get("params", {}), tree.get("rest", {})
    newest = jax.tree.map(lambda x: 2 * x, params)
    store.save({"step": np.int32(step), "params": newest, "ema": params, "rest": rest, "opt": {"count": np.int32(step)}})
    store.close()
    return _about(config, folder)


def _about(config: dict, folder: Path) -> str:
    (Path(folder) / "config.json").write_text(json.dumps(config))
    (Path(folder) / "run.json").write_text(json.dumps({"revision": "0" * 40, "dataset": "tiny", "seed": 0, "versions": {"jax": "0"}}))
    return str(folder)


@dataclasses.dataclass(frozen=True)
class Toy:
    """Phone i lasts 2 + i % 3 frames and hums at its own level, with a little noise from the key; codes are loudness."""

    sizes = {"q": 2, "c": 1}
    fields = {}
    codec_network = types.SimpleNamespace(reach=lambda part: (0, 0))

    def durations(self, params, rest, inputs, rng, sizes, speed):
        frames = (2 + inputs["phones"] % 3) / speed
        return {"durations": jnp.where(inputs["phones"] > 0, jnp.maximum(jnp.round(frames), 1), 0).astype(jnp.int32)}

    def sample(self, params, rest, inputs, rng, sizes, steps, temperature):
        ends = jnp.cumsum(inputs["durations"], -1)
        frame = jnp.arange(sizes["t"])
        phone = (frame[None, :, None] >= ends[:, None, :]).sum(-1)
        level = jnp.take_along_axis(jnp.pad(inputs["phones"], ((0, 0), (0, 1))), jnp.minimum(phone, sizes["p"]), 1) / 100.0
        voice = inputs["prompt_codes"].astype(jnp.float32).mean((1, 2))[:, None] / 1000
        audio = jnp.repeat(level + voice, 4, 1) * params["gain"]
        audio = audio + temperature * 1e-3 * jax.random.normal(rng, audio.shape)
        return {"audio": audio + inputs["f0"].repeat(4, -1) * 1e-6, "frames": ends[:, -1]}

    def contour(self, params, rest, inputs, rng, sizes):
        frame = jnp.arange(sizes["t"])
        return {"f0": jnp.where(frame < inputs["durations"].sum(-1, keepdims=True), 100.0 + frame % 7, 0.0)}

    def encode(self, params, rest, inputs, rng, sizes):
        level = jnp.abs(inputs["audio"]).reshape(inputs["audio"].shape[0], -1, 4).mean(-1)
        return {"codes": jnp.stack([jnp.round(level * 100), jnp.round(level * 10)], -1).astype(jnp.int32)}

    def decode(self, params, rest, inputs, rng, sizes):
        return {"audio": jnp.repeat(inputs["codes"][..., 0] / 100.0, 4, 1)}

    def programs(self):
        text, prompt = {"phones": Field("bp", "int32")}, {"prompt_codes": Field("buq", "uint16"), "prompt_frames": Field("b", "int32")}
        durations = {"durations": Field("bp", "int32")}
        return {
            "durations": Program(self.durations, text | prompt, durations, {"speed": 1.0}),
            "contour": Program(self.contour, text | durations | prompt, {"f0": Field("bt", "float32")}),
            "sample": Program(self.sample, text | durations | {"f0": Field("bt", "float32")} | prompt, {"audio": Field("bs", "float32")}, {"steps": 3, "temperature": 1.0}),
            "encode": Program(self.encode, {"audio": Field("bs", "float32")}, {"codes": Field("btq", "int32")}),
            "decode": Program(self.decode, {"codes": Field("btq", "int32")}, {"audio": Field("bs", "float32")}),
        }


def toy(buckets=(dict(b=4, t=60, p=20, u=30), dict(b=2, t=140, p=40, u=50)), gain: float = 1.0, rate: int = 800) -> inference.Model:
    """A model of the toy at 800 Hz (a browser wants 3000 or more) with 4 samples a frame."""
    config = {"system": "toy", "model": {}, "data": {"sample_rate": rate, "hop": 4, "buckets": buckets}}
    return inference.Model(Toy(), {"gain": np.float32(gain)}, {}, config)


@dataclasses.dataclass(frozen=True)
class Follower(Toy):
    """A toy that goes on from its prompt, by what that says, and decides on lengths as it speaks: half of the room that it is given."""

    def durations(self, params, rest, inputs, rng, sizes):
        return {"durations": jnp.where(inputs["phones"] > 0, 2 * (2 + inputs["phones"] % 3), 0).astype(jnp.int32)}

    def sample(self, params, rest, inputs, rng, sizes, temperature):
        durations = jnp.where(inputs["phones"] > 0, 2 + inputs["phones"] % 3, 0).astype(jnp.int32)
        ends, frame = jnp.cumsum(durations, -1), jnp.arange(sizes["t"])
        phone = (frame[None, :, None] >= ends[:, None, :]).sum(-1)
        level = jnp.take_along_axis(jnp.pad(inputs["phones"], ((0, 0), (0, 1))), jnp.minimum(phone, sizes["p"]), 1) / 200.0
        voice = inputs["prompt_codes"].astype(jnp.float32).mean((1, 2))[:, None] / 1000 + inputs["prompt_phones"].sum(-1, keepdims=True) / 1e5
        audio = jnp.repeat(level + voice, 4, 1) * params["gain"]
        noise = jax.vmap(lambda key: jax.random.normal(key, audio.shape[1:]))(rng)
        return {"audio": audio + temperature * 1e-3 * noise, "durations": durations, "frames": ends[:, -1], "ended": jnp.ones(len(audio), jnp.int32)}

    def programs(self):
        text = {"prompt_phones": Field("bp", "int32"), "phones": Field("bp", "int32")}
        prompt, durations = {"prompt_codes": Field("buq", "uint16"), "prompt_frames": Field("b", "int32")}, {"durations": Field("bp", "int32")}
        made = {"audio": Field("bs", "float32"), "frames": Field("b", "int32"), "ended": Field("b", "int32")} | durations
        return {name: program for name, program in Toy.programs(self).items() if name in ("encode", "decode")} | {
            "durations": Program(self.durations, text, durations),
            "sample": Program(self.sample, text | prompt, made, {"temperature": 1.0}, rows=True)}


def follower(buckets=(dict(b=4, t=240, p=60, u=2000), dict(b=2, t=480, p=80, u=3000)), rate: int = 4000) -> inference.Model:
    """A model of the follower; 3000 frames are 3 s of prompt."""
    config = {"system": "follower", "model": {}, "data": {"sample_rate": rate, "hop": 4, "buckets": buckets}}
    return inference.Model(Follower(), {"gain": np.float32(1.0)}, {}, config)
