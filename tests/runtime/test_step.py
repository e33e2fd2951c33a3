"""The step: accumulation, average, guard, groups, and the same numbers on every mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from toy_system import Toy, batch

from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import optim
from ns2_jax.runtime import state as states
from ns2_jax.runtime import step as steps
from ns2_jax.runtime.program import Program


def config(micro=1, ema=0.9, frozen=(), by_key=None, seed=3, rows=16, **optimiser):
    numbers = dict(peak=0.05, warmup=2, schedule="cosine", b1=0.9, b2=0.98, weight_decay=0.01, clip=1.0, by_key=by_key or {})
    return ml_collections.ConfigDict(dict(
        seed=seed, precision="float32", model={}, optim={**numbers, **optimiser}, train=dict(steps=50, micro_batches=micro, ema=ema, frozen=frozen),
        data=dict(hop=1, buckets=[dict(b=rows)])))


def run(count, system=Toy(), **changes):
    """The state and the metrics after `count` plain steps on one device."""
    c = config(**changes)
    optimiser = optim.make(c)
    step = jax.jit(steps.make_step(system, optimiser, c))
    state = states.initialise(system, optimiser, jax.random.key(0), batch())
    history = [state]
    for i in range(count):
        state, metrics = step(state, batch(seed=i))
        history.append(state)
    return history, metrics


def close(a, b, tolerance=1e-6):
    for (path, x), y in zip(states.flatten(a).items(), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=path)


def same(a, b):
    for (path, x), y in zip(states.flatten(a).items(), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y, err_msg=path)


def test_it_learns_and_counts():
    history, metrics = run(50, Toy(noise=0.0), by_key={"disc": {"peak": 0.2}})
    optimiser = optim.make(config())
    step = steps.make_step(Toy(noise=0.0), optimiser, config())
    _, first = step(states.initialise(Toy(), optimiser, jax.random.key(0), batch()), batch())
    assert float(metrics["loss"]) < 0.3 * float(first["loss"])
    assert int(history[-1]["step"]) == 50
    assert set(metrics) >= {"loss", "weight", "grad_norm", "grad_norm/default", "grad_norm/disc", "param_norm", "learning_rate", "learning_rate/disc", "halted"}


def test_gradients_are_divided_by_the_weight():
    """The first row padded away is the same as 15 rows; norms are those of the mean over rows."""
    system = Toy(noise=0.0)
    c = config()
    optimiser = optim.make(c)
    step = jax.jit(steps.make_step(system, optimiser, c))
    state = states.initialise(system, optimiser, jax.random.key(0), batch())
    whole, metrics = step(state, batch())  # the last of 16 rows has weight 0
    part, expected = step(state, {name: x[:15] for name, x in batch().items()})
    close(whole, part)
    grads, _, sums = system.grads(state["params"], state["rest"], batch(), jax.random.key(0), 0)
    assert float(metrics["grad_norm"]) == pytest.approx(float(steps.norm(grads)) / 15, rel=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(sums["loss"]) / 15, rel=1e-6)
    assert float(metrics["weight"]) == 15 and float(expected["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_accumulation_equals_one_batch(parts):
    one, m1 = run(5, Toy(noise=0.0))
    many, m2 = run(5, Toy(noise=0.0), micro=parts)
    close(one[-1], many[-1], 2e-6)
    assert {k: float(v) for k, v in m1.items()} == pytest.approx({k: float(v) for k, v in m2.items()}, rel=1e-5)


def test_micro_batches_hear_different_noise():
    """With noise the parts draw their own: not the sum of equal noises."""
    system = Toy(noise=1.0)
    params, rest = system.init(jax.random.key(0), batch())
    ones = {name: jnp.broadcast_to(x[:1], x.shape) for name, x in batch().items()}
    parts = steps.summed(system, params, rest, ones, jax.random.key(1), 0, 16)[2]["loss"]
    single = system.grads(params, rest, {n: x[:1] for n, x in ones.items()}, jax.random.fold_in(jax.random.key(1), 0), 0)[2]["loss"]
    assert abs(float(parts) - 16 * float(single)) > 1e-2


def test_average_follows_its_closed_form():
    history, _ = run(30, ema=0.7)
    expected = np.asarray(history[0]["params"]["gen"]["kernel"], np.float64)
    for k in range(30):
        d = min(0.7, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * np.asarray(history[k + 1]["params"]["gen"]["kernel"], np.float64)
    np.testing.assert_allclose(history[-1]["ema"]["gen"]["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_no_average_is_the_params():
    history, _ = run(3, ema=0.0)
    same(history[-1]["ema"], history[-1]["params"])


def test_rest_is_updated_once_a_step_with_summed_statistics():
    history, _ = run(1, micro=4)
    b = batch()
    expected = 0.9 * np.asarray(history[0]["rest"]["mean"]) + 0.1 * np.asarray(b["x"][:15]).mean(0)
    np.testing.assert_allclose(history[1]["rest"]["mean"], expected, rtol=1e-5)


def test_frozen_leaves_stay_bit_for_bit():
    history, metrics = run(10, frozen=("params/gen/kernel",))
    np.testing.assert_array_equal(history[-1]["params"]["gen"]["kernel"], history[0]["params"]["gen"]["kernel"])
    np.testing.assert_array_equal(history[-1]["ema"]["gen"]["kernel"], history[0]["params"]["gen"]["kernel"])
    assert np.abs(history[-1]["params"]["gen"]["bias"] - history[0]["params"]["gen"]["bias"]).min() > 0
    c = config(frozen=("params/gen/.*", "params/disc/.*"))
    optimiser = optim.make(c)
    state = states.initialise(Toy(), optimiser, jax.random.key(0), batch())
    _, metrics = steps.make_step(Toy(), optimiser, c)(state, batch())
    assert float(metrics["grad_norm"]) == 0


def test_a_number_that_is_not_finite_changes_nothing_and_is_named():
    c = config(micro=2)
    optimiser = optim.make(c)
    step = jax.jit(steps.make_step(Toy(), optimiser, c))
    good, metrics = step(states.initialise(Toy(), optimiser, jax.random.key(0), batch()), batch())
    assert not metrics["halted"]
    bad = batch()
    bad["x"] = bad["x"].at[3, 2].set(jnp.nan)
    after, metrics = step(good, bad)
    assert metrics["halted"]
    same(after, good)
    later, metrics = step(after, batch(), metrics["halted"])  # the flag stays
    assert metrics["halted"]
    same(later, good)
    paths = steps.diagnose(Toy(), c, good, bad)
    assert paths[0] == "batch/x" and "metrics/loss" in paths and "grads/gen/kernel" in paths
    assert "params/gen/kernel" not in paths and "grads/disc/table" not in paths
    broken = {**good, "params": {**good["params"], "disc": {"table": good["params"]["disc"]["table"].at[0, 0].set(jnp.inf)}}}
    assert steps.diagnose(Toy(), c, broken, batch())[0] == "params/disc/table"


@dataclasses.dataclass(frozen=True)
class Overflow(Toy):
    """Finite gradients, but a `rest` that is not."""

    def update(self, params, rest, stats, rng, step):
        return {"mean": rest["mean"] / 0.0}


def test_the_guard_watches_rest_too():
    history, metrics = run(1, Overflow())
    assert metrics["halted"]
    same(history[1], history[0])


def test_a_batch_of_padding_only_is_no_catastrophe():
    c = config(weight_decay=0.0)
    optimiser = optim.make(c)
    empty = batch() | {"weight": jnp.zeros(16)}
    toy = Toy()
    state = states.initialise(toy, optimiser, jax.random.key(0), batch())
    grads, stats, metrics = steps.summed(toy, state["params"], state["rest"], empty, jax.random.key(0), 0, 1)
    assert float(metrics["weight"]) == 0 and float(steps.norm(grads)) == 0


@functools.cache
def one_device(count, noise=0.1):
    return trained(dict(fsdp=1), count, 1, noise)


def trained(mesh_sizes, count=4, micro=1, noise=0.1):
    program = Program(config(micro=micro, rows=32), dataclasses.replace(BIG, noise=noise), meshes.make_mesh(mesh_sizes), contextlib.nullcontext)
    data = lambda i: meshes.put_batch(program.mesh, {n: np.asarray(x) for n, x in batch(32, 512, 256, i).items()})
    state, halted, history = program.create(data(0)), program.go(), []
    for i in range(count):
        state, metrics = program(state, data(i), halted)
        history.append(jax.device_get(state))
    return program, state, metrics, history


BIG = Toy(inputs=512, outputs=256)
MESHES = [dict(fsdp=8), dict(data=8), dict(data=2, fsdp=4), dict(fsdp=4, tensor=2), dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, sequence=4)]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_the_same_training_on_every_mesh(sizes):
    _, one, m1, ones = one_device(4)
    program, many, m2, manies = trained(sizes)
    # Adam divides tiny gradients by themselves: after 4 steps a few of 131 K numbers are free by a part of the rate.
    close(jax.device_get(one), jax.device_get(many), 5e-3)
    linear = lambda state: {p: x for p, x in states.flatten(state).items() if "/mu/" in p or "rest/" in p}
    assert len(linear(one)) == 4
    close(linear(ones[0]), linear(manies[0]), 2e-6)
    assert float(m1["loss"]) == pytest.approx(float(m2["loss"]), rel=1e-5)
    kernel = many["params"]["gen"]["kernel"]
    held = kernel.addressable_shards[0].data.size * (program.mesh.shape["fsdp"] * program.mesh.shape["tensor"])
    assert held == kernel.size  # sharded over fsdp and tensor
    moments = [x for path, x in states.flatten(many["opt"]).items() if path.endswith("gen/kernel")]
    assert len(moments) == 2 and all(x.sharding == kernel.sharding for x in moments)
    assert many["ema"]["gen"]["kernel"].sharding == kernel.sharding


def test_micro_batches_on_a_mesh():
    _, one, _, _ = one_device(4, 0.0)
    _, many, _, _ = trained(dict(fsdp=8), micro=4, noise=0.0)
    close(jax.device_get(one), jax.device_get(many), 5e-3)
    np.testing.assert_allclose(one["rest"]["mean"], many["rest"]["mean"], rtol=1e-5, atol=1e-6)


def test_initial_state_is_the_same_on_every_mesh():
    same(jax.device_get(first(dict(fsdp=8))), jax.device_get(first(dict(fsdp=1))))


def first(sizes):
    program = Program(config(rows=32), BIG, meshes.make_mesh(sizes), contextlib.nullcontext)
    return program.create(meshes.put_batch(program.mesh, {n: np.asarray(x) for n, x in batch(32, 512, 256).items()}))["params"]


def test_split_keeps_every_row_once():
    x = jnp.arange(12)
    parts = steps.split({"x": x}, 3)["x"]
    assert parts.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_flops_and_sizes():
    program = Program(config(rows=32), BIG, meshes.make_mesh(dict(fsdp=8)), contextlib.nullcontext)
    assert program.flops(program.abstract_batch()) == 3 * 2 * 32 * 512 * 256
    assert states.largest([dict(b=4, t=10), dict(b=2, t=30), dict(b=1, t=50)]) == dict(b=2, t=30)
    assert states.bucket_sizes(dict(b=2, t=30), dict(q=4), 200) == dict(b=2, t=30, q=4, s=6000)
    assert states.bucket_sizes(dict(b=2, t=30, u=5), {}, 200) == dict(b=2, t=30, u=5, s=6000, v=1000)
    with pytest.raises(ValueError, match="buckets is empty"):
        states.largest(())


def test_flatten_and_nest_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert states.flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert states.nest(states.flatten(tree)) == tree
