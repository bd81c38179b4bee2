import contextlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from llava_jax.checkpoint.native import integrity
from llava_jax.checkpoint.native.store import CheckpointStore
from llava_jax.errors import DataError
from llava_jax.runtime.mesh import make_mesh
from tests.fixtures.file_damage import DAMAGES, files_of_at_most


@struct.dataclass
class State:
    step: jax.Array
    trainable: dict[str, jax.Array]
    frozen: dict[str, jax.Array]  # may be empty
    rng: jax.Array


def state(value: float, mesh=(1, 8, 1), frozen=True) -> State:
    mesh = make_mesh(*mesh, jax.devices()[: int(np.prod(mesh))])
    put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    kernel = value + jnp.arange(64.0).reshape(16, 4)
    return State(
        put(jnp.int32(value)),
        {"llm/head/kernel": put(kernel, "fsdp"), "llm/norm/scale": put(jnp.full(16, value))},
        {"vision/cls/embedding": put(jnp.full((8, 2), value, jnp.bfloat16), None, "tensor")} if frozen else {},
        put(jax.random.PRNGKey(3)),
    )


def abstract(state: State):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_equal(a: State, b: State):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def saved(folder, *steps, keep=10) -> CheckpointStore:
    store = CheckpointStore(folder, keep)
    for step in steps:
        store.save(step, state(step), {"step": step}, {"stage": "one", "config": {"seed": step}})
    store.wait()
    return store


@pytest.mark.parametrize("mesh", [(1, 8, 1), (1, 2, 1), (1, 1, 1), (2, 2, 2)], ids=str)
def test_any_mesh_restores_a_checkpoint_of_another_mesh(tmp_path, mesh):
    saved(tmp_path / "checkpoints", 3).close()
    store = CheckpointStore(tmp_path / "checkpoints", 10)
    assert store.latest_step() == 3
    specs = abstract(state(0, mesh))
    restored, data = store.restore(3, specs)
    assert_equal(restored, state(3))
    assert data == {"step": 3} and store.read_run(3) == {"stage": "one", "config": {"seed": 3}}
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, specs)


def test_state_without_frozen_parameters_is_restored(tmp_path):
    store = CheckpointStore(tmp_path, 1)
    store.save(1, state(1, frozen=False), {}, {})
    store.wait()
    assert_equal(store.restore(1, abstract(state(0, frozen=False)))[0], state(1, frozen=False))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 8, 1)], ids=str)
def test_next_step_may_donate_arrays_being_saved(tmp_path, mesh):
    """`save` returns before anything is on disk, and the next steps overwrite the donated buffers."""
    mesh = make_mesh(*mesh, jax.devices()[: int(np.prod(mesh))])
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    add = jax.jit(lambda x: jax.tree.map(lambda x: x + 1, x), donate_argnums=0)
    x = {f"w{i}": jax.device_put(jnp.zeros(1 << 20), sharding) for i in range(4)}
    expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), x)
    store = CheckpointStore(tmp_path, 10)
    for step in range(1, 4):
        x = add(x)
        store.save(step, x, {}, {})
        for _ in range(5):
            x = add(x)
    store.wait()
    for step in range(1, 4):
        restored, _ = store.restore(step, expected)
        assert all(np.all(np.asarray(y) == 6 * step - 5) for y in restored.values()), step


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    store = saved(tmp_path, 1, 2, 3, 4, keep=2)
    store.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [3, 4]
    assert CheckpointStore(tmp_path, 2).latest_step() == 4


def test_unfinished_save_is_ignored_and_can_be_repeated(tmp_path):
    saved(tmp_path, 1, 2).close()
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")  # as left by a kill
    store = CheckpointStore(tmp_path, 10)
    assert store.latest_step() == 1
    assert_equal(store.restore(1, abstract(state(0)))[0], state(1))
    store.save(2, state(2), {"step": 2}, {})
    store.wait()
    assert store.latest_step() == 2
    assert_equal(store.restore(2, abstract(state(0)))[0], state(2))


def test_empty_folder_has_no_latest_step(tmp_path):
    assert CheckpointStore(tmp_path / "a" / "b", 1).latest_step() is None


def test_saving_a_step_again_changes_nothing(tmp_path):
    store = saved(tmp_path, 1)
    store.save(1, state(7), {"step": 7}, {})
    store.wait()
    assert_equal(store.restore(1, abstract(state(0)))[0], state(1))


def other_shape(s):
    return s.replace(trainable=s.trainable | {"llm/norm/scale": jnp.zeros(9)})


def more_trained(s):
    return s.replace(trainable=s.trainable | s.frozen, frozen={})


def truncate(folder):
    for file in (folder / "1" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove(folder):
    shutil.rmtree(folder / "1" / "state")


@pytest.mark.parametrize("wanted", [other_shape, more_trained], ids=lambda f: f.__name__)
def test_mismatched_state_raises_naming_the_checkpoint(tmp_path, wanted):
    store = saved(tmp_path / "checkpoints", 1)
    with pytest.raises(DataError, match=rf"checkpoint 1 in {tmp_path}/checkpoints cannot be restored: ."):
        store.restore(1, abstract(wanted(state(0))))


@pytest.mark.parametrize("damage", [truncate, remove], ids=lambda f: f.__name__)
def test_damaged_state_raises_naming_the_checkpoint(tmp_path, damage):
    saved(tmp_path / "checkpoints", 1).close()
    damage(tmp_path / "checkpoints")
    with pytest.raises(DataError, match=rf"checkpoint 1 in {tmp_path}/checkpoints cannot be restored: ."):
        CheckpointStore(tmp_path / "checkpoints", 10).restore(1, abstract(state(0)))


def test_damaged_run_record_raises_naming_the_checkpoint(tmp_path):
    saved(tmp_path, 1).close()
    (record,) = (tmp_path / "1" / "run").rglob("metadata")
    record.write_text('{"stage": "o')
    with pytest.raises(DataError, match=rf"checkpoint 1 in {tmp_path} cannot be restored: ."):
        CheckpointStore(tmp_path, 10).read_run(1)


def test_unwritable_folder_raises_naming_it(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "checkpoints", type(tmp_path)("/proc/none/checkpoints")):
        with pytest.raises(DataError, match=f"cannot be saved in {folder}: .*choose another --workdir"):
            CheckpointStore(folder, 1)


# --- damage on disk


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    saved(folder, 1, 2).close()
    return folder


@pytest.fixture
def copied(two, tmp_path):
    return shutil.copytree(two, tmp_path / "checkpoints")


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_to_every_checkpoint_file_is_detected(copied, damage):
    """All files except Orbax's commit marker, which nothing reads."""
    names = [name for name in files_of(copied / "2") if name != "commit_success.txt"]
    assert len(names) > 10 and integrity.SUMS_FILE in names
    for name in names:
        shutil.copytree(copied / "2", copied / "3")
        damage(copied / "3" / name)
        assert [fault.split()[0] for fault in integrity.faults(copied / "3")] == [name]
        shutil.rmtree(copied / "3")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_fallback_to_previous_checkpoint_names_the_damaged_file(copied, damage):
    file = next(p for p in sorted((copied / "2" / "state").rglob("d/*")))
    damage(file)
    store = CheckpointStore(copied, 10)
    latest = store.latest_intact()
    assert (latest.step, latest.damaged) == (1, (2,))
    assert f"checkpoint {copied}/2 is DAMAGED: {file.relative_to(copied / '2')}" in latest.notes[0]
    assert latest.notes[1:] == ("WARNING: falling back to checkpoint 1",)
    assert_equal(store.restore(1, abstract(state(0)))[0], state(1))


def test_newest_intact_checkpoint_is_chosen(copied, tmp_path):
    (copied / "1" / "run" / "metadata").unlink()  # older checkpoints are not checked
    latest = CheckpointStore(copied, 10).latest_intact()
    assert (latest.step, latest.damaged, latest.notes) == (2, (), ())
    latest = CheckpointStore(tmp_path / "none", 10).latest_intact()
    assert (latest.step, latest.damaged, latest.notes) == (None, (), ())


def test_no_intact_checkpoint_raises_naming_all(copied):
    (copied / "1" / "run" / "metadata").unlink()
    (copied / "2" / "data" / "metadata").unlink()
    with pytest.raises(
        DataError, match="2 is DAMAGED: data/metadata is missing; .*1 is DAMAGED: run/.* another --workdir"
    ):
        CheckpointStore(copied, 10).latest_intact()


def test_checkpoint_without_hashes_is_used_with_a_note(copied):
    (copied / "2" / integrity.SUMS_FILE).unlink()
    metadata = json.loads((copied / "2" / integrity.METADATA_FILE).read_text())
    (copied / "2" / integrity.METADATA_FILE).write_text(json.dumps(metadata | {"custom_metadata": {}}))
    store = CheckpointStore(copied, 10)
    latest = store.latest_intact()
    assert latest.step == 2 and len(latest.notes) == 1 and "before hashes existed" in latest.notes[0]
    assert_equal(store.restore(2, abstract(state(0)))[0], state(2))


def test_quarantined_checkpoint_is_kept_and_its_step_saved_again(copied):
    for name in ("2.damaged", "2.damaged-1"):
        (copied / "2" / "data" / "metadata").unlink()
        store = CheckpointStore(copied, 10)
        store.quarantine(store.latest_intact().damaged)
        assert store.latest_step() == 1 and (copied / name).is_dir()
        store.save(2, state(2), {"step": 2}, {})
        store.close()
    store = CheckpointStore(copied, 10)
    assert store.latest_intact().step == 2
    assert_equal(store.restore(2, abstract(state(0)))[0], state(2))


def test_every_process_uses_the_step_of_process_0(copied, monkeypatch):
    """Other processes may see other faults, or none if they read later."""
    store = CheckpointStore(copied, 10)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda own: np.int32(1) if own == -1 else own)
    latest = store.latest_intact()
    assert (latest.step, latest.damaged, latest.notes) == (1, (2,), ())


def test_checkpoint_is_complete_only_after_hashes_are_written(copied, monkeypatch):
    def fail(folder):
        assert folder.is_dir() and not (copied / "3").exists(), "hashes are written before the final rename"
        raise OSError(28, "No space left on device")

    store = CheckpointStore(copied, 10)
    monkeypatch.setattr(integrity, "write_hashes", fail)
    store.save(3, state(3), {}, {})
    with pytest.raises(DataError, match="checkpoint 3 cannot be written to .* bytes are free there.: .*No space left"):
        store.wait()
    assert integrity.steps_in(copied) == [1, 2] and CheckpointStore(copied, 10).latest_intact().step == 2


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_full_disk_raises_and_loses_only_that_checkpoint(copied, size, capfd):
    store = CheckpointStore(copied, 2)
    with files_of_at_most(size):
        with pytest.raises(DataError, match="checkpoint 3 cannot be written .* complete one is 2;"):
            store.save(3, state(3), {"step": 3}, {})
            store.wait()
        with contextlib.suppress(DataError):  # another Orbax thread may have failed too
            store.close()
    assert integrity.steps_in(copied) == [1, 2] and not integrity.faults(copied / "1") + integrity.faults(copied / "2")
    assert "Traceback" not in capfd.readouterr().err
    store = CheckpointStore(copied, 2)
    store.save(4, state(4), {"step": 4}, {})
    store.wait()
    assert integrity.steps_in(copied) == [2, 4]
    assert_equal(store.restore(4, abstract(state(0)))[0], state(4))
