"""Makes a data set of a corpus, in stages: `python -m data_pipelines.run --config=configs/data/<corpus>.py --stages=ingest,f0,index`.

| stage | makes | of |
|---|---|---|
| `ingest` | groups `meta`, `audio`: what can be used, the rest in `rejects.jsonl` with its reason | the corpus |
| `normalise` | group `text`: what is said | meta |
| `phonemise` | group `phones`: its phones, as the front end says them at synthesis | meta |
| `tokenizer` | `tokenizer/<kind>-<size>.model`: SentencePiece units; group `units-<hash>`: the texts in them | text |
| `align` | group `align`: phones as spoken, and where they end (`config.aligner`) | meta, audio |
| `f0` | group `f0`, and `index/f0.json`: mean and spread of every speaker | audio |
| `encode` | group `codes-<hash>`: a codec's codes | audio |
| `semantic` | group `semantic-<hash>`: what is said, as tokens (`config.semantic`) | audio |
| `quality` | group `quality` and the columns that a training can cut by; duplicates are flagged | all groups |
| `index` | lost side indexes, who speaks where, `rejects.jsonl`, `manifest.json`; the counts must balance | all groups |
| `verify` | `verify/`: every checksum and invariant, and exit code 2 when one does not hold | all groups |
| `stats` | `DATASHEET.md`, `stats.json`, `plots/` | all groups |

A stage is a pure function of a shard; a shard that is finished, whole and made with the same settings from the same input is left alone.
So the same command goes on after an interruption, and a stage with a new lexicon or codec remakes its own group and no other. Where
`verify` has named a damaged file, the same command makes its shard again.

`--runner=local` runs shards in `--workers` processes (f0 and encode in this one, because the accelerator belongs to one).
`--runner=beam` maps the same functions with Apache Beam (extra `beam`); what follows `--` are its pipeline options, e.g.
`-- --runner=FlinkRunner --flink_master=HOST:8081`; without any, Beam's own runner uses `--workers` processes here. The corpus and the
data set must be at the same path on all machines. See launch/beam.sh.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags, logging

from data_pipelines import corpora, ingest, plans, shards, transcripts, verify
from ns2_jax.data import records, speakers
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import phones

STAGES = ("ingest", "normalise", "phonemise", "tokenizer", "align", "f0", "encode", "semantic", "quality", "index", "verify", "stats")
RUNNERS = ("local", "beam")
TAKES_WORDS = True  # what follows `--` is the runner's
FIXED = ("corpus", "root", "layout", "rate", "min_seconds", "max_seconds", "level", "transcribed", "split_by", "valid", "test", "per_shard",
         "trim", "split_seconds")  # fmt: skip

Work = Callable[[int], Any]
Runner = Callable[[Work, int, str, bool], None]
"""`runner(work, n, description, device)` has called `work(0) ... work(n - 1)`; `device` says that the work wants the accelerator."""


def local(workers: int) -> Runner:
    """A pool of `workers` processes; work for an accelerator stays in this one."""
    def run(work: Work, n: int, description: str, device: bool) -> None:
        shards.run_shards(work, n, 0 if device else workers, description)

    return run


def on_beam(options: Sequence[str]) -> Runner:
    """Apache Beam with these pipeline options. Raises ImportError without it."""
    from data_pipelines import beam

    return lambda work, n, description, device: beam.run_shards(work, n, options, description)


@dataclasses.dataclass
class Job:
    """A config on its way: `made` is the plan, `root` the data set."""

    config: Mapping[str, Any]
    runner: Runner
    made: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def root(self) -> str:
        return str(self.config["out"])

    def plan(self) -> None:
        """What the data set is made of: listed by `ingest`, known afterwards. Raises ValueError for a plan of something else."""
        config, path = self.config, pathlib.Path(self.root, "plan.json")
        if not config["root"] and path.exists():
            self.made = plans.read_plan(path)
            return
        if config["split_seconds"] and config["transcribed"] and config["corpus"] not in corpora.TIMED:
            raise ValueError(f"config.split_seconds={config['split_seconds']:g}: the texts of {config['corpus']!r} do not say when their words are "
                             "spoken, and a text cannot be split without; leave it at 0, or take the recordings alone with transcribed=False")
        about = ingest.settled({"command": "run", **{name: config[name] for name in FIXED}})
        split = functools.partial(plans.split_of, by=config["split_by"], valid=config["valid"], test=config["test"])
        found = corpora.find(config["corpus"], config["root"], **config["layout"])
        self.made = plans.plan(self.root, found, about, split, config["per_shard"])

    def splits(self) -> dict[str, int]:
        """Split -> shards, of the plan; of a data set that another command made, from its manifest."""
        about = self.made["splits"] if "splits" in self.made else Dataset.open(self.root).manifest["splits"]
        return {split: numbers["shards"] for split, numbers in about.items()}

    def each(self, function: Callable[..., Any], settings: Any, description: str, device: bool = False) -> None:
        """`function(root, settings, split, shard, total)` for every shard."""
        splits = self.splits()
        self.runner(functools.partial(ingest.task, function, self.root, settings, splits), sum(splits.values()), description, device)


def _ingest(job: Job) -> None:
    config = job.config
    if config["transcribed"]:
        transcripts.check_languages(job.made["languages"])
    names = ("rate", "min_seconds", "max_seconds", "level", "transcribed", "trim", "split_seconds")
    kept = {name: job.made.get(name, 0.0) for name in names}  # an old plan does not name those that it does without
    if changed := [name for name in names if kept[name] != config[name]]:
        raise ValueError(f"config.{changed[0]}={config[changed[0]]}, but {job.root} was begun with {kept[changed[0]]}; set it back, or choose "
                         "another config.out")
    job.each(ingest.ingest_shard, ingest.Settings(align="none", lexicon=config["lexicon"], **kept), "ingest")
    counts = ingest.balance(job.root, job.made)
    if "pieces" in counts:
        logging.info("%d long recordings were split into %d pieces", counts.pop("split"), counts.pop("pieces"))
    total = sum(counts.values()) - counts["in"]
    logging.info("%d in, %d out; rejects: %s", counts.pop("in"), counts.pop("out"), counts or "none")
    ingest.check_rejects(job.root, total, config["max_rejects"])


def _normalise(job: Job) -> None:
    job.each(transcripts.normalise_shard, job.config["lexicon"], "normalise")
    shards.write_manifest(job.root, needed=["text"])


def _phonemise(job: Job) -> None:
    job.each(transcripts.phonemise_shard, job.config["lexicon"], "phonemise")
    shards.write_manifest(job.root, needed=["phones"])


def _tokenizer(job: Job) -> None:
    train = Dataset.open(job.root).manifest["splits"].get("train", {"shards": 0, "records": 0})
    path = transcripts.train_tokenizer(job.root, train["shards"], train["records"], **job.config["tokenizer"])
    logging.info("wrote %s", path)
    job.each(transcripts.units_shard, str(path), "units")
    shards.write_manifest(job.root, needed=[transcripts.units_group(path)])


def _align(job: Job) -> None:
    """By `config.aligner`: "pocketsphinx"; a folder of TextGrids; the run or export of an aligner; "" for provisional times."""
    how, lexicon = job.config["aligner"], job.config["lexicon"]
    from data_pipelines import learned_align

    dataset = Dataset.open(job.root)
    learned_align.keep_times(dataset)
    if how == "pocketsphinx":
        from data_pipelines import align

        if strange := [lang for lang in job.made.get("languages", ()) if lang.split("-")[0] != "en"]:
            raise ValueError(f"stage align: pocketsphinx has an English model only, the corpus has {strange}; train an aligner on it "
                             "(data_pipelines.learned_align says how), or give a folder of TextGrids")
        job.each(align.align_shard, (dataset.sample_rate, lexicon), "align")
    elif how and any(pathlib.Path(how).rglob("*.TextGrid")):
        from data_pipelines import textgrid

        job.each(textgrid.align_shard, (os.path.abspath(how), textgrid.listing(how), dataset.sample_rate), "align")
    else:
        where = os.path.abspath(how) if how else ""
        learned_align.check(dataset, learned_align.load(where) if where else None)
        job.each(learned_align.align_shard, (where, lexicon), "align", device=bool(where))
    manifest = shards.write_manifest(job.root, phones=phones.inventory_hash(), needed=["align"])
    rejects, total = manifest["groups"]["align"]["rejects"], sum(dataset.records(split) for split in dataset.splits)
    logging.info("not aligned: %s", rejects or "none")
    for reason, count in rejects.items():
        if ingest.too_many(count, total, job.config["max_rejects"]):
            raise ValueError(f"stage align: {count} of {total} utterances ({count / total:.0%}) got no times ({reason}), more than "
                             f"config.max_rejects={job.config['max_rejects']:g} allows; give another config.aligner (one of ours: train it longer) or "
                             "config.lexicon, or allow more to go on with the rest")


def _f0(job: Job) -> None:
    from data_pipelines import f0_statistics, features

    job.each(features.f0_shard, job.config["batch_seconds"], "f0", device=True)
    job.each(f0_statistics.sum_shard, None, "f0 of the speakers")
    f0_statistics.write_speakers(job.root, job.splits())
    shards.write_manifest(job.root, needed=["f0"])


def _encode(job: Job) -> None:
    from data_pipelines import encode

    if not job.config["codec"]:
        raise ValueError("config.codec is empty: give the run or export of a codec, e.g. --config.codec=results/codec/model")
    codec = os.path.abspath(job.config["codec"])
    group = f"codes-{encode.load(codec).hash}"
    job.each(encode.encode_shard, (codec, job.config["batch_seconds"], job.config["pack"]), "encode", device=True)
    shards.write_manifest(job.root, needed=[group])


def _semantic(job: Job) -> None:
    from data_pipelines import tokens

    if not job.config["semantic"]:
        raise ValueError("config.semantic is empty: give the run or export of a tokenizer (configs/semantic.py:SIZE,kmeans)")
    tokenizer = os.path.abspath(job.config["semantic"])
    group = f"semantic-{tokens.load(tokenizer).hash}"
    job.each(tokens.tokens_shard, (tokenizer, job.config["batch_seconds"]), "semantic", device=True)
    shards.write_manifest(job.root, needed=[group])


def _quality(job: Job) -> None:
    from data_pipelines import quality

    job.each(quality.quality_shard, None, "quality")
    shards.write_manifest(job.root, needed=["quality"])
    counts = quality.collect(job.root, lambda work, n, description: job.runner(work, n, description, False))
    logging.info("duplicates: %d exact, %d near", counts["exact"], counts["near"])


def _index(job: Job) -> None:
    """Indexes that were lost are rebuilt from their shards, one that belongs to another shard is refused."""
    for marker in sorted(pathlib.Path(job.root).glob("*/*-of-*.json")):
        group = marker.parent.name
        if not records.index_path(marker.with_suffix(".tfrecord")).exists():
            records.ShardReader(marker.with_suffix(".tfrecord"), group).index  # noqa: B018  reading it rebuilds it
    if "splits" in job.made:
        ingest.balance(job.root, job.made)
    else:
        shards.write_manifest(job.root)
    dataset = Dataset.open(job.root)
    for split in dataset.splits:
        speakers.load(dataset, split)


def _verify(job: Job) -> None:
    job.each(verify.verify_shard, verify.groups(job.root), "verify")
    checked = verify.collect(job.root)
    logging.info("verified: %s", ", ".join(f"{group} {count}" for group, count in sorted(checked.items())))


def _stats(job: Job) -> None:
    from data_pipelines import stats

    stats.write(job.root, job.config["license"])


def run(config: Mapping[str, Any], stages: Sequence[str], runner: Runner) -> None:
    """Runs `stages` in the order of STAGES. Raises ValueError for what is wrong with them, and what the stages raise."""
    if wrong := [name for name in stages if name not in STAGES]:
        raise ValueError(f"--stages has {wrong[0]!r}; there are {','.join(STAGES)}")
    if not stages:
        raise ValueError(f"--stages is empty; there are {','.join(STAGES)}")
    if not config["out"]:
        raise ValueError("config.out is empty: name the data set to make, e.g. --config.out=data/ljspeech")
    for name, least in (("per_shard", 1), ("rate", 8000), ("trim", 0), ("split_seconds", 0), ("max_rejects", 0), ("batch_seconds", 1)):
        if not least <= config[name] < math.inf:
            raise ValueError(f"config.{name}={config[name]}; expected at least {least}, and finite")
    ingest.check_seconds(config["min_seconds"], config["max_seconds"])
    if not (config["valid"] >= 0 and config["test"] >= 0 and config["valid"] + config["test"] <= 1000):
        raise ValueError(f"config.valid={config['valid']} and config.test={config['test']}; they are thousandths, at most 1000 together")
    if config["split_by"] not in ("speaker", "utterance", "corpus"):
        raise ValueError(f"config.split_by={config['split_by']!r}; expected speaker, utterance or corpus")
    if "://" in config["out"]:
        raise ValueError(f"config.out={config['out']}: mount the bucket and give the mounted folder; shards are renamed into place")
    whole = {name: os.path.abspath(config[name]) for name in ("root", "out", "lexicon") if config[name] and "://" not in config[name]}
    job = Job({**config, **whole}, runner)  # the lists of the plan are read in other folders too: by the next command, and by Beam's workers
    if "ingest" in stages or os.path.exists(os.path.join(job.root, "plan.json")):
        job.plan()
    for name in STAGES:
        if name in stages:
            globals()[f"_{name}"](job)


def main(argv: list[str]) -> None:
    from ns2_jax.runtime import cluster

    given = flags.FLAGS
    if given.config is None:
        raise ValueError("--config is missing; for example --config=configs/data/ljspeech.py (see --help)")
    if argv[1:] and given.runner != "beam":
        raise ValueError(f"{argv[1]!r} is no flag; options behind -- are for --runner=beam")
    cluster.start(lambda line: None)
    own = [f"--direct_num_workers={given.workers}", "--direct_running_mode=multi_processing"] if given.workers > 1 else []
    run(given.config.to_dict(), given.stages, on_beam(argv[1:] or own) if given.runner == "beam" else local(given.workers))


if __name__ == "__main__":
    from ml_collections import config_flags

    from ns2_jax.runtime import cluster  # here, because it imports jax and every worker imports this module

    config_flags.DEFINE_config_file("config", None, "FILE[:argument], as in configs/data/mls.py:german.", lock_config=True)
    flags.DEFINE_list("stages", [], f"what to do, of {','.join(STAGES)}")
    flags.DEFINE_enum("runner", "local", RUNNERS, "who runs the shards")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes; 0 is this one", lower_bound=0)
    cluster.run(main)
