"""Where the published codec goes on with `refine`: `python results/codec/refine_start.py RUN DATA OUT`.

RUN is `small` as trained without `refine`. Its coarse codebooks stay; those after them begin again, by k-means on what the coarse
ones leave of 85 training batches (65,280 frames) in the channels that `refine=4` gives each level. OUT is for `config.init_from`.
"""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs import codec as configs_codec
from ns2_jax.data import feed
from ns2_jax.layers import quantize
from ns2_jax.runtime import checkpoints, weights
from ns2_jax.systems import system as systems

if len(sys.argv) != 4:
    sys.exit("error: expected RUN DATA OUT, as in results/codec/README.md")
run, data, out = sys.argv[1:]
config = configs_codec.get_config("small")
config.data.path, config.model.refine = data, 4
model, _ = checkpoints.read_model(run)
codec, rest = systems.make(config.system, config.model.to_dict()), dict(model["rest"])
coarse = codec.network.coarse

encode = jax.jit(lambda audio: codec.network.apply({"params": model["params"]["gen"]}, audio, method="encode"))
batches = iter(feed.make_feed(config.data, codec.fields, codec.sizes, config.seed, 0))
z = jnp.concatenate([encode(next(batches)["audio"]) for _ in range(85)])
books = quantize.Books(rest["codebooks"], rest["codebooks"])
left = z - quantize.rvq_lookup(books.codes, quantize.rvq_encode(z, books, coarse), coarse)
new = quantize.rvq_start(jax.random.key(0), left, codec.levels - coarse, codec.codes, codec.task[coarse:], rounds=20)
one = rest["counts"].mean() / new["counts"].mean()  # a step adds one batch
for name, value in new.items():
    rest[name] = np.concatenate([rest[name][:coarse], value if name == "codebooks" else one * value])
os.makedirs(out, exist_ok=True)
with open(os.path.join(out, "config.json"), "w", encoding="utf8") as f:
    json.dump({"system": config.system}, f)
weights.write_weights(out, {"params": model["params"], "rest": rest})
