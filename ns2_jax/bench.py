"""Times the parts that matter on this machine: the data feed, the training step, the sampler.

    python -m ns2_jax.bench train  --config=configs/codec.py:small --steps=20
    python -m ns2_jax.bench train  --config=configs/codec.py:small --config.data.path=data/default --json
    python -m ns2_jax.bench data   --json
    python -m ns2_jax.bench data   --config=configs/codec.py:small --config.data.path=data/default
    python -m ns2_jax.bench sample --config=configs/naturalspeech2.py:small
    python -m ns2_jax.bench sample --config=configs/naturalspeech2.py:base --by_steps=2,4,8,16,50,150 --rows=1,16
    python -m ns2_jax.bench sample --config=configs/valle.py:small --rows=1,8 --option=best_of=1
    python -m ns2_jax.bench sample --config=configs/soundstorm.py:base --rows=1 --flattened

Every figure is the median over `--repeats` runs of `--steps` steps, after the compilation and two steps of warm-up; the
spread is printed beside it. Weights are random, batches too unless the config names a data set. `train` gives
seconds a step, frames/s, seconds of audio a second and chip, peak memory, on a device whose peak is known the model FLOPs utilisation, and
on any the share of the ceiling: how long the step's matrix products and convolutions would take at the rates that a large product and a
large convolution reach here, in the same run and precision, over how long the step takes; `sample` the seconds of speech made in a
second (by its own number of sampler steps, or the real-time factors of several with `--by_steps` and `--rows`; an option that is on or off, as
the cache of a language model, is timed both ways; of a system that fills in codes the passes in a second, and with `--flattened` how long it takes
to write the same codes one after the other); `data` batches and seconds of audio per second, or, without a config, what plan and feed
reach on records like those of 44,000 hours (`ns2_jax/data/measure.py` says how each figure is taken). `--json` prints one object; revision,
machine and its load before the run are in it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from ns2_jax import inference
from ns2_jax.data import feed, measure
from ns2_jax.runtime import cluster, flops, metrics, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime.program import Program
from ns2_jax.systems import system as systems

FLAGS = flags.FLAGS


def define_flags() -> None:
    """When this file is the command; importing it defines none."""
    config_flags.DEFINE_config_file("config", None, "FILE[:argument], as in configs/codec.py:small.", lock_config=True)
    flags.DEFINE_integer("steps", 10, "Steps in a run.", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "Runs; the median is reported.", lower_bound=1)
    flags.DEFINE_integer("at_step", 0, "Training step to stand at: a codec's discriminators join late, for example.", lower_bound=0)
    flags.DEFINE_list("by_steps", [], "Times `sample` of a system that speaks at so many sampler steps, for each number of --rows.")
    flags.DEFINE_list("rows", [], "Times `sample` alone, with so many utterances at once.")
    flags.DEFINE_multi_string("option", [], "Of the system's program `sample`, NAME=VALUE.")
    flags.DEFINE_bool("flattened", False, "Times `sample` of a system that fills in codes, with --rows, also one code at a time.")
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else.")


TAKES_WORDS = True  # data | train | sample
WARM_UP = 2


def timed(run: Callable[[], None], repeats: int, steps: int) -> dict[str, float]:
    """Median and spread of the seconds that one of `steps` in `run` takes."""
    seconds = []
    for _ in tqdm(range(repeats), desc="runs", leave=False, disable=FLAGS.json):
        begin = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - begin) / steps)
    return {"median_step_seconds": statistics.median(seconds), "mean_step_seconds": statistics.mean(seconds),
            "min_step_seconds": min(seconds), "max_step_seconds": max(seconds)}


def synthetic(fields: dict[str, Any], sizes: dict[str, int], codes: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of plausible numbers: noise for audio, full rows, phones that share the frames evenly."""
    batch = {}
    for i, (name, field) in enumerate(fields.items()):
        rng = jax.random.fold_in(jax.random.key(seed), i)
        shape, kind = field.shape(sizes), name.removeprefix("prompt_")
        if kind == "audio":
            value = 0.1 * jax.random.normal(rng, shape)
        elif kind == "phones":
            value = jax.random.randint(rng, shape, 3, 40)
        elif kind == "durations":
            value = np.full(shape, max(sizes["t"] // sizes["p"], 1))
        elif kind == "f0":
            value = np.full(shape, 150.0)
        elif kind == "codes":
            value = jax.random.randint(rng, shape, 0, codes)
        elif kind == "frames":
            value = np.full(shape, sizes["u" if name.startswith("prompt_") else "t"])
        else:
            value = np.ones(shape)
        batch[name] = np.asarray(value).astype(field.dtype)
    return batch


def make(config: Any) -> Program:
    system = systems.make(config.system, config.model.to_dict())
    return Program(config, system, meshes.make_mesh(config.mesh), lambda: systems.rules(meshes.RULES))


def batch_of(program: Program, bucket: dict[str, int]) -> dict[str, np.ndarray]:
    return synthetic(program.system.fields, program.sizes(bucket), getattr(program.system, "codes", 32))


def source(config: Any, system: Any) -> Any:
    """The feed that training would use."""
    weights.codec_of(config, system.fields)
    return feed.make_feed(config.data, system.fields, system.sizes, config.seed, 0)


def ceiling(precision: str, repeats: int = 5, size: int = 2048) -> dict[str, float]:
    """FLOP/s of one device, the best of `repeats`: a product of two `size x size` matrices, and a convolution of three taps over
    `[8, size / 2, size / 4]`."""
    def best(call: Callable[..., Any], flops: float, *shapes: tuple[int, ...]) -> float:
        run, seconds = jax.jit(call), []
        given = [jax.random.normal(jax.random.key(i), shape).astype(precision) for i, shape in enumerate(shapes)]
        jax.block_until_ready(run(*given))
        for _ in range(repeats):
            begin = time.perf_counter()
            jax.block_until_ready(run(*given))
            seconds.append(time.perf_counter() - begin)
        return flops / min(seconds)

    t, c = size // 2, size // 4
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return {"products": best(lambda a, b: a @ b, 2.0 * size**3, (size, size), (size, size)),
            "convolutions": best(conv, 2.0 * 8 * t * 3 * c * c, (8, t, c), (3, c, c))}


def peak_memory() -> int | None:
    """Bytes: of the busiest device where it says, of this process on a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    found = max((s.get("peak_bytes_in_use", 0) for s in stats), default=0)
    return found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bench_train(config: Any, steps: int, repeats: int) -> dict[str, Any]:
    """The step on the largest bucket; with config.data.path on the batches of the data set, their waiting included.

    Frames and FLOPs are those of the batches that were timed; `frames` are real ones, without padding.
    """
    program = make(config)
    begin = time.perf_counter()
    state = program.create(meshes.put_batch(program.mesh, batch_of(program, program.bucket)))
    state["step"] = jax.device_put(np.int32(FLAGS.at_step), meshes.replicated(program.mesh))
    made = [batch_of(program, bucket) for bucket in (config.data.buckets if config.data.path else [program.bucket])]
    for batch in made:
        program.compiled(batch)
    compiled = time.perf_counter() - begin
    batches = source(config, program.system) if config.data.path else None
    halted, ran = program.go(), []

    def run(n: int = steps) -> None:
        nonlocal state, halted
        for _ in range(n):
            local = next(batches) if batches else made[0]
            ran.append((frames_of(local, config.data.hop), {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in local.items()}))
            state, values = program(state, meshes.put_batch(program.mesh, local), halted)
            halted = values["halted"]
        jax.block_until_ready(state)

    run(WARM_UP)
    ran.clear()
    times = timed(run, repeats, steps)
    seconds = times["mean_step_seconds" if batches else "median_step_seconds"]  # buckets differ, so all that ran over all its time
    report = times | {
        "start_s": compiled, "steps_per_second": 1 / times["median_step_seconds"], "at_step": FLAGS.at_step,
        "batch": program.bucket if batches is None else "as the data set's plan has them", "data": config.data.path or "synthetic"}
    if "t" in program.bucket:
        report["frames_per_second"] = sum(frames for frames, _ in ran) / len(ran) / seconds
        report["audio_seconds_per_second"] = report["frames_per_second"] * config.data.hop / config.data.sample_rate
        report["audio_seconds_per_second_per_chip"] = report["audio_seconds_per_second"] / program.mesh.size
    report["flops_per_step"] = sum(program.flops(batch) for _, batch in ran) / len(ran)
    if peak := metrics.peak(jax.devices()[0].device_kind):
        report["mfu"] = report["flops_per_step"] / seconds / (peak * program.mesh.size)
    report["peak_memory_bytes"], report["ceiling"] = peak_memory(), ceiling(str(config.precision))
    work = [flops.kinds(program.trace(batch).jaxpr) for _, batch in (ran if batches else ran[:1])]
    least = sum(w[kind] / rate for w in work for kind, rate in report["ceiling"].items()) / len(work)
    report["share_of_ceiling"] = least / seconds / (1 if jax.default_backend() == "cpu" else program.mesh.size)  # devices of a CPU share it
    if bool(halted):
        raise ValueError("the step met a number that is not finite; train with this config to see where")
    return report


def frames_of(batch: dict[str, np.ndarray], hop: int) -> float:
    """Frames in a batch, without padding where the batch says how long its rows are."""
    if "frames" in batch:
        return float(batch["frames"].sum())
    return float(batch["weight"].sum()) * batch["audio"].shape[1] / hop


def bench_data(config: Any, steps: int, repeats: int) -> dict[str, Any]:
    """The feed alone."""
    if not config.data.path:
        raise ValueError("bench data needs a data set: --config.data.path=DIR")
    system = systems.make(config.system, config.model.to_dict())
    batches = source(config, system)
    frames = []

    def run(n: int = steps) -> None:
        for _ in range(n):
            batch = next(batches)
            frames.append(frames_of(batch, config.data.hop))

    run(WARM_UP)
    frames.clear()
    times = timed(run, repeats, steps)
    audio = statistics.mean(frames) * config.data.hop / config.data.sample_rate
    seconds = times["median_step_seconds"]
    return times | {"batches_per_second": 1 / seconds, "audio_seconds_per_second": audio / seconds,
                    "workers": config.data.workers, "data": config.data.path}


def bench_sample(config: Any, steps: int, repeats: int) -> dict[str, Any]:
    """Every program of the system on the largest bucket, random weights: seconds a call, speech made per second."""
    program = make(config)
    system, sizes = program.system, program.sizes()
    fields = {name: field for p in system.programs().values() for name, field in p.inputs.items()}
    first = batch_of(program, program.bucket)
    state = program.create(meshes.put_batch(program.mesh, first))
    inputs = {**synthetic(fields, sizes, getattr(system, "codes", 32)), **{n: x for n, x in first.items() if n in fields}}
    seconds_of_audio = sizes["b"] * sizes["t"] * config.data.hop / config.data.sample_rate
    report: dict[str, Any] = {"batch": program.bucket, "speech_seconds": seconds_of_audio, "programs": {}}
    rng = jax.random.key(config.seed)
    if hasattr(system, "cache_bytes"):
        report["cache_bytes"] = system.cache_bytes(sizes)
    if FLAGS.flattened and (not FLAGS.rows or not hasattr(system, "passes")):
        raise ValueError("--flattened goes with --rows and a system that fills in codes (soundstorm)")
    if FLAGS.by_steps or FLAGS.rows:
        return report | {"programs": by_rows(program, state, inputs, numbers("by_steps"), numbers("rows") or [1], repeats)}
    for name, spec in system.programs().items():
        given = meshes.put_batch(program.mesh, {n: inputs[n].astype(f.dtype) for n, f in spec.inputs.items()})
        with jax.set_mesh(program.mesh), systems.rules(meshes.RULES):
            chosen = options_of(spec, sizes["t"]) if name == "sample" else {}
            call = jax.jit(spec.bind(sizes, **chosen)).lower(state["params"], state["rest"], given, rng).compile()

        def run(n: int = steps) -> None:
            for _ in range(n):
                jax.block_until_ready(call(state["params"], state["rest"], given, rng))

        run(1)
        times = timed(run, repeats, steps)
        rate = seconds_of_audio / times["median_step_seconds"]
        report["programs"][name] = times | {"speech_seconds_per_second": rate, "options": {**spec.options, **chosen}}
    return report


def options_of(spec: Any, frames: int) -> dict[str, Any]:
    """Of --option, and a length for what would end as soon as it likes (a random model may at once)."""
    return ({"least": frames} if "least" in spec.options else {}) | inference.options_of(FLAGS.option)


def switches(options: dict[str, Any]) -> list[dict[str, bool]]:
    """Nothing changed, and each option that is on or off turned round."""
    return [{}] + [{name: not value} for name, value in options.items() if isinstance(value, bool)]


def numbers(flag: str) -> list[int]:
    """Of a flag that lists whole numbers from 1 on."""
    if wrong := next((word for word in FLAGS[flag].value if not word.isdecimal() or int(word) < 1), None):
        raise ValueError(f"--{flag}={wrong}: expected whole numbers from 1 on, as in --{flag}=1,16")
    return [int(word) for word in FLAGS[flag].value]


def by_rows(program: Program, state: Any, inputs: dict[str, np.ndarray], counts: list[int], rows: list[int], repeats: int) -> dict[str, Any]:
    """Real-time factor (seconds of work for a second of speech) and seconds of compiling of `sample`, for rows x steps, or rows alone; codes made
    in a second where it makes codes; every option that is on or off both ways."""
    system, sizes, found = program.system, program.sizes(), {}
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
    spec = system.programs().get("sample")
    if spec is None or counts and "steps" not in spec.options:
        raise ValueError(f"--{'by_steps' if counts else 'rows'}: system {program.config.system!r} has no sampler{' with steps' if counts else ''}")
    chosen = options_of(spec, sizes["t"])
    seconds = sizes["t"] * program.config.data.hop / program.config.data.sample_rate
    for b in rows:
        given = {n: jax.device_put(np.resize(inputs[n], f.shape({**sizes, "b": b})).astype(f.dtype)) for n, f in spec.inputs.items()}
        for more in [{"steps": steps} for steps in counts] or switches({**spec.options, **chosen}):
            begin = time.perf_counter()
            bound = spec.bind({**sizes, "b": b}, **chosen | more)
            with jax.set_mesh(program.mesh), systems.rules(meshes.RULES):
                call = jax.jit(bound).lower(state["params"], state["rest"], given, jax.random.key(0)).compile()
            compiling = time.perf_counter() - begin
            run = lambda: jax.block_until_ready(call(state["params"], state["rest"], given, jax.random.key(0)))
            run()
            times = timed(run, repeats, 1)
            name = ", ".join([f"rows {b}", *(f"{key} {value}" for key, value in more.items())])
            found[name] = times | {"compile_s": compiling, "rtf": times["median_step_seconds"] / (b * seconds)}
            if "codes" in spec.outputs:
                found[name]["codes_per_second"] = b * sizes["t"] * sizes["q"] / times["median_step_seconds"]
            if hasattr(system, "passes"):
                found[name]["passes_per_second"] = system.passes((spec.options | chosen | more)["steps"]) / times["median_step_seconds"]
        if FLAGS.flattened:
            times = timed(flattened(program, b), repeats, 1)
            slowest = max(one["median_step_seconds"] for name, one in found.items() if name.startswith(f"rows {b}"))
            found[f"rows {b}, flattened"] = times | {"rtf": times["median_step_seconds"] / (b * seconds),
                                                     "codes_per_second": b * sizes["t"] * sizes["q"] / times["median_step_seconds"],
                                                     "gain": times["median_step_seconds"] / slowest}
        if hasattr(system, "cache_bytes"):
            found[f"rows {b}"]["cache_bytes"] = system.cache_bytes({**sizes, "b": b})
    return found


def one_by_one(system: systems.System, codes: int) -> systems.System:
    """A causal stack, as wide and deep and with as many parameters a layer as the decoder of `system`, that writes so many codes (no fewer)."""
    numbers = system.decoder
    width, convolved = numbers["width"], 3 * numbers.get("expansion", 1) * numbers["width"]
    hidden = 2 * numbers["hidden"] + (convolved - 4 * width) // 2  # a Conformer's block has two dense pairs and a convolution, this one sees a text
    stack = dict(layers=numbers["layers"], heads=numbers["heads"], hidden=hidden)
    return systems.make("text_to_semantic", dict(
        encoder=stack | {"layers": 1}, decoder=stack, tokens=system.codes, width=width, tied=False, dtype=system.dtype,
        frames_per_phone=4.0 * codes))  # of a single phone: it may not end before all are written


def flattened(program: Program, rows: int) -> Callable[[], None]:
    """Writes as many codes as `sample` fills in, the levels of a frame one after the other, a pass a code, with a cache: what SoundStorm is compared
    with (AudioLM). The codec is not in it."""
    sizes = program.sizes()
    codes = sizes["t"] * sizes["q"]
    system, shape = one_by_one(program.system, codes), {"b": rows, "t": codes, "p": 1, "u": 1}
    params = jax.jit(system.init)(jax.random.key(0), synthetic(system.fields, shape))[0]
    spec = system.programs()["translate"]
    given = synthetic(spec.inputs, shape) | {"prompt_frames": np.zeros(rows, np.int32)}
    call = jax.jit(spec.bind(shape)).lower(params, {}, given, jax.random.key(0)).compile()
    run = lambda: jax.block_until_ready(call(params, {}, given, jax.random.key(0)))
    if (short := np.asarray(run()["frames"]) != codes).any():
        raise ValueError(f"{short.sum()} of {rows} rows ended before {codes} codes were written")
    return run


BENCHES = {"train": bench_train, "data": bench_data, "sample": bench_sample}


def lines(report: dict[str, Any]) -> str:
    """The report for people."""
    def show(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    rows = []
    for key, value in report.items():
        if key == "ceiling":
            rows.append("ceiling, FLOP/s: " + ", ".join(f"{k} {show(v)}" for k, v in value.items()))
        elif key == "programs":
            rows += [f"  {name}: " + ", ".join(f"{k} {show(v)}" for k, v in numbers.items()) for name, numbers in value.items()]
        else:
            rows.append(f"{key}: {show(value)}")
    return "\n".join(rows)


def main(argv: list[str]) -> int:
    what = argv[1:] or ["(nothing)"]
    if len(what) != 1 or what[0] not in BENCHES:
        raise ValueError(f"say what to time: one of {sorted(BENCHES)}, not {' '.join(what)} (see --help)")
    config = FLAGS.config
    if config is None and what != ["data"]:
        raise ValueError("--config is missing; for example --config=configs/codec.py:small (see --help)")
    report = {"bench": what[0], "revision": cluster.revision(), "jax": jax.__version__, "machine": platform.machine(), "cores": cluster.cores(),
              "load": os.getloadavg()[0]}
    if config is None:
        report |= measure.everything()
    else:
        cluster.start(lambda text: None)
        if jax.process_count() > 1:
            raise ValueError(f"bench times one process, and this is one of {jax.process_count()}: each would make a whole batch; run it on one host "
                             "alone (ns2_jax.train logs the MFU of all)")
        report |= {"config": config.system, "size": config.size, "device": jax.devices()[0].device_kind, "devices": len(jax.devices()),
                   "steps": FLAGS.steps, "repeats": FLAGS.repeats}
        report |= BENCHES[what[0]](config, FLAGS.steps, FLAGS.repeats)
    print(json.dumps(report, default=list) if FLAGS.json else lines(report))
    return cluster.DONE


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
