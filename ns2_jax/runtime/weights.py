"""Weights as safetensors: written the same byte for byte, read back as float32, refused when damaged.

The format is safetensors' own (8 bytes of header length, a JSON header, raw little-endian tensors), so that any
reader opens it; writing it takes forty lines and no dependency. Three roundings:

    none    float32 as it is
    bf16    matrices and kernels as bfloat16, vectors float32
    int8    kernels under `params/` as int8 with a float32 scale `<name>:scale`, all others as in bf16

The header carries a sha256 of the tensors and of itself, checked on reading. The first 12 hex digits of the file's own sha256 are
the name of an exported codec.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from ns2_jax.runtime.optim import matches
from ns2_jax.runtime.state import flatten, nest

FILE = "params.safetensors"
SUMS = "SHA256SUMS"
QUANTIZE = ("none", "bf16", "int8")
SCALE = ":scale"
_CODES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64, "I8": np.int8, "U8": np.uint8,
          "I16": np.int16, "U16": np.uint16, "I32": np.int32, "U32": np.uint32, "I64": np.int64, "U64": np.uint64, "BOOL": np.bool_}
_NAMES = {np.dtype(t): name for name, t in _CODES.items()}
INT8_ROWS = 16  # a scale is kept for every column of so many rows or more; shorter ones would cost more than they save


def _file(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    return path if path.endswith(".safetensors") else os.path.join(path, FILE)


def _round(name: str, array: np.ndarray, quantize: str) -> dict[str, np.ndarray]:
    """One tensor as it is stored: itself, or int8 and its scale (symmetric, largest magnitude of each column)."""
    frozen = name.startswith("rest/codec/")  # already rounded once: codes and statistics come from exactly these numbers
    if quantize == "none" or frozen or array.ndim < 2 or not np.issubdtype(array.dtype, np.floating):
        return {name: array}
    if quantize == "int8" and "params/" in name and array.shape[-2] >= INT8_ROWS:
        scale = np.maximum(np.abs(array).max(-2, keepdims=True), 1e-30).astype(np.float32) / np.float32(127)
        return {name: np.clip(np.rint(array / scale), -127, 127).astype(np.int8), name + SCALE: scale}
    return {name: array.astype(ml_dtypes.bfloat16)}


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def write_weights(path: str | os.PathLike, tree: Any, quantize: str = "none") -> str:
    """Writes a tree of arrays to `path` (a folder, or a `.safetensors` file); returns the hash, 12 hex digits.

    Names are paths, `params/gen/conv/kernel`. Raises ValueError for an unknown rounding or a number that is not finite.
    """
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize={quantize!r} does not exist; roundings are {list(QUANTIZE)}")
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in sorted(flatten(tree).items()):
        array = np.asarray(leaf)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite; weights like that are not written")
        tensors.update(_round(name, array, quantize))
    header: dict[str, Any] = {}
    digest, offset = hashlib.sha256(), 0
    data = [np.ascontiguousarray(a).tobytes() for a in tensors.values()]
    for (name, array), raw in zip(tensors.items(), data):
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
        digest.update(raw)
    header["__metadata__"] = {"format": "ns2_jax", "quantize": quantize}
    digest.update(_canonical(header))
    header["__metadata__"]["sha256"] = digest.hexdigest()
    text = _canonical(header)
    text += b" " * (-len(text) % 8)
    target = _file(path)
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    with open(target + ".part", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for raw in data:
            f.write(raw)
        f.flush()
        os.fsync(f.fileno())
    os.replace(target + ".part", target)
    return weights_hash(target)


def read_stored(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors as they are stored (name -> array) and the header's metadata.

    Raises FileNotFoundError when there is no file, ValueError when it is cut short or was changed.
    """
    target = _file(path)
    if not os.path.exists(target):
        raise FileNotFoundError(f"{target} does not exist; expected an export (made by python -m ns2_jax.export)")
    with open(target, "rb") as f:
        raw = f.read()
    length = int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8 : 8 + length])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{target} is not a safetensors file, or is damaged: its header cannot be read") from error
    metadata, data = header.get("__metadata__", {}), memoryview(raw)[8 + length :]
    expected = metadata.pop("sha256", None)
    ours = metadata.get("format") == "ns2_jax"
    if (ours or expected) and hashlib.sha256(bytes(data) + _canonical(header)).hexdigest() != expected:
        raise ValueError(f"{target} is damaged: its contents do not have the sha256 it was written with; copy or export it again")
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in _CODES:
            raise ValueError(f"{target} is damaged: header entry {name!r} is not a tensor this code reads")
        begin, end = entry["data_offsets"]
        dtype = np.dtype(_CODES[entry["dtype"]])
        if end > len(data) or end - begin != math.prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(f"{target} is damaged: tensor {name} has bytes {begin}:{end} of {len(data)}")
        tensors[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"]).copy()
    return tensors, metadata


def read_weights(path: str | os.PathLike) -> dict[str, Any]:
    """The nested tree of `write_weights`, floats as float32 numpy (int8 already scaled), integers as they are."""
    stored, _ = read_stored(path)
    flat = {}
    for name, array in stored.items():
        if name.endswith(SCALE):
            continue
        if name + SCALE in stored:
            array = array.astype(np.float32) * stored[name + SCALE]
        flat[name] = array if array.dtype.kind in "iub" else array.astype(np.float32)
    return nest(flat)


def write_sums(folder: str | os.PathLike) -> None:
    """SUMS: the sha256 of every file below `folder`, as sha256sum prints and checks it."""
    folder = os.fspath(folder)
    names = sorted(os.path.relpath(os.path.join(here, name), folder) for here, _, found in os.walk(folder) for name in found)
    lines = [f"{_sha256(os.path.join(folder, name))}  {name}\n" for name in names if name != SUMS]
    with open(os.path.join(folder, SUMS), "w", encoding="utf8") as f:
        f.writelines(lines)


def check_sums(folder: str | os.PathLike) -> frozenset[str]:
    """The names in SUMS, each file found to be what was written; none where there is no SUMS.

    Raises ValueError naming the first file that is missing, cut short or changed. Files that are not named are not looked at.
    """
    target = os.path.join(folder, SUMS)
    if not os.path.exists(target):
        return frozenset()
    again = "copy or export it again"
    with open(target, encoding="utf8", errors="replace") as f:
        entries = [line.rstrip("\n").split("  ", 1) for line in f]
    for entry in entries:
        if len(entry) != 2 or len(entry[0]) != 64 or os.path.isabs(entry[1]) or ".." in entry[1].split("/"):
            raise ValueError(f"{target} is damaged: {'  '.join(entry)[:80]!r} is not a line of it; {again}")
        path = os.path.join(folder, entry[1])
        if not os.path.isfile(path):
            raise ValueError(f"{os.fspath(folder)} is damaged: {entry[1]} is missing; {again}")
        if _sha256(path) != entry[0]:
            raise ValueError(f"{os.fspath(folder)} is damaged: {entry[1]} does not have the sha256 that it was exported with; {again}")
    return frozenset(name for _, name in entries)


def check_named(folder: str | os.PathLike, names: Iterable[str]) -> None:
    """Raises ValueError for one of these files that is there and that SUMS does not name; where there is no SUMS, nothing is asked of them."""
    target = os.path.join(folder, SUMS)
    if not os.path.exists(target):
        return
    with open(target, encoding="utf8", errors="replace") as f:
        known = {line.rstrip("\n").split("  ", 1)[-1] for line in f}
    for name in names:
        if name not in known and os.path.exists(os.path.join(folder, name)):
            raise ValueError(f"{os.fspath(folder)} is damaged: {name} came to it later, {SUMS} does not name it; take it away, or export it again")


def _sha256(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def weights_hash(path: str | os.PathLike) -> str:
    """The first 12 hex digits of the sha256 of `params.safetensors`: what a codec is called in records and checkpoints."""
    target = _file(path)
    if not os.path.exists(target):
        raise FileNotFoundError(f"{target} does not exist; expected an export (made by python -m ns2_jax.export)")
    return _sha256(target)[:12]


def codec_of(config: Any, fields: Any) -> str:
    """The codec whose codes a run reads: the export that init_from puts at `rest/codec`, whose hash is then written to
    `config.data.codes`; "" when none of `fields` is codes.

    Raises ValueError when init_from names none (the codebooks would be random), when `config.data.codes` is of another, or
    when `config.model.codec` has other numbers than it (shapes alone do not show another hop or kind).
    """
    if not {"codes", "prompt_codes"} & set(fields):
        return ""
    source = dict(config.init_from).get("rest/codec")
    if not source:
        way = """--config.init_from='{"rest/codec": "EXPORTED CODEC"}'"""
        raise ValueError(f"system {config.system!r} reads codes: say whose, with {way}")
    found = weights_hash(source)
    if config.data.codes not in ("", found):
        raise ValueError(f"config.data.codes={config.data.codes} but the codec of init_from, {source}, is {found}; leave data.codes empty")
    check_same(config, "codec" if "codec" in config.model else "teacher.codec", source)
    config.data.codes = found
    return found


def check_same(config: Any, name: str, source: str) -> None:
    """Raises ValueError when `config.model.<name>` has other numbers than the run or export `source` was trained with: shapes alone do
    not show another hop or kind. A `teacher` is a whole model, of system `config.model.of`; `teacher.codec` is what that has of a codec."""
    with open(os.path.join(source, "config.json"), encoding="utf8") as f:
        about = json.load(f)
    whole, part = name == "teacher", name.rsplit(".", 1)[-1]
    theirs = about.get("model", {}).get(part)
    if whole:
        theirs = about.get("model") if about.get("system") == config.model.of else None
    if theirs is None:
        wanted = f"is no {config.model.of}" if whole else f"has no {part}"
        raise ValueError(f"{source} of init_from is of system {about.get('system')!r} and {wanted}")
    node = config.model
    for key in name.split("."):
        node = node[key]
    ours = json.loads(json.dumps(node.to_dict()))
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key, 0), theirs.get(key, 0)  # what an older one does not name it does not have
        if a != b:
            raise ValueError(f"config.model.{name}.{key} is {a}, the {part} of init_from, {source}, was trained with {b}")


def check_borrowed(config: Any, borrowed: Mapping[str, str]) -> None:
    """That `config.init_from` fills the `borrowed` parts of a state (path -> their mapping of numbers in config.model): untrained they
    would be noise for ever. Raises ValueError when it does not, or from another kind."""
    given = dict(config.init_from)
    for path, name in borrowed.items():
        source = next((given[key] for key in given if path == key or path.startswith(key + "/")), None)
        if not source:
            part = name.rsplit(".", 1)[-1]
            raise ValueError(f"""system {config.system!r} has a {part} of another run: say whose, with --config.init_from='{{"{path}": "EXPORT"}}'""")
        check_same(config, name, source)


def check_frozen(config: Any, params: Any, idle: Iterable[str] = ()) -> None:
    """That `config.init_from` gives those of `params` which `config.train.frozen` leaves as they are: untrained they would be noise for ever.
    The regexes `idle` name what no loss of the system reaches anyway. Raises ValueError."""
    given = tuple(key for key, source in dict(config.init_from).items() if source)
    noise = [path for path in flatten(params, "params/") if matches(config.train.frozen, path) and not matches(idle, path)
             and not any(path == key or path.startswith(key + "/") for key in given)]
    if noise:
        raise ValueError(f"config.train.frozen keeps {noise[0]} and {len(noise) - 1} more from training, and no init_from fills them: they would "
                         f"""stay random; say whose they are, with --config.init_from='{{"params": "EXPORT"}}'""")
