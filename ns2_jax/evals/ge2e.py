"""The GE2E speaker encoder of the `resemblyzer` wheel: its weights, its mel front end, its network in JAX.

Wan et al. 2018, "Generalized End-to-End Loss for Speaker Verification" (arXiv 1710.10467); Resemblyzer 0.1.4
(Apache-2.0): three LSTM layers of 256, a 256-wide projection, ReLU, unit length; 40 mels of 25/10 ms at 16 kHz
without logarithm; a voice is the mean over 1.6-second pieces. Only the weights file is opened: nothing of the
package is imported, and the file's pickle is read by a loader that can build float arrays and nothing else.
"""

from __future__ import annotations

import collections
import functools
import importlib.metadata
import importlib.util
import io
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np

from ns2_jax.evals import statistics
from ns2_jax.layers.recurrent import lstm

RATE = 16000
HOP = 160  # 10 ms
WINDOW = 400  # 25 ms
MELS = 40
PIECE = 160  # frames of one partial utterance: 1.6 s
PIECE_RATE = 1.3  # partial utterances per second
COVERAGE = 0.75  # of the last piece that must be speech and not padding
LEVEL_DBFS = -30.0  # quieter recordings are raised to this level
BATCH = 16  # pieces per call: one compilation serves every length
MAGIC = 0x1950A86A20F9469CFC6C  # opens a file of torch.save's format before zip archives


class _Storage:
    """Where a tensor's numbers are: `key` of the raw bytes, filled in after the pickle is read."""

    def __init__(self, key: str):
        self.key = key


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


def _rebuild(storage, offset, size, stride, *_):
    return _Tensor(storage, offset, size, stride)


class _Unpickler(pickle.Unpickler):
    """Knows the three names a file of float tensors needs; any other is refused, so no code in the file can run."""

    allowed = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch", "FloatStorage"): "float32",
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise ValueError(f"the weights file asks for {module}.{name}; only plain float tensors are read")
        return self.allowed[module, name]

    def persistent_load(self, pid):
        kind, dtype, key = pid[:3]
        if kind != "storage" or dtype != "float32":
            raise ValueError(f"the weights file holds {pid!r}; only float32 storages are read")
        return _Storage(key)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """`model_state` of a legacy `torch.save` file as float32 arrays, without torch.

    The format: four pickles (magic, protocol 1001, system, object), a pickle with the list of storage keys, then per
    key an int64 count and that many little-endian float32. Raises ValueError when the file is anything else.
    """
    file = io.BytesIO(Path(path).read_bytes())
    try:
        magic, protocol = (_Unpickler(file).load() for _ in range(2))
        if (magic, protocol) != (MAGIC, 1001):
            raise ValueError(f"{path}: not a torch file of protocol 1001")
        system = _Unpickler(file).load()
        if not system.get("little_endian"):
            raise ValueError(f"{path}: written on a big-endian machine")
        tree, keys = (_Unpickler(file).load() for _ in range(2))
        storages = {}
        for key in keys:
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            storages[key] = np.frombuffer(file.read(4 * count), "<f4", count)
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: broken or not a torch weights file ({error})") from error
    arrays = {}
    for name, tensor in tree["model_state"].items():
        flat = storages[tensor.storage.key][tensor.offset :]
        view = np.lib.stride_tricks.as_strided(flat, tensor.size, [4 * s for s in tensor.stride], writeable=False)
        arrays[name] = np.ascontiguousarray(view)
    return arrays


def find_weights() -> Path:
    """`pretrained.pt` of the installed resemblyzer wheel, found without importing it. Raises FileNotFoundError."""
    spec = importlib.util.find_spec("resemblyzer")
    path = Path(spec.origin).parent / "pretrained.pt" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError("speaker similarity needs the weights in the resemblyzer wheel: pip install --no-deps resemblyzer==0.1.4")
    return path


def name(judge: str) -> str:
    """Name and version of the encoder and of the module `judge` that asks it, for fingerprints."""
    return f"GE2E resemblyzer {importlib.metadata.version('resemblyzer')}, JAX network, no VAD, ns2_jax {statistics.code(__name__, judge)}"


@functools.cache
def params() -> dict:
    """`{"layers": [{kernel, recurrent, bias} x 3], "projection": {kernel, bias}}` of the wheel's network."""
    state = read_torch(find_weights())
    layers = [{"kernel": state[f"lstm.weight_ih_l{i}"].T, "recurrent": state[f"lstm.weight_hh_l{i}"].T,
               "bias": state[f"lstm.bias_ih_l{i}"] + state[f"lstm.bias_hh_l{i}"]} for i in range(3)]
    return {"layers": layers, "projection": {"kernel": state["linear.weight"].T, "bias": state["linear.bias"]}}


def network(weights: dict, mels: jax.Array) -> jax.Array:
    """Pieces `[b, 160, 40]` -> unit vectors `[b, 256]`, none of whose entries is negative."""
    x = mels
    for layer in weights["layers"]:
        x = lstm(x, layer["kernel"], layer["recurrent"], layer["bias"])
    y = jax.nn.relu(x[:, -1] @ weights["projection"]["kernel"] + weights["projection"]["bias"])
    return y / jnp.linalg.norm(y, axis=-1, keepdims=True)


_jitted = jax.jit(network)


def mel(audio: np.ndarray) -> np.ndarray:
    """`audio [s]` at 16 kHz -> mel power `[1 + s // 160, 40]`, librosa's defaults as in the wheel (no logarithm)."""
    bands = librosa.feature.melspectrogram(y=audio, sr=RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS)
    return bands.astype(np.float32).T


def starts(samples: int) -> list[int]:
    """First frames of the pieces that cover `samples` samples (Resemblyzer's `compute_partial_slices`)."""
    frames = int(np.ceil((samples + 1) / HOP))
    step = int(np.round(RATE / PIECE_RATE / HOP))
    first = list(range(0, max(1, frames - PIECE + step + 1), step))
    coverage = (samples - first[-1] * HOP) / (PIECE * HOP)
    return first[:-1] if coverage < COVERAGE and len(first) > 1 else first


def embed(audio: np.ndarray) -> np.ndarray:
    """The voice of `audio [s]` (16 kHz, float32): unit vector `[256]`, the mean over overlapping 1.6-second pieces.

    Raises ValueError for audio without a signal.
    """
    audio = np.asarray(audio, np.float32)
    level = float(np.sqrt(np.square(audio, dtype=np.float64).mean())) if audio.size else 0.0
    if not np.isfinite(level) or level == 0.0:
        raise ValueError("a voice can't be measured on silent, empty or non-finite audio")
    audio = audio * np.float32(max(1.0, 10 ** (LEVEL_DBFS / 20) / level))
    first = starts(audio.size)
    end = (first[-1] + PIECE) * HOP
    if end >= audio.size:
        audio = np.pad(audio, (0, end - audio.size))
    bands = mel(audio)
    pieces = np.stack([bands[i : i + PIECE] for i in first])
    vectors = []
    for i in range(0, len(pieces), BATCH):
        part = pieces[i : i + BATCH]
        padded = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), 0)])
        vectors.append(np.asarray(_jitted(params(), padded))[: len(part)])
    mean = np.concatenate(vectors).mean(0)
    return mean / np.linalg.norm(mean)
