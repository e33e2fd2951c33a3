"""Plants a fault into a real training, to see what the doctor says of it.

    python tests/faults.py shuffled_phones 500 --config=configs/naturalspeech2.py:small --config.data.path=... --workdir=DIR

    python tests/faults.py keep RUN DATA tests/doctor/SYSTEM-FAULT.json         what the doctor judges, for the tests

The words after the fault are those of ns2_jax.train. At the given step the run is stopped and saved, as by SIGTERM; `nan` plants its
number there instead.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from ns2_jax import doctor, train  # noqa: E402
from ns2_jax.layers import quantize  # noqa: E402
from ns2_jax.runtime import checkpoints, cluster  # noqa: E402

Batch = dict[str, np.ndarray]


def shuffled_phones(batch: Batch, step: int, stop: int) -> Batch:
    """The phones of every row in another order: what a wrong alignment gives."""
    return doctor.shuffled(batch, jax.random.key(step))


def zero_prompt(batch: Batch, step: int, stop: int) -> Batch:
    return {name: x if name == "prompt_frames" or not name.startswith("prompt_") else 0 * x for name, x in batch.items()}


def nan(batch: Batch, step: int, stop: int) -> Batch:
    """In the audio, or where there is none in a row's weight (XLA masks an F0 that is not a number away, as it masks silence)."""
    if step == stop:
        batch["audio" if "audio" in batch else "weight"][0] = np.nan
    return batch


def learning_rate_x30(config: Any) -> None:
    for optim in (config.optim, *config.optim.by_key.values()):
        optim.peak = 30 * optim.peak


def frozen_codebook(config: Any) -> None:
    config.model.codebook_decay = 1.0


def still_codebook(config: Any) -> None:
    """Codes are counted, but their vectors never move: quieter than a frozen codebook."""
    update = quantize.rvq_update
    quantize.rvq_update = lambda rng, rest, stats, *numbers: {
        **update(rng, rest, stats, *numbers), "codebooks": rest["codebooks"], "sums": rest["sums"]}


IN_BATCHES: dict[str, Callable[[Batch, int, int], Batch]] = {"shuffled_phones": shuffled_phones, "zero_prompt": zero_prompt, "nan": nan}
IN_CONFIG: dict[str, Callable[[Any], None]] = {
    "learning_rate_x30": learning_rate_x30, "frozen_codebook": frozen_codebook, "still_codebook": still_codebook,
    "healthy": lambda config: None}


def plant(fault: str, stop: int) -> Callable[[list[str]], int]:
    """`train.main` with the fault in it. Raises ValueError for one that does not exist."""
    if fault not in {**IN_BATCHES, **IN_CONFIG}:
        raise ValueError(f"fault {fault!r} does not exist; there are {sorted({**IN_BATCHES, **IN_CONFIG})}")
    feed, main = train.batches, train.main
    change = IN_BATCHES.get(fault, lambda batch, step, stop: batch)

    def batches(config: Any, program: Any, start: int) -> Iterator[Batch]:
        for step, batch in enumerate(feed(config, program, start), start):
            if step == stop - 1 and fault != "nan":
                os.kill(os.getpid(), signal.SIGTERM)
            yield change(batch, step, stop)

    def planted(argv: list[str]) -> int:
        config = train.FLAGS.config
        with config.unlocked():
            IN_CONFIG.get(fault, lambda config: None)(config)
        train.batches = batches
        return main(argv)

    return planted


def keep(run: str, data: str) -> dict[str, Any]:
    """What the doctor judges of a run, use of text and prompt measured: one file of tests/doctor."""
    config, saved = checkpoints.read_config(run), checkpoints.steps(run)
    return {
        "config": config, "dataset": doctor.read_beside(run, "run.json")["dataset"],
        "halted": doctor.read_beside(run, "halted.json"),
        "used": [saved[-1], doctor.measure_use(run, config, saved[-1], data)] if saved else None,
        "lines": [{name: value for name, value in line.items() if name != "time"} for line in doctor.read_log(run)]}


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        run, data, out = sys.argv[2:]
        Path(out).write_text(json.dumps(keep(run, data)) + "\n")
    else:
        name, at, *rest = sys.argv[1:]
        sys.argv = ["train.py", *rest]
        train.define_flags()
        cluster.run(plant(name, int(at)))
