"""Checkpoints: exact, on other meshes, refused when they do not fit, readable without an optimiser."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil

import jax
import numpy as np
import pytest
from test_step import BIG, close, config, same
from toy_system import Toy, batch

from ns2_jax.runtime import checkpoints, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state as states
from ns2_jax.runtime.program import Program


def program(sizes=None, system=BIG, **changes):
    return Program(config(rows=32, **changes), system, meshes.make_mesh(sizes or dict(fsdp=8)), contextlib.nullcontext)


def data(p, i=0, rows=32):
    return meshes.put_batch(p.mesh, {n: np.asarray(x) for n, x in batch(rows, p.system.inputs, p.system.outputs, i).items()})


def go_on(p, state, begin, end):
    for i in range(begin, end):
        state, _ = p(state, data(p, i), p.go())
    return state


def saved(p, workdir, count, **position):
    """A checkpoint after `count` steps, and the state."""
    state = go_on(p, p.create(data(p)), 0, count)
    store = checkpoints.Checkpoints(workdir, **position)
    store.save(state)
    store.close()
    return state


def test_round_trip_is_exact_and_sharded(tmp_path):
    p = program()
    state = saved(p, tmp_path, 2, dataset="abc", seed=1)
    store = checkpoints.Checkpoints(tmp_path, dataset="abc", seed=1)
    assert store.latest() == 2
    back = store.restore(p.target)
    same(back, state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: x.sharding, back) == jax.tree.map(lambda x: x.sharding, state)


def test_resume_on_smaller_meshes(tmp_path):
    """8 -> 4 -> 1 devices: restored bit for bit each time, and trained on within float rounding of one mesh."""
    eight, four, one = program(), program(dict(fsdp=4)), program(dict(fsdp=1))
    saved(eight, tmp_path, 2)
    straight = go_on(eight, eight.create(data(eight)), 0, 6)
    store = checkpoints.Checkpoints(tmp_path)
    state = store.restore(four.target)
    kernel = state["params"]["gen"]["kernel"]
    assert len(kernel.sharding.device_set) == 4 and not kernel.is_fully_replicated
    state = go_on(four, state, 2, 4)
    store.save(state)
    store.wait()
    before = jax.device_get(state)
    state = store.restore(one.target)
    same(jax.device_get(state), before)
    state = go_on(one, state, 4, 6)
    store.close()
    assert int(state["step"]) == 6
    close(jax.device_get(straight), jax.device_get(state), 5e-3)  # Adam on tiny gradients, as in test_step
    np.testing.assert_allclose(straight["rest"]["mean"], state["rest"]["mean"], rtol=1e-5, atol=1e-6)


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    p = program()
    saved(p, tmp_path, 3)
    store = checkpoints.Checkpoints(tmp_path)
    resumed = go_on(p, store.restore(p.target), 3, 6)
    store.close()
    same(resumed, go_on(p, p.create(data(p)), 0, 6))


def test_keep_and_steps(tmp_path):
    p = program(dict(fsdp=1), Toy())
    store = checkpoints.Checkpoints(tmp_path, keep=2)
    state = p.create(data(p))
    assert store.latest() is None and checkpoints.steps(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        store.restore(p.target)
    for i in range(4):
        state = go_on(p, state, i, i + 1)
        assert store.save(state)
    assert not store.save(state)  # already there
    store.close()
    assert checkpoints.steps(tmp_path) == [3, 4]


def test_another_position_in_the_data_is_refused(tmp_path):
    p = program(dict(fsdp=1), Toy())
    saved(p, tmp_path, 1, dataset="abc", seed=1)
    with pytest.raises(ValueError, match="trained on data set 'abc', config.data.path is 'abd'"):
        checkpoints.Checkpoints(tmp_path, dataset="abd", seed=1).restore(p.target)
    with pytest.raises(ValueError, match="trained with seed 1, config.seed is 2"):
        checkpoints.Checkpoints(tmp_path, dataset="abc", seed=2).restore(p.target)
    with pytest.raises(ValueError, match="trained on codes of codec , the codes are now of 0123456789ab"):
        checkpoints.Checkpoints(tmp_path, dataset="abc", seed=1, codec="0123456789ab").restore(p.target)


def test_another_order_of_the_data_is_refused_by_its_field(tmp_path):
    p = program(dict(fsdp=1), Toy())
    order = lambda **fields: lambda step: {f"config.data.{name}": value for name, value in fields.items()} | {"until": step}
    saved(p, tmp_path, 1, order=order(buckets=[{"b": 8, "t": 64}], hop=200))
    wrong = checkpoints.Checkpoints(tmp_path, order=order(buckets=[{"b": 4, "t": 64}], hop=200))
    with pytest.raises(ValueError, match=r"trained with config.data.buckets=\[{'b': 8, 't': 64}\], it is now \[{'b': 4, 't': 64}\]: step 1"):
        wrong.restore(p.target)
    more = checkpoints.Checkpoints(tmp_path, order=order(buckets=[{"b": 8, "t": 64}], hop=200, a_later_field=1))
    assert int(more.restore(p.target)["step"]) == 1  # a checkpoint from before a field existed
    wrong = checkpoints.Checkpoints(tmp_path, order=order(buckets=[{"b": 8, "t": 64}], hop=200, a_later_field=1), usual={"config.data.a_later_field": 0})
    with pytest.raises(ValueError, match="was trained with config.data.a_later_field=0, it is now 1"):
        wrong.restore(p.target)


def test_every_path_that_does_not_fit_is_listed(tmp_path):
    saved(program(dict(fsdp=1), Toy()), tmp_path, 1)
    store = checkpoints.Checkpoints(tmp_path)
    with pytest.raises(checkpoints.Mismatch) as wrong:
        store.restore(program(dict(fsdp=1), Toy(inputs=9)).target)
    text = str(wrong.value)
    assert "params/gen/kernel is float32[8, 4], expected float32[9, 4]" in text
    assert "rest/mean is float32[8], expected float32[9]" in text
    assert "3 averages and moments" in text and "table" not in text
    with pytest.raises(checkpoints.Mismatch) as wrong:
        store.restore(program(dict(fsdp=1), Toy(), by_key={"disc": {"peak": 0.1}}).target)
    text = str(wrong.value)
    assert text.count("missing opt/inner_states/disc/") == text.count("extra opt/inner_states/default/") + 2  # two counts more
    assert "opt/inner_states/disc/inner_state/1/mu/disc/table" in text


def write_config(path, **more):
    (path / "config.json").write_text(json.dumps({"system": "toy", **more}))


def test_a_model_is_the_average_in_numpy(tmp_path):
    p = program()
    state = saved(p, tmp_path, 3)
    write_config(tmp_path)
    tree, c = checkpoints.read_model(tmp_path)
    assert c == {"system": "toy"}
    same(tree["params"], jax.device_get(state["ema"]))
    same(tree["rest"], jax.device_get(state["rest"]))
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(tree))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 7; there are \[3\]"):
        checkpoints.read_model(tmp_path, 7)


def test_a_model_from_an_export_with_its_codec_beside(tmp_path):
    p = program(dict(fsdp=1), Toy())
    state = jax.device_get(p.create(data(p)))
    codec, model = tmp_path / "codec", tmp_path / "model"
    name = weights.write_weights(codec, {"params": state["params"], "rest": state["rest"]})
    weights.write_weights(model, {"params": state["params"]})
    write_config(model, codec={"hash": name, "path": "../codec"})
    tree, _ = checkpoints.read_model(model)
    same(tree["params"], state["params"])
    same(tree["rest"]["codec"], {"params": state["params"], "rest": state["rest"]})
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "away" / "link").symlink_to(model)
    same(checkpoints.read_model(tmp_path / "far" / "away" / "link")[0]["rest"]["codec"], tree["rest"]["codec"])
    weights.write_weights(codec, {"params": state["params"]})
    with pytest.raises(ValueError, match=f"needs codec {name}"):
        checkpoints.read_model(model)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a run"):
        checkpoints.read_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        checkpoints.read_model(tmp_path)
    write_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint yet"):
        checkpoints.read_model(tmp_path)


class WithCodec(Toy):
    """A system that carries another one, frozen, in `rest/codec`."""

    def init(self, rng, b):
        params, rest = super().init(rng, b)
        inner, inner_rest = super().init(jax.random.key(9), b)
        return params, {**rest, "codec": {"params": {"gen": inner["gen"]}, "rest": inner_rest}}


def test_init_from_a_run_puts_it_below_a_prefix(tmp_path):
    donor = program(dict(fsdp=1), Toy())
    trained = jax.device_get(saved(donor, tmp_path, 3))
    write_config(tmp_path)
    shapes = jax.eval_shape(lambda: WithCodec().init(jax.random.key(0), batch()))
    state = {"params": shapes[0], "rest": shapes[1]}
    del state
    fresh = dict(zip(("params", "rest"), WithCodec().init(jax.random.key(0), batch())))
    fresh["ema"] = fresh["params"]
    filled = checkpoints.fill(fresh, {"rest/codec": str(tmp_path)})
    same(filled["rest"]["codec"]["params"], {"gen": trained["ema"]["gen"]})  # disc is extra, and ignored
    same(filled["rest"]["codec"]["rest"], trained["rest"])
    same(filled["params"], fresh["params"])
    same(filled["rest"]["mean"], fresh["rest"]["mean"])


def test_init_from_params_also_starts_the_average(tmp_path):
    p = program()
    trained = jax.device_get(saved(p, tmp_path, 2))
    write_config(tmp_path)
    state = p.create(data(p, 5))
    filled = checkpoints.fill(state, {"params/gen": str(tmp_path)})
    same(jax.device_get(filled["params"]["gen"]), trained["ema"]["gen"])
    same(filled["ema"], filled["params"])
    assert filled["params"]["gen"]["kernel"].sharding == p.where["params"]["gen"]["kernel"]
    same(filled["params"]["disc"], state["params"]["disc"])


def test_what_an_older_model_lacks_stays_fresh_unless_it_would_stay_random(tmp_path):
    saved(program(dict(fsdp=1), Toy()), tmp_path, 1)
    write_config(tmp_path)
    params, rest = Toy().init(jax.random.key(0), batch())
    state = {"params": params | {"more": {"kernel": np.ones(2, np.float32)}}, "rest": rest}
    filled = checkpoints.fill(state, {"params": str(tmp_path)}, fresh=("params/more/.*",))
    np.testing.assert_array_equal(filled["params"]["more"]["kernel"], 1)
    with pytest.raises(checkpoints.Mismatch, match="params/more/kernel .* not found"):
        checkpoints.fill(state, {"params": str(tmp_path)}, fresh=("params/more/.*",), frozen=("params/more/.*",))


def test_init_from_lists_what_does_not_fit(tmp_path):
    saved(program(dict(fsdp=1), Toy(inputs=9)), tmp_path, 1)
    write_config(tmp_path)
    state = dict(zip(("params", "rest"), Toy().init(jax.random.key(0), batch())))
    state["ema"] = state["params"]
    with pytest.raises(checkpoints.Mismatch) as wrong:
        checkpoints.fill(state, {"params": str(tmp_path), "rest": str(tmp_path)})
    assert "params/gen/kernel float32[8, 4] found as [9, 4]" in str(wrong.value)
    with pytest.raises(ValueError, match="'rest/codec' names no part of the state"):
        checkpoints.fill(state, {"rest/codec": str(tmp_path)})


def test_a_half_written_checkpoint_is_not_there(tmp_path):
    p = program(dict(fsdp=1), Toy())
    saved(p, tmp_path, 2)
    (tmp_path / checkpoints.FOLDER / "5.orbax-checkpoint-tmp-1").mkdir()
    assert checkpoints.steps(tmp_path) == [2]
    store = checkpoints.Checkpoints(tmp_path)
    assert store.latest() == 2
    store.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    p, folder = program(dict(fsdp=1), Toy()), tmp_path_factory.mktemp("two_steps")
    with contextlib.closing(checkpoints.Checkpoints(folder)) as store:
        store.save(state := go_on(p, p.create(data(p)), 0, 1))
        store.save(go_on(p, state, 1, 2))
    return folder, p


@pytest.fixture
def twice(two_steps, tmp_path):
    """A run's folder with the checkpoints 1 and 2, and its program."""
    shutil.copytree(two_steps[0], tmp_path, dirs_exist_ok=True)
    return tmp_path, two_steps[1]


def test_the_same_step_can_be_torn_again(twice):
    folder, p = twice
    said = []
    for _ in range(3):
        (folder / checkpoints.FOLDER / "2" / "data" / "metadata").unlink()
        with contextlib.closing(checkpoints.Checkpoints(folder)) as store:
            state = store.restore(p.target, say=said.append)
            assert int(state["step"]) == 1
            assert store.save(go_on(p, state, 1, 2))
    kept = ["2.torn", "2.torn2", "2.torn3"]
    assert [line.split("it is kept as checkpoints/")[1].split(":")[0] for line in said] == kept
    assert all((folder / checkpoints.FOLDER / name / "train").is_dir() for name in kept)
    assert checkpoints.steps(folder) == [1, 2]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied"), MemoryError()])
def test_a_disk_that_fails_says_nothing_about_a_checkpoint(twice, monkeypatch, error):
    folder, p = twice
    with contextlib.closing(checkpoints.Checkpoints(folder)) as store:
        restore = checkpoints.ocp.StandardCheckpointHandler.restore

        def fail(handler, directory, **words):
            if directory.parent.name == "2":
                raise error
            return restore(handler, directory, **words)

        monkeypatch.setattr(checkpoints.ocp.StandardCheckpointHandler, "restore", fail)
        with pytest.raises(type(error)):
            store.restore(p.target)
    assert checkpoints.steps(folder) == [1, 2] and not list((folder / checkpoints.FOLDER).glob("*.torn*"))


@pytest.mark.parametrize("what, kept", [("cut", "2.torn"), ("zeros", "2.torn"), ("gone", "2.torn"), ("a link to itself", "")])
def test_what_tensorstore_says_of_lost_data_and_of_a_disk(twice, what, kept):
    folder, p = twice
    for path in (folder / checkpoints.FOLDER / "2" / "train" / "d").iterdir():
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[: size // 2] if what == "cut" else bytes(size))
        if what in ("gone", "a link to itself"):
            path.unlink()
        if what == "a link to itself":  # can't be opened, not even by root
            path.symlink_to(path.name)
    with contextlib.closing(checkpoints.Checkpoints(folder)) as store:
        if kept:
            assert int(store.restore(p.target)["step"]) == 1
        else:
            with pytest.raises(Exception, match="Too many levels of symbolic links"):
                store.restore(p.target)
    assert checkpoints.steps(folder) == ([1] if kept else [1, 2])
    assert [path.name for path in (folder / checkpoints.FOLDER).glob("*.torn*")] == ([kept] if kept else [])


def test_differences_and_flat_names():
    shape = lambda *s: jax.ShapeDtypeStruct(s, np.float32)
    lines = checkpoints.differences({"a": shape(1), "b": shape(2)}, {"a": shape(3), "c": shape(2)})
    assert lines == ["missing c float32[2]", "extra b float32[2]", "a is float32[1], expected float32[3]"]
    assert states.KEYS == ("step", "params", "rest", "opt", "ema")
