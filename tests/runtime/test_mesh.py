"""Meshes, the rule table, and the XLA bug that the guard exists for."""

from __future__ import annotations

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ns2_jax.runtime import mesh as meshes


def test_minus_one_takes_what_is_left():
    assert meshes.sizes({"data": 2, "fsdp": -1, "sequence": 1, "tensor": 2}, 8) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    mesh = meshes.make_mesh({"fsdp": -1})
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4


def test_smaller_mesh_takes_the_first_devices():
    mesh = meshes.make_mesh({"data": 1, "fsdp": 4})
    assert list(mesh.devices.flat) == jax.devices()[:4]


@pytest.mark.parametrize("platform, found", [("gpu", {"data": 1, "fsdp": 16}), ("tpu", None)])
def test_hosts_of_gpus_are_no_slices(platform, found):
    """Both have an index of their own for each of two hosts; only between slices of TPUs must `data` lie."""
    class Device:  # hashed by what it is
        def __init__(self, i):
            self.id, self.platform, self.device_kind, self.process_index, self.slice_index = i, platform, "kind", i // 8, i // 8

    devices = [Device(i) for i in range(16)]
    if found is None:
        with pytest.raises(ValueError, match="mesh.data=1 must be a multiple of the 2 slices"):
            meshes.make_mesh({"fsdp": -1}, devices)
        return
    mesh = meshes.make_mesh({"fsdp": -1}, devices)
    assert dict(mesh.shape) == found | {"sequence": 1, "tensor": 1} and list(mesh.devices.flat) == devices


@pytest.mark.parametrize("wanted, message", [
    ({"sequence": 2, "tensor": 2}, "multiplies convolutions"),
    ({"sequence": -1, "tensor": 2}, "multiplies convolutions"),
    ({"fsdp": -1, "data": -1}, "at most one"),
    ({"fsdp": 0}, "positive"),
    ({"fsdp": 3, "data": -1}, "do not divide"),
    ({"fsdp": 16}, "needs 16 devices"),
    ({"pipeline": 2}, "mesh.pipeline is not a mesh axis"),
])
def test_what_is_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(wanted)


def test_what_a_process_computes_by_itself_is_cut_by_rows():
    assert meshes.local_mesh().size == 8 and meshes.local_mesh({"data": 2, "fsdp": 2}).size == 4
    with pytest.raises(ValueError, match="mesh.tensor: what a process computes by itself is cut by rows only, over data and fsdp"):
        meshes.local_mesh({"tensor": 2})


@pytest.mark.parametrize("shape, shared", [
    ((1, 8, 1, 1), False), ((2, 2, 1, 2), False), ((1, 2, 4, 1), False), ((1, 1, 1, 8), True), ((1, 1, 8, 1), True)])
def test_hosts_hold_rows_of_their_own(shape, shared):
    host = lambda i: types.SimpleNamespace(process_index=i // 4)  # two hosts of four chips
    devices = np.empty(8, object)
    devices[:] = [host(i) for i in range(8)]
    place = types.SimpleNamespace(axis_names=meshes.AXES, devices=devices.reshape(shape), shape=dict(zip(meshes.AXES, shape)))
    if shared:
        with pytest.raises(ValueError, match=r"hosts \[0, 1\] would hold the same rows"):
            meshes.check_hosts(place)
    else:
        meshes.check_hosts(place)


def test_a_host_holds_the_parts_of_its_devices():
    """In runs, or interleaved where a torus is walked in rows; the axes behind are copies."""
    def place(shape, hosts):
        devices = np.empty(8, object)
        devices[:] = [types.SimpleNamespace(process_index=host) for host in hosts]
        return types.SimpleNamespace(axis_names=meshes.AXES, devices=devices.reshape(shape), shape=dict(zip(meshes.AXES, shape)))

    runs, woven = [0] * 4 + [1] * 4, [0, 0, 1, 1] * 2
    assert meshes.host_parts(place((1, 8, 1, 1), runs), 1) == ((4, 5, 6, 7), 8)
    assert meshes.host_parts(place((2, 4, 1, 1), woven), 1) == ((2, 3, 6, 7), 8)
    assert meshes.host_parts(place((2, 2, 1, 2), runs), 0) == ((0, 1), 4)
    assert meshes.host_parts(place((1, 4, 2, 1), woven), 1) == ((1, 3), 4)


def test_specs():
    mesh = meshes.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    assert meshes.spec(mesh, ("tap", "embed", "mlp"), (3, 512, 256)) == P(None, "fsdp", "tensor")
    assert meshes.spec(mesh, ("embed", "mlp"), (16, 16)) == P()  # small: replicated
    assert meshes.spec(mesh, ("embed", "mlp"), (1002, 1024)) == P(None, "tensor")  # 1002 does not divide by 4
    assert meshes.spec(mesh, ("embed", "embed"), (512, 512)) == P("fsdp", None)  # a mesh axis is used once
    assert meshes.spec(mesh, ("act_batch", None), (512, 512)) == P(("data", "fsdp"), None)
    with pytest.raises(ValueError, match="unknown logical axis name 'embde'"):
        meshes.spec(mesh, ("embde",), (4,))


def test_shardings_of_a_tree():
    mesh = meshes.make_mesh({"fsdp": 8})
    shapes = {"a": jax.ShapeDtypeStruct((1024, 128), jnp.float32), "b": {"bias": jax.ShapeDtypeStruct((7,), jnp.float32)}}
    found = meshes.shardings(mesh, {"a": ("embed", "mlp"), "b": {"bias": (None,)}}, shapes)
    assert found["a"].shard_shape((1024, 128)) == (128, 128)
    assert found["b"]["bias"].is_fully_replicated


def test_batches_are_cut_by_rows():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 4})
    x = np.arange(32, dtype=np.float32).reshape(16, 2)
    array = meshes.put_batch(mesh, {"x": x})["x"]
    assert {s.data.shape for s in array.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(array, x)
    meshes.check_batches(mesh, [{"b": 16}, {"b": 32}], 2)
    with pytest.raises(ValueError, match="b=12 rows, which do not divide by 8 batch shards x 1") as wrong:
        meshes.check_batches(mesh, [{"b": 16, "t": 64}, {"b": 12, "t": 96}])
    flag = re.search('--config.data.buckets="(.*)"', str(wrong.value))[1]
    assert flag == "({'b': 32, 't': 64}, {'b': 24, 't': 96})"
    meshes.check_batches(mesh, eval(flag))  # as the flag's parser reads it


def test_rows_are_taken_as_few_times_as_can_be_cut():
    rows = lambda own, parts: [bucket["b"] for bucket in meshes.more_rows([{"b": b} for b in own], parts)]
    assert rows([320, 64], 64) == [320, 64] and rows([320, 64], 128) == [640, 128]
    assert rows([12, 8], 16) == [48, 32] and rows([8], 3) == [24]


def conv_ratio(axes, sizes, x_spec, k_spec):
    """Median of sharded over true result of a plain SAME convolution."""
    x = jax.random.normal(jax.random.key(0), (4, 32, 8))
    k = jax.random.normal(jax.random.key(1), (3, 8, 16))
    f = lambda x, k: lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    count = int(np.prod(sizes))
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:count]).reshape(sizes), axes, axis_types=(AxisType.Auto,) * len(axes))
    y = jax.jit(f)(jax.device_put(x, NamedSharding(mesh, x_spec)), jax.device_put(k, NamedSharding(mesh, k_spec)))
    return float(np.median(np.asarray(y) / np.asarray(f(x, k))))


def test_xla_multiplies_time_and_channel_sharded_convolutions():
    """Time over one axis, channels over another: the result is the truth times the size of the channel axis.

    When this test fails because the ratio is 1, XLA was repaired: then the refusal in `mesh.sizes` can go.
    """
    assert conv_ratio(("sequence", "tensor"), (2, 2), P(None, "sequence"), P(None, None, "tensor")) == pytest.approx(2.0)
    assert conv_ratio(("sequence", "tensor"), (2, 4), P(None, "sequence"), P(None, None, "tensor")) == pytest.approx(4.0)


def test_xla_multiplies_where_time_is_cut_and_fsdp_cuts_the_kernel():
    """The same with the kernel over fsdp, along either of its channels, where the rows are not: so `layers.linear.gathered` makes kernels whole
    where time is cut, with which the results are right (the next test). When this fails because the ratio is 1, it can go."""
    for kernel in (P(None, "fsdp"), P(None, None, "fsdp")):
        assert conv_ratio(("fsdp", "sequence"), (2, 2), P(None, "sequence"), kernel) == pytest.approx(2.0)


@pytest.mark.parametrize("axes, sizes, x_spec, k_spec", [
    (("data", "fsdp"), (2, 4), P(("data",)), P(None, "fsdp")),
    (("fsdp",), (4,), P("fsdp"), P(None, "fsdp")),
    (("fsdp", "tensor"), (2, 2), P("fsdp"), P(None, "fsdp", "tensor")),
    (("sequence",), (4,), P(None, "sequence"), P()),
    (("fsdp", "sequence"), (2, 2), P("fsdp", "sequence"), P()),
    (("fsdp", "sequence"), (2, 2), P(None, "sequence"), P()),
])
def test_convolutions_are_right_on_the_meshes_we_allow(axes, sizes, x_spec, k_spec):
    assert conv_ratio(axes, sizes, x_spec, k_spec) == pytest.approx(1.0, abs=1e-5)
