"""Compiling for machines that are not here: TPU slices through libtpu, and CPU meshes; the HLO reader by hand; what a plan chooses and why.

The goldens in tests/golden/precompile are memory and collectives of a chip for every config's base on sixteen v5e chips. When a change of
them is meant, refresh them with `UPDATE_GOLDEN=1 python -m pytest tests/test_precompile.py -k NAME` and let the diff be read with the change.
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from configs import aligner as aligner_config
from configs import naturalspeech2 as ns2_config
from ns2_jax.precompile import __main__ as command
from ns2_jax.precompile import chips, fit, hlo, plan
from ns2_jax.runtime import flops
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state as states

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = pathlib.Path(__file__).parent / "golden" / "precompile"
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common"))
LITTLE = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}


def call(*words, code: str = "", **variables):
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | variables
    what = ["-c", code] if code else ["-m", "ns2_jax.precompile"]
    return subprocess.run([sys.executable, *what, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=3600)


# Without a TPU -------------------------------------------------------------------------------------------------------

EVERYTHING = """
import json, types
from ns2_jax.runtime import cluster
cluster.pretend(1)
from configs import aligner
from ns2_jax.precompile import __main__ as command, chips
print(json.dumps({name: [d.device_kind for d in chips.devices(name)] for name in ("v4:2x2x1", "v5e:4x4", "v5p:4x4x4", "v6e:4x4", "tpu7x:2x2x1")}))
for slices in (1, 2):
    command.FLAGS = types.SimpleNamespace(config=aligner.get_config("smoke"), topology="v5e:2x2", num_slices=slices, plan=False, pod=False, json=True)
    print(command.main([]))
with command.FLAGS.config.unlocked():
    command.FLAGS.config.data.buckets = (dict(b=16384, t=1600, p=240),)
command.FLAGS.num_slices = command.FLAGS.config.mesh.data = 1
print(command.main([]))
"""


@pytest.fixture(scope="module")
def everything():
    """(kinds of devices by topology, report on one slice, on two slices, and of what does not fit); what main returned is asserted."""
    done = call(code=EVERYTHING, **LITTLE)
    assert done.returncode == 0, done.stderr
    kinds, one, code1, two, code2, large, code3 = done.stdout.splitlines()
    assert code1 == code2 == "0" and code3 == "1"
    return json.loads(kinds), json.loads(one), json.loads(two), json.loads(large)


def test_every_family_is_there(everything):
    kinds, *_ = everything
    assert {name: (len(found), set(found)) for name, found in kinds.items()} == {
        "v4:2x2x1": (4, {"TPU v4"}), "v5e:4x4": (16, {"TPU v5 lite"}), "v5p:4x4x4": (64, {"TPU v5"}), "v6e:4x4": (16, {"TPU v6 lite"}),
        "tpu7x:2x2x1": (8, {"TPU7x"})}  # a chip of v4 is one device, one of TPU7x two
    assert set(chips.CHIPS) == {name.partition(":")[0] for name in kinds}


def test_a_tpu_slice_without_a_tpu(everything):
    _, report, *_ = everything
    assert {"fits", "hbm_bytes_per_chip", "hbm_limit_bytes", "hbm_by_kind", "flops_per_step", "collectives", "bound", "compile_s"} <= set(report)
    assert report["fits"] is True and report["devices"] == 4 and "TPU v5" in report["device_kind"] and report["advice"] == []
    assert report["mesh"] == {"data": 1, "fsdp": 4, "sequence": 1, "tensor": 1}
    assert report["state_bytes_per_chip"] < report["hbm_bytes_per_chip"] < report["hbm_limit_bytes"] == 16 << 30
    assert sum(report["hbm_by_kind"].values()) == report["hbm_bytes_per_chip"]
    gradients = report["collectives"]["all-reduce"]  # small params are replicated: at least their gradients are summed
    assert gradients["count"] >= 1 and gradients["bytes"] >= 4 * report["parameters"]
    assert report["bound"]["is"] == "a lower bound, not a forecast" and report["bound"]["seconds"] == max(report["bound"]["parts"].values()) > 0


def test_only_gradients_cross_between_two_slices(everything):
    """One sum of all gradients (a quarter of them from each of four chips) and a handful of metrics; nothing else leaves a slice."""
    _, one, two, _ = everything
    assert two["mesh"] == {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1} and two["devices"] == 8
    assert set(two["collectives_between_slices"]) == {"all-reduce"} and "collectives_between_slices" not in one
    crossing = two["collectives_between_slices"]["all-reduce"]
    assert two["parameters"] <= crossing["bytes"] <= 2 * two["parameters"] and crossing["count"] <= 3  # 4 bytes of 1/4, padded to tiles
    assert two["bound"]["parts"]["between_slices"] == pytest.approx(crossing["bytes"] / (25e9 / 8))


def test_what_the_compiler_refuses_says_what_would_fit(everything):
    """16 thousand rows of twenty seconds on four chips: how much the compiler says it wants, and that eight micro-batches would do."""
    *_, report = everything
    assert report["fits"] is False and report["hbm_limit_bytes"] == 15.75 * 2**30 and 43 < report["hbm_bytes_per_chip"] / 2**30 < 55
    assert sum(report["hbm_by_kind"].values()) == report["hbm_bytes_per_chip"] and report["bound"] is None and report["collectives"] == {}
    assert report["advice"][0] == "--config.train.micro_batches=8 (activations of 1/8 of the rows at a time)"


@pytest.mark.parametrize("text, expected", [
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", (20.5, 15.75)),
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (43.96G) exceeds available HBM (15.75G).",
     (45.96, 15.75))])
def test_how_the_compiler_refuses(text, expected):
    """The first counts all that a chip holds; the second leaves out state and batch, here 2 GiB."""
    assert fit.wanted(text, 2 << 30) == tuple(int(gib * 2**30) for gib in expected)
    assert fit.wanted("RESOURCE_EXHAUSTED: no reason", 0) == (None, None)


CUT = """
import json
from ns2_jax.runtime import cluster
cluster.pretend(1)
from ns2_jax.precompile import __main__ as command, fit
from ns2_jax.runtime import state
for config in command.bases():
    program = fit.make(config, "v5e:4x4")
    lowered = config.system != "naturalspeech2" or "mhlo.num_partitions = 16" in program.lower(program.abstract_batch()).as_text()
    parts = [fit.shard_bytes(program.shapes[key], program.where[key]) for key in ("params", "opt", "ema", "rest")]
    print(json.dumps([config.system, state.count(program.shapes["params"]), sum(parts), lowered]))
"""


def test_every_base_is_cut_over_sixteen_v5e_chips_as_it_was():
    """Without the compiler's minutes: params and the state of a chip are the golden's to the byte, and NaturalSpeech 2's step lowers."""
    done = call(code=CUT)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    golden = {name: json.loads((GOLDEN / f"{name}.json").read_text()) for name, *_ in found}
    assert sorted(golden) == CONFIGS
    assert found == [[name, golden[name]["parameters"], golden[name]["state_bytes_per_chip"], True] for name, *_ in found]


@pytest.mark.slow  # minutes of a core each
@pytest.mark.parametrize("name", CONFIGS)
def test_base_on_sixteen_v5e_chips_is_as_it_was(name):
    """The whole train step at low compiler effort; nothing that a chip holds or sends has changed by more than 3 %."""
    path = GOLDEN / f"{name}.json"
    if not path.exists() and "UPDATE_GOLDEN" not in os.environ:
        pytest.fail(f"no golden of {name}: UPDATE_GOLDEN=1 python -m pytest tests/test_precompile.py -k {name}")
    done = call(f"--config=configs/{name}.py:base", "--topology=v5e:4x4", "--json", **LITTLE)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fits"] is True and report["devices"] == 16 and report["flops_per_step"] > 5e11
    found = {name: report[name] for name in ("parameters", "hbm_bytes_per_chip", "state_bytes_per_chip", "collectives")}
    if "UPDATE_GOLDEN" in os.environ:
        path.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert found["parameters"] == golden["parameters"] and set(found["collectives"]) == set(golden["collectives"])
    for key in ("hbm_bytes_per_chip", "state_bytes_per_chip"):
        assert found[key] == pytest.approx(golden[key], rel=0.03), key
    for kind, numbers in golden["collectives"].items():
        assert found["collectives"][kind] == pytest.approx(numbers, rel=0.03), kind
    if name == "naturalspeech2":
        assert abs(report["parameters"] / (72e6 + 34e6 + 50e6 + 69e6 + 183e6) - 1) < 0.01


# What does not fit ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_exits_one_and_says_what_would_fit(monkeypatch, capsys):
    monkeypatch.setitem(chips.CHIPS, "cpu", chips.Chip(1e12, 8 << 20, 1e10, 1e9, None))  # a chip of eight megabytes
    config = aligner_config.get_config("smoke")
    config.data.buckets = (dict(b=32, t=320, p=64),)
    monkeypatch.setattr(command.cluster, "pretend", lambda devices: None)
    monkeypatch.setattr(command, "FLAGS", types.SimpleNamespace(config=config, topology="cpu:8", num_slices=1, plan=False, pod=False, json=False))
    assert command.main([]) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "of 0.01 GiB a chip" in said and "a lower bound by the makers' peaks, no forecast" in said
    assert "would make it fit (estimate; --plan compiles to be sure): a slice of " in said


def report_of(**more):
    kinds = dict(params=1, opt=2, ema=1, rest=0, batch=1, temporary=20, code=1, padding=0)
    gib = {name: size << 30 for name, size in kinds.items()}
    return dict(fits=False, hbm_limit_bytes=16 << 30, hbm_bytes_per_chip=sum(gib.values()), hbm_by_kind=gib, state_bytes_per_chip=4 << 30,
                micro_batches=1, mesh=dict(data=2, fsdp=8, sequence=1, tensor=1), slices=1, devices=16, bucket={},
                flops_per_step=3e15, flops_computed_per_step=4e15) | more


def test_advice_is_of_the_command_line():
    config = ns2_config.get_config("base")
    found = fit.advice(report_of(), config)
    assert found[0].startswith("--config.train.micro_batches=4 ")  # 21 GiB of activations beside 5 of state and batch: two are too few
    assert any(line.startswith("--config.model.denoiser.remat=('nothing',)") for line in found)
    assert any(line.startswith("--config.mesh.data=1 --config.mesh.fsdp=-1 (state of 4.00 GiB a chip") for line in found)
    assert found[-1] == "a slice of 32 chips, with mesh.fsdp over all of them"
    assert fit.advice(report_of(fits=True), config) == []
    untold = fit.advice(report_of(hbm_bytes_per_chip=None), config)
    assert untold == ["more --config.train.micro_batches or a larger slice: the compiler did not say how much memory it wanted; --plan tries"]
    gone = report_of(state_bytes_per_chip=300 << 30, hbm_bytes_per_chip=320 << 30, mesh=dict(data=1, fsdp=16, sequence=1, tensor=1))
    hopeless, *more = fit.advice(gone, aligner_config.get_config("base"))  # which has no remat
    assert not more and hopeless.startswith("nothing of mesh, micro-batches, recomputation and 16 times the chips by itself: 20 times the memory")
    tight = fit.advice(report_of(state_bytes_per_chip=14 << 30, hbm_by_kind={"batch": 1 << 20}), config)
    assert not any(line.startswith("--config.train.micro_batches") for line in tight)  # 12 GiB beside a state that leaves 1.2: four are too few
    assert tight[0] == "--config.mesh.sequence=4 --config.train.micro_batches=16 (1/4 of the time of as many rows)"  # a row is too much for a chip


def test_the_bound_is_the_longest_of_its_parts():
    chip = chips.Chip(flops=1e14, memory=16 << 30, memory_rate=1e12, slice_rate=1e11, centre_rate=1e9)
    found = fit.bound(report_of(micro_batches=2), chip, within=5e9, between=1e9)
    gib = 1 << 30
    assert found["parts"] == pytest.approx({
        "compute": 4e15 / 16 / 1e14, "memory": (2 * 4 + 1 + 2 * 20 * 2) * gib / 1e12, "network": 0.05, "between_slices": 1.0})
    assert found["seconds"] == pytest.approx(2.5) and found["by"] == "compute" and found["mfu_at_most"] == pytest.approx(0.75)
    assert fit.bound(report_of(), chips.CHIPS["v4"], 0, 1e9)["parts"]["between_slices"] == 0  # nobody says how fast


# Plans ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_chip(monkeypatch):
    """cpu:8 as a chip of 16 GiB, and a compiler that knows at once: memory falls with micro-batches and recomputation."""
    monkeypatch.setitem(chips.CHIPS, "cpu", chips.Chip(1e12, 16 << 30, 1e12, 1e11, 1e9))
    asked = []

    def measure(state, activations, seconds):
        def one(config, topology, slices):
            level = {(): "none", ("gate",): "gate", ("nothing",): "all"}[tuple(config.model.denoiser.remat)]
            micro = config.train.micro_batches
            asked.append((level, micro, [dict(b) for b in config.data.buckets]))
            needed = (state + activations[level] / micro) * 2**30
            return report_of(fits=needed <= 16 << 30, hbm_bytes_per_chip=int(needed), state_bytes_per_chip=state << 30, micro_batches=micro,
                             bound={"seconds": seconds[level] * (1 + 0.05 * micro), "by": "compute"})
        return one

    return measure, asked


def test_a_plan_takes_the_fewest_micro_batches_and_the_lowest_bound(small_chip):
    measure, asked = small_chip
    config = ns2_config.get_config("smoke")
    config.data.buckets = (dict(b=64, t=64, p=24, u=32),)
    said = []
    found = plan.search(config, "cpu:8", 1, 0, said.append, measure(4, dict(none=70, gate=20, all=8), dict(none=1.0, gate=1.1, all=1.3)))
    assert [(level, micro) for level, micro, _ in asked] == [("none", 1), ("none", 8), ("gate", 1), ("gate", 2), ("all", 1)]
    assert found["fits"] and found["choice"]["recompute"] == "the config's" and found["choice"]["micro_batches"] == 2
    assert found["flags"] == ["--config.train.micro_batches=2"]
    assert "recomputing none, 1 micro-batch: 74.00 of 16 GiB a chip, does not fit; trying 8" in said
    assert said[-1] == "chosen: recomputing the config's, 2 micro-batches: the lowest bound of what fits" and said == found["why"]


def test_a_plan_makes_buckets_of_the_frames_it_is_asked_for(small_chip):
    measure, asked = small_chip
    config = ns2_config.get_config("smoke")
    config.data.buckets = (dict(b=8, t=64, p=24, u=32), dict(b=8, t=320, p=80, u=160))
    found = plan.search(config, "cpu:8", 1, 20_000, lambda line: None, measure(4, dict(none=1, gate=1, all=1), dict(none=1.0, gate=1.1, all=1.3)))
    assert found["choice"]["frames"] == [312 * 64, 64 * 320] and found["choice"]["recompute"] == "none"
    assert "--config.model.denoiser.remat=()" in found["flags"] and found["flags"][-1].startswith("--config.data.buckets=({'b': 312")
    with pytest.raises(ValueError, match="--frames=700: no number of rows is within 12.5% of it: 8 batch shards hold .* row each, 2560 frames"):
        plan.search(config, "cpu:8", 1, 700)


def test_a_plan_takes_more_rows_where_the_configs_cannot_be_cut(monkeypatch):
    """As the command without a plan does; the flag to train so is among the others."""
    monkeypatch.setitem(chips.CHIPS, "cpu", chips.Chip(1e12, 16 << 30, 1e12, 1e11, 1e9))
    config, asked = aligner_config.get_config("smoke"), []
    config.train.micro_batches = 2
    config.data.buckets = (dict(b=12, t=64, p=16), dict(b=4, t=96, p=24))

    def measure(new, topology, slices):
        asked.append((new.train.micro_batches, list(map(dict, new.data.buckets))))
        return report_of(fits=len(asked) == 2, bound={"seconds": 1.0, "by": "compute"})

    found = plan.search(config, "cpu:8", 1, 0, lambda line: None, measure)
    more = [dict(b=48, t=64, p=16), dict(b=16, t=96, p=24)]  # 16 = 8 chips x 2 micro-batches
    assert asked == [(1, more), (2, more)] and found["choice"]["buckets"] == more and found["choice"]["micro_batches"] == 2
    assert found["flags"] == ["--config.train.micro_batches=2", f"--config.data.buckets={tuple(more)!r}"]


def test_a_plan_that_finds_nothing_says_so(small_chip):
    measure, asked = small_chip
    config = ns2_config.get_config("smoke")
    never = measure(17, dict(none=1, gate=1, all=1), dict.fromkeys(("none", "gate", "all"), 1.0))
    found = plan.search(config, "cpu:8", 1, 0, lambda line: None, never)
    assert found["fits"] is False and found["choice"] is None and len(asked) == 3  # the state alone is too large: no micro-batch helps


def test_a_pod_is_measured_with_rows_that_divide(monkeypatch, tmp_path, capsys):
    """Two slices get a copy of the parameters each, and rows for all chips; one JSON object a line is kept."""
    seen = []

    def measure(config, topology, slices):
        seen.append((dict(config.mesh), [b["b"] for b in config.data.buckets], slices))
        sent = {"all-reduce": {"count": 2, "bytes": 3 << 20}, "all-gather": {"count": 1, "bytes": 1 << 20}}
        return report_of(fits=slices == 1, config="aligner", size="base", topology=topology, slices=slices, parameters=4_627_712, compile_s=9.6,
                         bucket=dict(b=64, t=320), collectives=sent, bound={"seconds": 0.25, "by": "between_slices"} if slices == 1 else None)

    monkeypatch.setattr(fit, "measure", measure)
    monkeypatch.setattr(command, "POD", (("cpu:8", 1), ("cpu:8", 2)))
    monkeypatch.setattr(chips, "devices", lambda name, slices: jax.devices("cpu"))  # as if CPUs made slices
    monkeypatch.setattr(command.cluster, "pretend", lambda devices: None)
    config = aligner_config.get_config("base")
    config.data.buckets = tuple({**b, "b": b["b"] // 32} for b in config.data.buckets)
    flags = types.SimpleNamespace(config=config, topology="", num_slices=1, plan=False, pod=True, json=True, out=str(tmp_path / "out" / "pod.jsonl"))
    monkeypatch.setattr(command, "FLAGS", flags)
    assert command.main([]) == 1  # one of them does not fit
    assert [(mesh["data"], rows, slices) for mesh, rows, slices in seen] == [(1, [64, 32, 16, 8], 1), (2, [64, 32, 16, 8], 2)]
    kept = [json.loads(line) for line in (tmp_path / "out" / "pod.jsonl").read_text().splitlines()]
    first = kept[0]
    assert len(kept) == 2 and kept[0]["versions"]["jax"] == jax.__version__
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert command.main([]) == 1  # again: two more lines, and a table of two rows still
    assert len((tmp_path / "out" / "pod.jsonl").read_text().splitlines()) == 4
    rows = (tmp_path / "out" / "pod.md").read_text().splitlines()
    assert len(rows) == 4 and {row.count("|") for row in rows} == {15}
    assert rows[2] == ("| aligner base | cpu:8 | data=2 fsdp=8 | b=64 t=320 | 1 | 4.6 M | 26.00 GiB of 16.00 GiB | "
                       "params 1.00, opt 2.00, ema 1.00, batch 1.00, temporary 20.00, code 1.00 | 3 | 0.25 | between slices | 4 | 0 | 10 |")
    assert "| 2 x cpu:8 |" in rows[3] and "GiB, does not fit |" in rows[3] and "| nan | unknown |" in rows[3]
    flags.config, kept = None, seen.copy()
    monkeypatch.setattr(command, "bases", lambda: iter([config]))
    assert command.main([]) == 1 and seen == kept  # every base: goes on with what the file lacks, which is nothing
    with open(flags.out, "w", encoding="utf8") as f:
        f.write(json.dumps(first) + "\n")
    assert command.main([]) == 1 and seen == [*kept, kept[1]]
    assert (tmp_path / "out" / "pod.md").read_text().splitlines() == rows


def test_rows_that_cannot_be_cut_are_multiplied_and_the_flag_is_said(monkeypatch, capsys):
    monkeypatch.setattr(fit, "measure", lambda config, topology, slices: report_of(
        fits=True, config="aligner", size="base", parameters=1, compile_s=1.0, device_kind="cpu", collectives={}, bound=None))
    monkeypatch.setattr(command.cluster, "pretend", lambda devices: None)
    config = aligner_config.get_config("base")
    config.data.buckets = (dict(b=12, t=320), dict(b=4, t=640))
    flags = types.SimpleNamespace(config=copy.deepcopy(config), topology="cpu:8", num_slices=1, plan=False, pod=False, json=True)
    monkeypatch.setattr(command, "FLAGS", flags)
    assert command.main([]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows_times"] == 2 and report["buckets"] == [dict(b=24, t=320), dict(b=8, t=640)]
    flags.json, flags.config = False, copy.deepcopy(config)
    assert command.main([]) == 0
    flag = '--config.data.buckets="({\'b\': 24, \'t\': 320}, {\'b\': 8, \'t\': 640})"'
    assert f"2 times the config's rows, which cannot be cut over so many chips; train with {flag}" in capsys.readouterr().out
    flags.config.data.buckets = tuple(report["buckets"])
    assert command.main([]) == 0 and "times the config's rows" not in capsys.readouterr().out


def test_what_is_kept_of_pods_is_of_these_configs_and_its_table_of_these_lines():
    """results/performance: lines of other parameters than the goldens' are out of date; delete them and run the command of its README."""
    folder = ROOT / "results" / "performance"
    rows, bases = command.kept(folder / "precompile.jsonl"), {config.system: config for config in command.bases()}
    assert (folder / "precompile.md").read_text(encoding="utf8") == command.table(rows)
    machines = sorted((row["config"], row["topology"], row["slices"]) for row in rows)
    assert machines == sorted((name, *machine) for name in bases for machine in command.POD)  # each once, none is missing
    for row in rows:
        golden, config = json.loads((GOLDEN / f"{row['config']}.json").read_text()), bases[row["config"]]
        assert row["size"] == "base" and row["parameters"] == golden["parameters"] and row["fits"] is True and row["devices"] == 64 * row["slices"]
        assert row["mesh"] == meshes.sizes({**config.mesh, "data": row["slices"]}, row["devices"])
        assert row["micro_batches"] == config.train.micro_batches
        shards = row["mesh"]["data"] * row["mesh"]["fsdp"]
        assert row["bucket"] == states.largest(meshes.more_rows(config.data.buckets, shards * row["micro_batches"])), row["config"]


def test_every_config_has_a_base():
    assert {base.system for base in command.bases()} >= {"aligner", "codec", "naturalspeech2"}


# HLO and FLOPs -------------------------------------------------------------------------------------------------------

HLO = """HloModule jit_step
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}
%cond (p: (s32[], f32[4])) -> pred[] {
  %c = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}
%inner (q: f32[4]) -> f32[4] {
  %cp = u8[3]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
}
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ags = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), dimensions={0}, replica_groups=[2,4]<=[4,2]T(1,0)
  %call = f32[4] fusion(%x), kind=kLoop, calls=%inner
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %ag = f32[512,256]{1,0:T(8,128)} all-gather(%p), replica_groups={{0,1},{2,3}}, dimensions={0}
  %ars = (f32[16]{0}, f32[4,4]{1,0}, /*index=2*/bf16[2]{0}) all-reduce-start(%a, %b, %c), to_apply=%add, replica_groups=mesh['a'=2,'b'=4] {'b'}
  %ard = (f32[16]{0}, f32[4,4]{1,0}) all-reduce-done(%ars)
  %w = (s32[], f32[4]) while(%t), condition=%cond, body=%body
  %send = (f32[3,8]{1,0}, u32[], token[]) send(%g, %tok), channel_id=2, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %f = f32[8]{0} fusion(%all-reduce.1), calls=%unknown
}
"""


def test_collectives_are_read_from_hlo():
    found = list(hlo.collectives(HLO, 8, 2))
    assert hlo.summary([one for one in found if not one.between]) == {
        "all-gather": {"count": 1 + 12, "bytes": 512 * 256 * 4 + 12 * 64}, "all-reduce": {"count": 1, "bytes": 64 + 64 + 4},
        "collective-permute": {"count": 12, "bytes": 36}}
    assert hlo.summary([one for one in found if one.between]) == {"all-reduce": {"count": 1, "bytes": 96}}
    groups = {(one.kind, one.times): one.groups for one in found}
    assert groups["all-gather", 1] == ((0, 1), (2, 3)) and groups["all-gather", 12] == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert groups["collective-permute", 12] == ((0, 1), (1, 0))
    assert next(one for one in found if one.kind == "all-reduce" and not one.between).groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert hlo.groups("all-reduce(%x), replica_groups={}", 3) == ((0, 1, 2),)


# At the compiler's own effort: a gather is hidden by a loop that passes pieces of a matrix round, two a turn.
HIDDEN = """HloModule jit_step
%begin (a: bf16[128,2048]) -> (bf16[128,2048], bf16[2048,2048]) {
  %ag.1 = bf16[2048,2048]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=8, replica_groups=mesh['a'=16,'b'=1] {'a'}, dimensions={0}
  ROOT %cc.1 = (bf16[128,2048]{1,0}, bf16[2048,2048]{1,0}) custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}
%work (b: bf16[128,2048]) -> bf16[2048,2048] {
  ROOT %ag.2 = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} all-gather(%b), channel_id=8, replica_groups=mesh['a'=16,'b'=1] {'a'}, dimensions={0}
}
%end (c: bf16[128,2048]) -> bf16[2048,2048] {
  %ag.3 = bf16[2048,2048]{1,0:T(8,128)(2,1)} all-gather(%c), channel_id=8, replica_groups=mesh['a'=16,'b'=1] {'a'}, dimensions={0}
  ROOT %cc.3 = bf16[2048,2048]{1,0} custom-call(%c, %ag.3), custom_call_target="AsyncCollectiveDone"
}
%ring (p: (bf16[128,2048], u32[])) -> (bf16[128,2048], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %one = u32[]{:T(128)} constant(1)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %cps.1 = (bf16[128,2048]{1,0}, bf16[128,2048]{1,0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %cps.2 = (bf16[128,2048]{1,0}, bf16[128,2048]{1,0}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %half = u32[]{:T(128)S(6)} add(%i, %one)
  %f = bf16[2048,2048] fusion(%b), kind=kOutput, calls=%work
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %t = (bf16[128,2048]{1,0}, /*index=1*/u32[]{:T(128)}) tuple(%cpd.2, /*index=1*/%next)
}
%until (p: (bf16[128,2048], u32[])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %eight), direction=LT
}
ENTRY %main (x: bf16[128,2048]) -> bf16[2048,2048] {
  %start = (bf16[128,2048], bf16[2048,2048]) fusion(%x), kind=kCustom, calls=%begin
  %w = (bf16[128,2048], u32[]) while(%t), condition=%until, body=%ring
  %cps.3 = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1}}
  %cps.4 = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=1, source_target_pairs={{0,1}}
  %done = bf16[2048,2048] fusion(%g), kind=kCustom, calls=%end
}
"""


def test_a_hidden_collective_is_counted_at_its_start_and_a_loop_by_its_steps():
    """Others of one channel, as copies of a halo, are each their own."""
    assert hlo.summary(list(hlo.collectives(HIDDEN, 16))) == {
        "all-gather": {"count": 1, "bytes": 2048 * 2048 * 2}, "collective-permute": {"count": 2 * 8 // 2 + 2, "bytes": 8 * 128 * 2048 * 2 + 2 * 16}}


def test_what_a_device_must_send():
    four = ((0, 1, 2, 3),)
    sent = {kind: hlo.Collective(kind, 1, 100, four).sent() for kind in hlo.KINDS[:4]}
    assert sent == {"all-gather": 75, "all-reduce": 150, "reduce-scatter": 300, "all-to-all": 75}
    assert hlo.Collective("collective-permute", 1, 100, ((0, 1), (1, 0))).sent() == 100
    assert hlo.Collective("collective-permute", 1, 100, ((0, 0),)).sent() == 0


def test_a_loop_that_does_not_count_to_a_constant_is_once():
    assert hlo.trips(["  ROOT %lt = pred[] compare(%a, %b), direction=NE"]) == 1


def test_flops_of_a_jaxpr_are_closed_forms_and_the_compilers():
    x, w, k = jnp.zeros((4, 32, 8)), jnp.zeros((8, 16)), jnp.zeros((3, 8, 16))
    conv = lambda x, k, **more: jax.lax.conv_general_dilated(x, k, (1,), [(0, 0)], dimension_numbers=("NWC", "WIO", "NWC"), **more)
    assert flops.count(jax.make_jaxpr(lambda x, w: x @ w)(x, w)) == 2 * 4 * 32 * 8 * 16
    assert flops.count(jax.make_jaxpr(conv)(x, k)) == 2 * 4 * 30 * 16 * 3 * 8
    stretched = jax.make_jaxpr(lambda x, k: conv(x, k, lhs_dilation=(2,)))(x, k)
    assert flops.count(stretched) == 2 * 4 * 61 * 16 * 3 * 8 / 2  # half of what it multiplies are zeros
    ws = jnp.zeros((5, 8, 8))
    scanned = lambda x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0].sum()
    again = lambda x: jax.lax.scan(jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None), prevent_cse=False), x, ws)[0].sum()
    one = 5 * 2 * 4 * 32 * 8 * 8
    assert flops.count(jax.make_jaxpr(scanned)(x)) == one
    assert flops.count(jax.make_jaxpr(jax.grad(scanned))(x)) == 2 * one  # no gradient of the weights is asked for
    assert flops.count(jax.make_jaxpr(jax.grad(again))(x)) == 3 * one  # and the products once more
    branches = jax.make_jaxpr(lambda p, x: jax.lax.cond(p, lambda: (x @ w).sum(), lambda: x.sum()))(True, x)
    assert flops.count(branches) == 2 * 4 * 32 * 8 * 16
    compiled = jax.jit(conv).lower(x, k).compile().cost_analysis()["flops"]
    assert flops.count(jax.make_jaxpr(conv)(x, k)) == pytest.approx(compiled, rel=0.02)


@pytest.mark.parametrize("words, line", [
    (["--topology=v5e:2x2"], "error: --config is missing"),
    (["--config=configs/codec.py:smoke", "--out=x.jsonl"], "error: flags out=x.jsonl, pod=False: --out goes with --pod"),
    (["--config=configs/codec.py:smoke", "--plan", "--pod"], "error: flags plan=True, pod=True: --plan and --pod exclude each other"),
    (["--pod", "--topology=v5e:4x4"], "error: flags pod=True, topology=v5e:4x4, num_slices=1: --pod has machines of its own; leave out --topology"),
    (["--pod", "--num_slices=2"], "error: flags pod=True, topology=v5e:4x4, num_slices=2: --pod has machines of its own"),
    (["--config=configs/codec.py:smoke", "--topology=v9:2x2"], "error: --topology=v9:2x2 is not FAMILY:SHAPE"),
    (["--config=configs/codec.py:smoke", "--topology=cpu:foo"], "error: --topology=cpu:foo: how many CPU devices? As in cpu:8"),
    (["--config=configs/codec.py:smoke", "--topology=cpu:0"], "error: --topology=cpu:0: how many CPU devices? As in cpu:8"),
    (["--config=configs/codec.py:smoke", "--topology=cpu:8", "--num_slices=2"], "error: --num_slices=2: CPU devices make no slices"),
])
def test_wrong_commands(words, line):
    done = call(*words)
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr

