"""Checkpoints: the only file that knows Orbax.

A checkpoint `<workdir>/checkpoints/<step>/` has three items: `model` (step, ema, rest: all that evaluation and export
read), `train` (params, opt) and `data` (JSON: step, dataset fingerprint, seed, codec, what else decides the order). Trees are stored as plain nested
dicts, so that a reader needs no optimiser. Saves are asynchronous and appear only when complete. What was torn afterwards (a copy that
broke off, a bucket that lost a file) is passed over for the last whole one and renamed `<step>.torn`
(`<step>.torn2` and so on where that is taken). A disk, rights or memory that fail say nothing about a checkpoint: they end the run.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # Orbax's own path type, for gs:// too
from jax.experimental import multihost_utils

from ns2_jax.runtime import cluster, weights
from ns2_jax.runtime.optim import matches
from ns2_jax.runtime.state import flatten, nest

Tree = Any
FOLDER = "checkpoints"
MODEL, TRAIN = ("step", "ema", "rest"), ("params", "opt")
logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.WARNING or "orbax" not in record.pathname)


DISK = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded", errno.EROFS: "Read-only file system"}


class Mismatch(ValueError):
    """A checkpoint that does not fit; the message lists every path."""


class Torn(Exception):
    """A checkpoint that cannot be read, though it was complete once."""


UNREADABLE = (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError)  # a file is missing, or holds something else
STATUS = r"(NOT_FOUND|OUT_OF_RANGE|DATA_LOSS|FAILED_PRECONDITION): "  # how TensorStore says the same; a disk's errors are UNKNOWN and others


def lost(error: Exception) -> str:
    """What an error says is lost of the data it read; "" for an error that is not about the data."""
    cause = error.__cause__ or error  # Orbax raises its own from TensorStore's
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200] if isinstance(cause, UNREADABLE) or re.match(STATUS, str(cause)) else ""


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Every path where two flat trees of shapes differ: missing, extra, or of another shape or dtype."""
    lines = [f"missing {path} {_describe(wanted[path])}" for path in wanted if path not in found]
    lines += [f"extra {path} {_describe(found[path])}" for path in found if path not in wanted]
    for path in wanted:
        if path in found and _describe(found[path]) != _describe(wanted[path]):
            lines.append(f"{path} is {_describe(found[path])}, expected {_describe(wanted[path])}")
    return lines


def fewer(lines: list[str]) -> list[str]:
    """Without the averages and moments of params that are listed themselves; a last line says that they were left out."""
    about = lambda line: line.removeprefix("missing ").removeprefix("extra ").split(" ")[0]
    params = {path.removeprefix("params/") for path in map(about, lines) if path.startswith("params/")}

    def repeats(path: str) -> bool:
        parts = path.split("/")
        return parts[0] in ("ema", "opt") and any("/".join(parts[i:]) in params for i in range(1, len(parts)))

    kept = [line for line in lines if not repeats(about(line))]
    return kept + ([f"(and {len(lines) - len(kept)} averages and moments of these)"] if len(kept) < len(lines) else [])


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _plain(tree: Tree) -> Tree:
    """Any tree of arrays as nested dicts keyed by path parts."""
    return nest(flatten(tree))


def _like(plain: Tree, target: Tree) -> Tree:
    """Nested dicts back in the structure of `target`."""
    flat = flatten(plain)
    return jax.tree.unflatten(jax.tree.structure(target), [flat[path] for path in flatten(target)])


class Checkpoints:
    """The checkpoints of one workdir.

    `dataset` (fingerprint) and `seed` travel with the step: together they are the position in the data. So do the hash of the
    `codec` whose codes are read, and `order(step)`: what else decides the order of the data up to a step, config field -> JSON
    value. A restore under others is refused. `usual` is what a checkpoint had that was written before its field was.
    """

    def __init__(
        self, workdir: str | os.PathLike, keep: int = 3, dataset: str = "", seed: int = 0, codec: str = "",
        order: Callable[[int], Mapping[str, Any]] = lambda step: {}, usual: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        workdir = os.fspath(workdir)
        self.root = workdir if "://" in workdir else os.path.abspath(workdir)
        self.dataset, self.seed, self.codec, self.order, self.usual = dataset, seed, codec, order, dict(usual or {})
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(os.path.join(self.root, FOLDER), options=options, item_names=("model", "train", "data"))

    def _explained(self, action: Callable[[], Any]) -> Any:
        """`action()`; a disk that is full or must not be written is said in words. Raises OSError with them."""
        try:
            return action()
        except Exception as error:
            text = f"{error} {error.__cause__ or ''}"
            code = next((number for number, words in DISK.items() if getattr(error, "errno", None) == number or words in text), None)
            if code is None:
                raise
            whole = steps(self.root)
            kept = f"the last whole one is {whole[-1]}" if whole else "there is no whole one yet"
            raise OSError(code, f"{DISK[code]} while saving a checkpoint; {kept}, and nothing of it is lost. Make room and start the same command "
                          "again", os.path.join(self.root, FOLDER)) from error

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self.manager.latest_step()

    def save(self, state: dict[str, Tree]) -> bool:
        """Starts saving `state` under its own step; returns at once, with the arrays copied. True when it will be there."""
        step = int(state["step"])
        if self.latest() == step:
            return False
        items = {"model": _plain({k: state[k] for k in MODEL}), "train": _plain({k: state[k] for k in TRAIN})}
        position = {"step": step, "dataset": self.dataset, "seed": self.seed, "codec": self.codec, "order": self.order(step)}
        return self._explained(lambda: bool(self.manager.save(step, force=True, args=ocp.args.Composite(
            model=ocp.args.StandardSave(items["model"]), train=ocp.args.StandardSave(items["train"]), data=ocp.args.JsonSave(position)))))

    def restore(self, target: dict[str, Tree], step: int | None = None, say: Callable[[str], None] = lambda line: None) -> dict[str, Tree]:
        """The state at `step` (default the latest that is whole), straight into the shards of `target` (ShapeDtypeStructs with shardings).
        A torn one is told to `say`, renamed, and the one before it taken.

        Raises FileNotFoundError when there is none, Mismatch when the tree differs, ValueError when it was trained on
        another data set, seed, codec or in another order, or when none can be read (then none is renamed), and what a disk raises.
        """
        torn: dict[int, str] = {}
        for at in sorted(self.manager.all_steps() if step is None else [step], reverse=True):
            try:
                state = self._restore(target, at)
            except Torn as problem:
                torn[at] = str(problem)
                continue
            for bad, why in torn.items():
                kept = self._set_aside(bad)
                say(f"checkpoint {bad} is torn and passed over for the last whole one, {at}; it is kept as {FOLDER}/{kept}: {why}")
            return state
        if torn:
            raise ValueError(f"{self.root}/{FOLDER}: no checkpoint can be read, and nothing was changed:"
                             + "".join(f"\n  - {at}: {why}" for at, why in torn.items()))
        raise FileNotFoundError(f"{self.root}/{FOLDER} has no complete checkpoint")

    def _set_aside(self, step: int) -> str:
        """Renames a torn checkpoint, once for all hosts; returns its new name."""
        names = (f"{step}.torn{number}" for number in itertools.chain([""], itertools.count(2)))
        kept = next(name for name in names if not os.path.exists(os.path.join(self.root, FOLDER, name)))  # no host renames before all have looked
        multihost_utils.sync_global_devices(f"torn {step}")
        if jax.process_index() == 0:
            os.rename(os.path.join(self.root, FOLDER, str(step)), os.path.join(self.root, FOLDER, kept))
        multihost_utils.sync_global_devices(f"set aside {step}")
        self.manager.reload()
        return kept

    def _read(self, action: Callable[[], Any]) -> Any:
        """`action()` on every host; data that is lost for one of them raises Torn on all, and any other error is raised, as by `together`.
        In `action` nobody may wait for the others, as Orbax's manager and checkpointers do: who cannot read would not come."""
        def attempt() -> tuple[Any, str]:
            try:
                return action(), ""
            except Exception as error:
                if not lost(error):
                    raise
                return None, lost(error)

        out, problem = cluster.together(attempt)
        if problems := [text for text in cluster.gather([problem]) if text]:
            raise Torn(problems[0])
        return out

    def _restore(self, target: dict[str, Tree], step: int) -> dict[str, Tree]:
        folder = epath.Path(self.root) / FOLDER / str(step)
        position = self._read(lambda: ocp.JsonCheckpointHandler().restore(folder / "data"))
        if position["dataset"] != self.dataset:
            raise ValueError(
                f"{self.root} was trained on data set {position['dataset']!r}, config.data.path is {self.dataset!r}: the step would "
                "point at other data. Use another --workdir, with --config.init_from='{\"params\": \"THIS_WORKDIR\"}' to start from its weights")
        if position["seed"] != self.seed:
            raise ValueError(
                f"{self.root} was trained with seed {position['seed']}, config.seed is {self.seed}; set it back, or use another --workdir")
        if position["codec"] != self.codec:
            raise ValueError(
                f"{self.root} was trained on codes of codec {position['codec']}, the codes are now of {self.codec}: its own codec would not "
                "understand them. Put the old codec's export back, or use another --workdir")
        now = self.order(step)
        for name, before in {**self.usual, **position.get("order", {})}.items():
            if now.get(name, before) != before:
                raise ValueError(
                    f"{self.root} was trained with {name}={before}, it is now {now[name]}: step {step} would point at other data. Set it "
                    "back, or use another --workdir, with --config.init_from='{\"params\": \"THIS_WORKDIR\"}' to start from its weights")
        wanted = {"model": _plain({k: target[k] for k in MODEL}), "train": _plain({k: target[k] for k in TRAIN})}
        stored = self._read(lambda: {**shapes(self.root, step, "model"), **shapes(self.root, step, "train")})
        lines = fewer(differences(stored, {**flatten(wanted["model"]), **flatten(wanted["train"])}))
        if lines:
            raise Mismatch(f"checkpoint {step} of {self.root} does not fit this config:" + "".join("\n  - " + x for x in lines))
        items = self._read(lambda: {
            name: ocp.StandardCheckpointHandler().restore(folder / name, args=ocp.args.StandardRestore(tree)) for name, tree in wanted.items()})
        flat = {**flatten(items["model"]), **flatten(items["train"])}
        return _like(nest(flat), target)

    def reached_preemption(self, step: int) -> bool:
        """Whether all hosts agreed to stop at this step (False outside a cluster, where SIGTERM is the process's own)."""
        return jax.process_count() > 1 and self.manager.reached_preemption(step)

    def wait(self) -> None:
        """Until every save is complete on disk. Raises OSError when one could not be."""
        self._explained(self.manager.wait_until_finished)

    def close(self) -> None:
        self.wait()
        self.manager.close()


def shapes(root: str, step: int, item: str) -> dict[str, Any]:
    """`{path: array with .shape and .dtype}` of one item, without reading the arrays."""
    return flatten(ocp.StandardCheckpointHandler().metadata(epath.Path(root) / FOLDER / str(step) / item).tree)


def steps(workdir: str) -> list[int]:
    """The complete checkpoints of a run, oldest first."""
    folder = os.path.join(workdir, FOLDER)
    if not os.path.isdir(folder):
        return []
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


def read_config(path: str) -> dict[str, Any]:
    """`config.json` of a run or an export. Raises FileNotFoundError naming what was expected, ValueError when it is of something else."""
    target = os.path.join(path, "config.json")
    if not os.path.exists(target):
        reason = "has no config.json" if os.path.isdir(path) else "is a file" if os.path.exists(path) else "does not exist"
        raise FileNotFoundError(f"{path} {reason}; expected a run (--workdir of train) or an export (--out of export)")
    with open(target, encoding="utf8") as f:
        try:
            config = json.load(f)
        except ValueError as error:
            raise ValueError(f"{target} is not JSON: {error}") from error
    if "system" not in config:
        raise ValueError(f"{target} names no system; expected that of a run (--workdir of train) or an export (--out of export)")
    return config


def read_model(path: str, step: int | None = None) -> tuple[dict[str, Tree], dict[str, Any]]:
    """({"params", "rest"} in numpy, resolved config) from a run (latest checkpoint, or `step`) or an export.

    The params are the average (EMA). An export that names its codec (or vocoder) by hash and relative path gets it under
    `rest/codec` (`rest/vocoder`). Raises FileNotFoundError without a checkpoint, ValueError when the codec is another one, or an export's files
    are not those of its SHA256SUMS.
    """
    path = os.fspath(path)
    summed = weights.check_sums(path)
    config = read_config(path)
    if os.path.exists(os.path.join(path, weights.FILE)):
        if "weights" in config and (lost := sorted({weights.FILE, "config.json"} - summed)):  # written by ns2_jax.export, which writes sums
            reason = f"{weights.SUMS} does not name {lost[0]}" if summed else f"{weights.SUMS} is missing"
            raise ValueError(f"{path} is damaged: {reason}; copy or export it again")
        tree = {"params": {}, "rest": {}, **weights.read_weights(path)}
        codec = config.get("codec")
        at = codec.get("at", "codec") if isinstance(codec, Mapping) else "codec"
        if isinstance(codec, Mapping) and codec.get("path") and at not in tree["rest"]:
            folder = os.path.realpath(os.path.join(path, codec["path"]))  # from where `path` really is, if it is a link
            if not os.path.exists(os.path.join(folder, weights.FILE)):
                raise FileNotFoundError(f"{path} needs codec {codec['hash']}, and there is no export at {folder}; put that codec's there")
            if weights.weights_hash(folder) != codec["hash"]:
                found = weights.weights_hash(folder)
                raise ValueError(f"{path} needs codec {codec['hash']}, {folder}/{weights.FILE} is {found}; put the right export there")
            weights.check_sums(folder)
            tree["rest"][at] = {"params": {}, "rest": {}, **weights.read_weights(folder)}
        return tree, config
    found = steps(path)
    if not found:
        raise FileNotFoundError(f"{path} has no complete checkpoint yet (nothing in {FOLDER}/); let train save one first")
    step = found[-1] if step is None else step
    if step not in found:
        raise FileNotFoundError(f"{path} has no checkpoint {step}; there are {found}")
    folder = os.path.join(os.path.abspath(path), FOLDER, str(step), "model")
    with ocp.PyTreeCheckpointer() as reader:
        like = nest(shapes(os.path.abspath(path), step, "model"))
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        model = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=numpy))
    return {"params": model.get("ema", {}), "rest": model.get("rest", {})}, config


def fill(state: dict[str, Tree], sources: Mapping[str, str], fresh: Sequence[str] = (), frozen: Sequence[str] = ()) -> dict[str, Tree]:
    """`config.init_from`: leaves of `state` replaced by those of runs or exports, keeping shards and dtypes.

    `{"rest/codec": DIR}` puts DIR's `params/**` and `rest/**` below `rest/codec`; `{"params": DIR}` or
    `{"params/encoder": DIR}` takes the leaves of the same path. Every leaf below a key must be found with its shape, but for those whose
    paths match one of the regexes `fresh`, which stay as they are where DIR has none, unless they are `frozen` and would stay random; what DIR has
    besides is ignored. The average starts from the new params. Raises Mismatch listing every path.
    """
    flat = flatten({"params": state["params"], "rest": state["rest"]})
    for prefix, path in sources.items():
        inside = [name for name in flat if name == prefix or name.startswith(prefix + "/")]
        if not inside:
            parts = sorted({"/".join(name.split("/")[:2]) for name in flat})
            raise ValueError(f"config.init_from: {prefix!r} names no part of the state; there are {parts}")
        tree, _ = read_model(path)
        source, lines = flatten(tree), []
        for name in inside:
            below = name[len(prefix) + 1 :]
            found = source.get(below if below.startswith(("params/", "rest/")) else name)
            if found is None and matches(fresh, name) and not matches(frozen, name):
                continue
            if found is None or tuple(found.shape) != tuple(flat[name].shape):
                lines.append(f"{name} {_describe(flat[name])} " + ("not found" if found is None else f"found as {list(found.shape)}"))
                continue
            flat[name] = jax.device_put(np.asarray(found, flat[name].dtype), flat[name].sharding)
        if lines:
            raise Mismatch(f"config.init_from[{prefix!r}]={path} does not fit:" + "".join("\n  - " + x for x in lines))
    both = nest(flat)
    params = _like(both.get("params", {}), state["params"])
    return {**state, "params": params, "rest": _like(both.get("rest", {}), state["rest"]), "ema": jax.tree.map(jnp.copy, params)}
