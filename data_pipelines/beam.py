"""Apache Beam over the functions of the stages: the unit of work is the number of a shard, and its result is files.

Beam may run a bundle twice; a shard renames the same bytes twice. Nothing else travels through the pipeline, so any runner will do
that reaches the corpus and the data set under the same path on every worker (a shared disk, a mounted bucket).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

_ONE = threading.Lock()  # the recogniser and espeak-ng keep state in their process, which a worker's threads would share


def _call(work: Callable[[int], Any], shard: int) -> None:
    with _ONE:
        work(shard)


def run_shards(work: Callable[[int], Any], n: int, options: Sequence[str], description: str) -> None:
    """Has called `work(0) ... work(n - 1)` when it returns. `options` are Beam's (`--runner=FlinkRunner`, `--project=...`).

    Raises ImportError without Beam, RuntimeError when the pipeline does not end well, and what its runner raises for a shard that fails.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ImportError("--runner=beam needs Apache Beam: pip install -e '.[beam]'") from error
    pipeline = apache_beam.Pipeline(options=PipelineOptions(list(options)))
    numbers = pipeline | "shards" >> apache_beam.Create(range(n)) | "spread" >> apache_beam.Reshuffle()
    numbers | description >> apache_beam.Map(functools.partial(_call, work))
    state = pipeline.run().wait_until_finish()
    if str(state) != "DONE":
        raise RuntimeError(f"the pipeline of {description} ended as {state}; run the same command again to go on")
