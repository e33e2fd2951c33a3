"""Trains a config once for every setting of its `get_hyper()`, with any launcher.

    python -m launch.sweep --config=configs/naturalspeech2.py:small --workdir=runs/sweep --dry_run
    python -m launch.sweep --config=configs/codec.py:small --workdir=runs/sweep -- --config.data.path=data/default
    python -m launch.sweep --config=configs/codec.py:base --workdir=/mnt/shared/sweep --launcher="sbatch launch/slurm.sbatch" -- ...

`get_hyper()` of a config file yields `{"optim.peak": 1e-4}`, fields of the config and their values. The settings run one after the other,
or all at once where the launcher only submits; each in a folder named by its fields. Run again, it passes over those whose
newest checkpoint is of the last step, and the others continue (one that still runs refuses a second trainer). Ends with 1 when one failed,
after trying them all.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import pathlib
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from ns2_jax.runtime import checkpoints, cluster

FLAGS = flags.FLAGS
TAKES_WORDS = True  # what follows -- is every training's
AGAIN = (cluster.PREEMPTED, cluster.LOST, 134)
TRIES = 20


def define_flags() -> None:
    flags.DEFINE_string("config", None, "FILE[:argument]; the file has get_hyper().")
    flags.DEFINE_string("workdir", None, "Folder that holds a folder for each setting.")
    flags.DEFINE_string("launcher", "python -m ns2_jax.train", "What starts a training with its flags.")
    flags.DEFINE_bool("dry_run", False, "Print the commands and run none.")


def product(**choices: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every combination: `product(**{"optim.peak": (1e-4, 3e-4), "seed": (0, 1)})` yields four settings."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values))


def hypers(config: str) -> list[dict[str, Any]]:
    """What the file's get_hyper() yields. Raises ValueError without one or with the same setting twice."""
    path = pathlib.Path(config.partition(":")[0])
    if not path.exists():
        raise FileNotFoundError(f"--config={path}: there is no such file; run from the repository's root")
    spec = importlib.util.spec_from_file_location("swept", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_hyper"):
        raise ValueError(f"{path} has no get_hyper(); write one that yields settings, as in {{'optim.peak': 1e-4}}")
    found = [dict(setting) for setting in module.get_hyper()]
    twice = [setting for i, setting in enumerate(found) if setting in found[:i]]
    if not found or twice:
        raise ValueError(f"{path}: get_hyper() yields {'nothing' if not found else f'{twice[0]} twice'}")
    return found


def name(setting: Mapping[str, Any]) -> str:
    """A folder's name that says the setting: `optim.peak=0.0001,seed=1`; with a hash where characters had to go."""
    text = ",".join(f"{key}={value}" for key, value in sorted(setting.items()))
    plain = re.sub(r"[^\w.,=+-]", "_", text)[:120] or "as_is"
    return plain if plain in (text, "as_is") else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def command(setting: Mapping[str, Any], config: str, workdir: str, launcher: str, words: Sequence[str]) -> list[str]:
    """The training of one setting."""
    fields = [f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in setting.items()]
    return [*shlex.split(launcher), f"--config={config}", *words, *fields, f"--workdir={pathlib.Path(workdir) / name(setting)}"]


def done(workdir: pathlib.Path) -> bool:
    """Whether the newest checkpoint of a run is of the last step that its config.json asks for: a launcher's code may only say that it submitted."""
    config, saved = workdir / "config.json", checkpoints.steps(str(workdir))
    return config.exists() and bool(saved) and saved[-1] >= json.loads(config.read_text())["train"]["steps"]


def main(argv: list[str]) -> int:
    for flag in ("config", "workdir"):
        if not FLAGS[flag].value:
            raise ValueError(f"--{flag} is missing (see --help)")
    failed = []
    for setting in hypers(FLAGS.config):
        words, folder = command(setting, FLAGS.config, FLAGS.workdir, FLAGS.launcher, argv[1:]), pathlib.Path(FLAGS.workdir) / name(setting)
        print(shlex.join(words), flush=True)
        if FLAGS.dry_run:
            continue
        if done(folder):
            print(f"  {folder} is done: passed over")
            continue
        code = next((code for _ in range(TRIES) if (code := subprocess.run(words, check=False).returncode) not in AGAIN), cluster.FAILED)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.json").write_text(json.dumps({"setting": setting, "code": code}) + "\n")
        failed += [folder] if code else []
        if not code and not done(folder):
            print(f"  {folder} is submitted; it is done when it has the checkpoint of the last step")
    if failed:
        print("failed: " + ", ".join(map(str, failed)))
    return cluster.FAILED if failed else cluster.DONE


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
