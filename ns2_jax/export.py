"""A run -> a folder that stands alone: weights, programs, config, phones, checksums and a model card.

    python -m ns2_jax.export --workdir=runs/naturalspeech2 --out=exports/naturalspeech2
    python -m ns2_jax.export --workdir=runs/naturalspeech2 --out=DIR --quantize=bf16 --codec=exports/codec   codec by hash

The folder holds `params.safetensors` (the averaged weights), `config.json` (the resolved config and where the weights
come from), `phones.json`, `lexicon.txt` where one is given, `programs/*.stablehlo` (read back with `jax.export.deserialize`; the weights are
arguments, not constants), `README.md` (the model card) and `SHA256SUMS`, which loading checks. It is written beside its place and renamed, so
it is whole or not there. Programs take any batch size and any length where lowering allows it; else there is one for each bucket. The
command ends by running the same inputs through the run and through the export and prints the difference in dB, and of audio the mel distance
(0 for a copy): what rounding the weights costs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from ns2_jax import inference
from ns2_jax.data import dataset
from ns2_jax.evals import scores, spectral_distance
from ns2_jax.runtime import cluster, state, weights
from ns2_jax.systems import system as systems

FLAGS = flags.FLAGS
SECONDS = 4.0  # programs are lowered for the smallest bucket of at least so much audio
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class About:
    """What goes along with the weights: a `lexicon` file, the `licence` of the weights and that of the data, a folder of `scores`."""

    lexicon: str = ""
    licence: str = ""
    data_licence: str = ""
    scores: str = ""


def data_of(path: str) -> list[dict[str, Any]]:
    """What a run was trained on, from the manifests of the data sets (one, or several with commas between); [] where they are not here."""
    found = []
    for root in filter(None, path.split(",")):
        try:
            manifest = dataset.Dataset.open(root).manifest
        except (FileNotFoundError, ValueError):
            continue
        hours = {split: round(about["seconds"] / 3600, 2) for split, about in manifest["splits"].items()}
        speakers = {split: len(names) for split, names in manifest["speakers"].items()}
        found.append({"name": manifest["name"], "fingerprint": manifest["fingerprint"], "hours": hours, "speakers": speakers})
    return found


def select(tree: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """The leaves whose whole path matches one of `patterns`, as a flat dict. Raises ValueError when none does."""
    flat = {path: leaf for path, leaf in state.flatten(tree).items() if any(re.fullmatch(p, path) for p in patterns)}
    if not flat:
        raise ValueError(f"nothing to export: no path of the model matches {list(patterns)}")
    return flat


def refer(flat: dict[str, Any], codec: str, out: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """`flat` without its codec or vocoder (`rest/codec/**`, `rest/vocoder/**`), and the reference that replaces it. Raises ValueError if the
    weights differ."""
    prefix = next((prefix for prefix in ("rest/vocoder/", "rest/codec/") if any(path.startswith(prefix) for path in flat)), "rest/codec/")
    inside = {path.removeprefix(prefix): leaf for path, leaf in flat.items() if path.startswith(prefix)}
    if not inside:
        raise ValueError(f"--codec={codec}: this model contains no codec to refer to")
    there = state.flatten(weights.read_weights(codec))
    different = [path for path, leaf in inside.items() if path not in there or not np.array_equal(np.asarray(leaf), there[path])]
    if different:
        count = f"{len(different)} of {len(inside)} tensors differ, first {different[0]}"
        raise ValueError(f"--codec={codec} is not the codec of this model: {count}")
    reference = {"hash": weights.weights_hash(codec), "path": os.path.relpath(codec, out)}
    if prefix != "rest/codec/":
        reference["at"] = prefix.split("/")[1]  # of `rest`
    return {path: leaf for path, leaf in flat.items() if not path.startswith(prefix)}, reference


def program_sizes(program: systems.Program, config: Mapping[str, Any], constants: Mapping[str, int],
                  bucket: Mapping[str, int] | None = None) -> dict[str, int]:
    """Axis lengths for lowering: those of `bucket`, or of the smallest of SECONDS or more (else the largest); codec programs take SECONDS."""
    rate, hop = config["data"]["sample_rate"], config["data"]["hop"]
    axes = set("".join(field.axes for field in (*program.inputs.values(), *program.outputs.values())))
    frames = -(-int(SECONDS * rate) // hop)
    buckets = sorted((dict(b) for b in config["data"]["buckets"]), key=lambda b: b.get("t", 0))
    if bucket is None:
        bucket = next((b for b in buckets if b.get("t", 0) >= frames), buckets[-1]) if axes & set("pu") else {"t": frames}
    chosen = {k: v for k, v in bucket.items() if k in "tpu"}
    samples = {"s": chosen["t"] * hop} | ({"v": chosen["u"] * hop} if "u" in chosen else {})
    return {**constants, **chosen, **samples, "b": 1}


def lower(program: systems.Program, params: Any, rest: Any, sizes: Mapping[str, int], platforms: Sequence[str]):
    """`jax.export.Exported` of `call(params, rest, inputs, seed)`, with free sizes of batch, frames, phones and prompt where the program allows
    it, else of the batch alone, else with none. Row i of a program with `rows` has the key of `seed + i`, as it would have alone."""
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    axes = set("".join(field.axes for field in program.inputs.values()))  # a size that no input has can't be told to the program
    lengths = [axis for axis in "tpu" if axis in axes or axis == "t" and "s" in axes]

    def attempt(free: Mapping[str, Any]):
        letters = {**sizes, **free} | ({"s": free["t"] * (sizes["s"] // sizes["t"])} if "t" in free else {})
        fn = program.bind(letters)

        def call(params, rest, inputs, seed):
            number = next(iter(inputs.values())).shape[0]
            key = jax.vmap(jax.random.key)(seed + jax.numpy.arange(number, dtype=np.uint32)) if program.rows else jax.random.key(seed)
            return fn(params, rest, inputs, key)

        inputs = systems.shapes(program.inputs, letters)
        seed = jax.ShapeDtypeStruct((), np.uint32)
        return jax.export.export(jax.jit(call, keep_unused=True), platforms=list(platforms))(shapes(params), shapes(rest), inputs, seed)

    for names in (["b", *lengths], ["b"]):
        try:
            return attempt(dict(zip(names, jax.export.symbolic_shape(", ".join(names)))))
        except Exception:  # pylint: disable=broad-except
            # A program may branch on its sizes (many errors say so); static shapes then tell of any true fault.
            continue
    return attempt({"b": 1})


def free_sizes(exported: Any) -> set[str]:
    """Letters of the axes whose lengths are free."""
    return {letter for aval in exported.in_avals for size in aval.shape if not isinstance(size, int) for letter in re.findall("[a-z]+", str(size))}


def lower_all(name: str, run: inference.Model, config: Mapping[str, Any], params: Any, rest: Any, platforms: Sequence[str]) -> dict[str, tuple]:
    """Name of a file -> (`lower`'s, its sizes) of program `name`: one where all lengths are free, else NAME for the usual bucket and NAME-K
    for the K-th of the others, by length."""
    program, constants = run.programs[name], run.system.sizes
    sizes = program_sizes(program, config, constants)
    found = {name: (lower(program, params, rest, sizes, platforms), sizes)}
    axes = "".join(field.axes for field in (*program.inputs.values(), *program.outputs.values())).replace("s", "t")
    if set("tpu") & set(axes) - free_sizes(found[name][0]):  # also where only an output has it: no input tells how long that is
        others = [program_sizes(program, config, constants, bucket) for bucket in run.buckets]
        for number, other in enumerate((other for other in others if other != sizes), 1):
            found[f"{name}-{number}"] = lower(program, params, rest, other, platforms), other
    return found


def describe(exported: Any, program: systems.Program, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What `config.json` says about a program: shapes with `b` where the batch is free, and `t` where the length is."""
    free = free_sizes(exported)
    lengths = {**sizes, "b": 1, **{letter: letter for letter in free}} | ({"s": f"{sizes['s'] // sizes['t']}*t"} if "t" in free else {})
    field = lambda f: {"axes": f.axes, "shape": [lengths[a] for a in f.axes], "dtype": f.dtype}
    return {
        "call": "params, rest, inputs, seed (uint32)",
        "inputs": {name: field(f) for name, f in program.inputs.items()},
        "outputs": {name: field(f) for name, f in program.outputs.items()},
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in program.options.items()},
        "platforms": list(exported.platforms),
    }


def fixed_input(name: str, field: systems.Field, sizes: Mapping[str, int], codes: np.ndarray | None, hop: int, rate: int) -> np.ndarray:
    """One row of an input that is the same every time: a gliding buzz, its codes, a cycle of phones, even durations."""
    shape = field.shape({**sizes, "b": 1})[1:]
    if name in ("audio", "prompt_audio"):
        time = np.arange(shape[0]) / rate
        phase = 2 * np.pi * (120 * time + 15 * time**2)
        return (0.2 * (1 + np.sin(5 * time)) / 2 * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)
    if name in ("codes", "prompt_codes") and codes is not None:
        return np.resize(codes, shape).astype(field.dtype)
    if name.removeprefix("prompt_") in ("phones", "units"):
        return (3 + np.arange(shape[0]) % 40).astype(field.dtype)
    if name == "f0":
        return (150 + 40 * np.sin(np.arange(np.prod(shape)) * 0.1)).reshape(shape).astype(field.dtype)
    if name == "durations":
        return np.full(shape, max(sizes["t"] // sizes["p"], 1), field.dtype)
    if name in ("begin", "end"):  # of what is filled in: the middle half
        return np.asarray(sizes["t"] * (1 if name == "begin" else 3) // 4, field.dtype)
    if name.endswith("frames"):
        return np.asarray(sizes["u"] if name.startswith("prompt") else sizes["t"], field.dtype)
    if np.issubdtype(np.dtype(field.dtype), np.floating):
        return np.sin(np.arange(np.prod(shape)) * 0.7).reshape(shape).astype(field.dtype)
    return np.zeros(shape, field.dtype)


def decibels(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal over difference in dB, at most 200 (equal)."""
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    difference = np.square(reference - other).sum()
    if difference == 0:
        return 200.0
    return float(np.clip(10 * np.log10(max(np.square(reference).sum(), 1e-30) / difference), -200, 200))


def compare(run: inference.Model, export: inference.Model, folder: Path, described: Mapping[str, Any]) -> list[str]:
    """One line per program: run against export, and export against its serialised program, on fixed inputs."""
    lines, codes = [], None
    order = sorted(run.programs, key=lambda name: name != "encode")  # encode first: it gives the others their codes
    for name in order:
        program = run.programs[name]
        sizes = program_sizes(program, run.config, run.system.sizes)
        row = {k: fixed_input(k, f, sizes, codes, run.hop, run.rate) for k, f in program.inputs.items()}
        first, second = (model.run(name, [row], [0], sizes)[0] for model in (run, export))
        if name == "encode" and "codes" in first:
            codes = first["codes"]
        parts = [f"{k} {_difference(first[k], second[k])}" for k in sorted(first)]
        if "audio" in first and not np.array_equal(first["audio"], second["audio"]) and run.rate >= spectral_distance.RATE // 2:
            (far,) = spectral_distance.measure([first["audio"]], [second["audio"]], run.rate, progress=False)
            parts.append(f"mel distance of the audio {far['mel']:.3f}")
        if name in described:
            exported = jax.export.deserialize((folder / "programs" / f"{name}.stablehlo").read_bytes())
            batch = {k: np.asarray(v)[None] for k, v in row.items()}
            if jax.default_backend() in exported.platforms:
                third = exported.call(export.params, export.rest, batch, np.uint32(0))
                shown = [k for k in sorted(first) if k == "audio"] or sorted(first)[:1]
                parts += [f"{k} of the program {_difference(second[k], np.asarray(third[k])[0])}" for k in shown]
        lines.append(f"{name}: " + ", ".join(parts))
    return lines


def _difference(reference: np.ndarray, other: np.ndarray) -> str:
    if np.issubdtype(reference.dtype, np.integer):
        return f"{100 * float((reference == other).mean()):.1f} % equal"
    value = decibels(reference, other)
    return "equal" if value >= 200 else f"{value:.0f} dB"


SPEAKS = 'speech = model.speak("Good morning.", "voice.wav", seed=0)\ninference.write("out.wav", speech)'
USES = {
    "sample": SPEAKS,
    "align": "from ns2_jax.inference import aligning\n"
             "aligned = aligning.align(model, audio, phones)        # float32 samples at the rate below, phone ids -> frames per phone",
    "encode": "codes = model.encode(audio)        # float32 samples at the rate below -> [frames, levels], of a vocoder [frames, bands]\n"
              "audio = model.decode(codes)",
}
"""Program -> what a card shows of the model that has it: the first that fits, as one that speaks may have a codec inside."""


def _scores(folder: str) -> str:
    """Scores with what measured them, as a Markdown table."""
    if not folder:
        return "None were given to the export (`--scores=DIR` of `python -m ns2_jax.evaluate`)."
    rows = []
    for line in scores.read(folder):
        said, (low, high) = line["fingerprint"], line["interval"]
        judge = "; ".join(str(said[key]) for key in ("evaluator", "normaliser", "list", "averaging") if said.get(key))
        rows.append(f"| {line['name']} | {line['value']:.3f} {line['unit']} ({low:.3f} to {high:.3f}) | {line['n']} | {judge} |")
    return "\n".join(["| | value (95 % interval) | items | measured by |", "|---|---|---|---|", *rows])


def _trained_on(provenance: Mapping[str, Any], about: About) -> str:
    one = lambda data: f"{data['hours'].get('train', 0)} h, {data['speakers'].get('train', 0)} speakers, fingerprint `{data['fingerprint'][:12]}`"
    rows = [f"- {data['name']}: {one(data)}" for data in provenance.get("data", [])]
    rows = rows or [f"- data set `{provenance.get('dataset', 'unknown')}`, which was not there when this was exported"]
    return "\n".join([*rows, f"- licence of the data: {about.data_licence or 'not stated by who exported this'}"])


def card(config: Mapping[str, Any], provenance: Mapping[str, Any], numbers: int, size: int, parity: Sequence[str], quantize: str,
         about: About, offered: Collection[str]) -> str:
    """The model card, README.md, of a model with the programs `offered`, whether they were written or not."""
    use = next((text for program, text in USES.items() if program in offered), SPEAKS)
    rows = [("system", config["system"]), ("size", config.get("size", "")), ("parameters", f"{numbers:,}"),
            ("weights", f"{size / 1e6:.1f} MB, rounding {quantize}"),
            ("audio", f"{config['data']['sample_rate']} Hz, {config['data']['hop']} samples a frame"),
            *((f"{part} begun from", source) for part, source in dict(config.get("init_from", {})).items()),
            *((key.replace("_", " "), value) for key, value in provenance.items() if isinstance(value, (str, int, float)))]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    codec = "\nIt needs the codec `{hash}` at `{path}`.\n".format_map(config["codec"]) if isinstance(config.get("codec"), Mapping) else ""
    shapes = lambda fields: ", ".join(f"{k} [{', '.join(map(str, v['shape']))}]" for k, v in fields.items())
    programs = "\n".join(f"- `{name}`: {shapes(x['inputs'])} -> {shapes(x['outputs'])}" for name, x in config["programs"].items())
    return f"""# {config['system']} ({config.get('size', '')}), an ns2_jax export

```python
from ns2_jax import inference
model = inference.load("path/of/this/folder")
{use}
```

| | |
|---|---|
{table}
{codec}
## Programs

{programs or 'None were written.'}

Shapes are of the inputs and outputs; letters are sizes that are free (`b` batch, `t` frames, `p` phones, `u` frames of prompt). Read one with
`jax.export.deserialize`, call it with the tensors of `params.safetensors` (`params/...` and `rest/...`, as nested dicts), the inputs and a
seed.

## Run against export on a fixed input

{chr(10).join('- ' + line for line in parity)}

## Trained on

{_trained_on(provenance, about)}

## Scores

{_scores(about.scores)}

## Use

Licence of the weights: {about.licence or 'not stated by who exported this'}.

Meant for research and for products whose listeners are told that they hear a machine. The voice of a real person may be imitated only with that
person's consent; audio made with ns2_jax says in its file that it is synthetic, and that must not be taken out. What the model may be used for
also depends on the licence of the recordings it was trained on. It speaks as well as those recordings let it: other languages, voices unlike
them, noise, and sentences much longer than theirs are beyond what the scores measured.
"""


def build(workdir: str, out: Path, folder: Path, quantize: str, platforms: Sequence[str], codec: str | None, programs: bool,
          about: About) -> list[str]:
    """Fills `folder` with what will be `out`; returns the lines of the comparison."""
    run = inference.load(workdir)
    flat = select(jax.device_get({"params": run.params, "rest": run.rest}), getattr(run.system, "exported", (".*",)))
    config = {key: value for key, value in run.config.items() if key not in ("codec", "programs", "provenance", "weights")}
    config |= json.loads(json.dumps(getattr(run.system, "becomes", {})))  # a student becomes a model of its teacher's kind
    if codec:
        kept, config["codec"] = refer(flat, codec, out)
    else:
        kept = flat
    digest = weights.write_weights(folder, state.nest(kept), quantize)
    config["weights"] = {"hash": digest, "quantize": quantize}
    history = Path(workdir) / "run.json"
    provenance = json.loads(history.read_text()) if history.is_file() else dict(run.config.get("provenance", {}))
    if run.step is not None:
        provenance["step"] = run.step
    if data := data_of(str(config["data"].get("path", ""))):
        provenance["data"] = data
    about = dataclasses.replace(about, **{key: getattr(about, key) or provenance.get(key, "") for key in ("licence", "data_licence")})
    provenance |= {key: getattr(about, key) for key in ("licence", "data_licence") if getattr(about, key)}
    config["provenance"] = provenance
    lexicon = about.lexicon or (str(Path(workdir) / inference.LEXICON) if run.lexicon else "")
    if lexicon:
        inference.read_lexicon(lexicon)
        shutil.copyfile(lexicon, folder / inference.LEXICON)
    rounded = {"params": {}, "rest": {}, **weights.read_weights(folder)}
    if codec:
        rounded["rest"][config["codec"].get("at", "codec")] = {"params": {}, "rest": {}, **weights.read_weights(codec)}
    export = run.like(rounded["params"], rounded["rest"], config, str(out))
    config["programs"] = {}
    if programs:
        (folder / "programs").mkdir()
        for name, program in run.programs.items():
            for file, (exported, sizes) in lower_all(name, run, config, export.params, export.rest, platforms).items():
                (folder / "programs" / f"{file}.stablehlo").write_bytes(exported.serialize())
                config["programs"][file] = describe(exported, program, sizes)
    if run.unit_text:
        shutil.copyfile(Path(workdir) / inference.UNITS, folder / inference.UNITS)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "phones.json").write_text(json.dumps(inference.phones_of(run), ensure_ascii=False) + "\n", encoding="utf-8")
    parity = compare(run, export, folder, config["programs"])
    size = (folder / weights.FILE).stat().st_size
    (folder / "README.md").write_text(card(config, provenance, state.count(kept), size, parity, quantize, about, run.programs), encoding="utf-8")
    weights.write_sums(folder)
    return parity


def is_export(path: Path) -> bool:
    return (path / weights.SUMS).is_file() and (path / weights.FILE).is_file()


def export(workdir: str, out: str | os.PathLike, quantize: str = "none", platforms: Sequence[str] = ("cpu",), codec: str | None = None,
           programs: bool = True, about: About = About()) -> list[str]:
    """Writes the export of `workdir` to `out` and returns the lines of the comparison.

    Raises ValueError for a folder at `out` that is no export, an unknown platform, another codec than the model's or a poor lexicon,
    FileNotFoundError for a missing run, checkpoint, codec, lexicon or folder of scores.
    """
    out = Path(out).resolve()  # what a link leads to is replaced, not the link
    if about.scores:
        scores.read(about.scores)
    if codec and (Path(codec).resolve() == out or out in Path(codec).resolve().parents):
        raise ValueError(f"--out={out} would replace --codec={codec}; write to another folder")
    if out.exists() and not is_export(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out={out} exists and is not an export; it will not be overwritten")
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"--platforms: {repr(unknown[0]) if unknown else 'none is given'}; expected some of {', '.join(PLATFORMS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        lines = build(workdir, out, folder, quantize, platforms, codec, programs, about)
        folder.chmod(0o755)
        old = folder.with_name(folder.name + ".old")
        if out.exists():
            os.replace(out, old)
        os.replace(folder, out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return lines


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("workdir", None, "The run to export; its latest checkpoint is taken.")
    flags.DEFINE_string("out", None, "The folder to write. An export that is there already is replaced; anything else is refused.")
    flags.DEFINE_enum("quantize", "none", list(weights.QUANTIZE), "Rounding of the weights.")
    flags.DEFINE_list("platforms", ["cpu"], f"What the programs are lowered for: some of {', '.join(PLATFORMS)}.")
    flags.DEFINE_string("codec", None, "An export of the codec or vocoder: refer to it by hash and relative path instead of containing it.")
    flags.DEFINE_bool("programs", True, "Whether to write programs/*.stablehlo.")
    flags.DEFINE_string("lexicon", "", "File of pronunciations that go along and are used wherever the export speaks.")
    flags.DEFINE_string("licence", "", "Licence of the weights, for the card.")
    flags.DEFINE_string("data_licence", "", "Licence of the recordings it was trained on, for the card.")
    flags.DEFINE_string("scores", "", "Folder with scores.jsonl of python -m ns2_jax.evaluate, for the card.")


def main(argv: list[str]) -> None:
    del argv
    for name in ("workdir", "out"):
        if not FLAGS[name].value:
            raise ValueError(f"--{name}=DIR is missing")
    cluster.start(lambda line: None)
    cluster.end_tidily()
    # Programs name the source lines they came from: without the folders of this machine.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", r".*/(?=(ns2_jax|site-packages)/)")
    lines = export(FLAGS.workdir, FLAGS.out, FLAGS.quantize, FLAGS.platforms, FLAGS.codec, FLAGS.programs,
                   About(FLAGS.lexicon, FLAGS.licence, FLAGS.data_licence, FLAGS.scores))
    print(f"{FLAGS.out}: {weights.weights_hash(FLAGS.out)}, {sum(p.stat().st_size for p in Path(FLAGS.out).rglob('*')) / 1e6:.1f} MB")
    print("run against export, on a fixed input:")
    for line in lines:
        print("  " + line)


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
