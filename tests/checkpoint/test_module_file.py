import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import save_file

from llava_jax.checkpoint.architecture_json import architecture_to_json
from llava_jax.checkpoint.module_file import BUILT_IN, load_module, module_architecture, resolve, save_module
from llava_jax.errors import DataError
from llava_jax.runtime.mesh import make_mesh
from tests.fixtures.tiny_models import EVEN

SPECS = {
    "llm/embed/embedding": ((16, 8), PartitionSpec("tensor", "fsdp")),
    "llm/layers/q/kernel": ((2, 8, 4, 2), PartitionSpec(None, "fsdp", "tensor", None)),
    "llm/norm/scale": ((8,), PartitionSpec("fsdp")),
}


def like(dtype="float32", mesh=(2, 2, 2)) -> dict[str, jax.ShapeDtypeStruct]:
    mesh = make_mesh(*mesh, jax.devices()[: int(np.prod(mesh))])
    return {
        path: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for path, (shape, spec) in SPECS.items()
    }


def params(dtype="float32") -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    tensors = {path: jnp.asarray(rng.standard_normal(shape), dtype) for path, (shape, _) in SPECS.items()}
    return tensors | {"projector/linear_1/bias": jnp.ones(3), "llm_other/bias": jnp.ones(3)}


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_saved_module_loads_bit_equal_and_sharded(tmp_path, stored, wanted):
    file = save_module(str(tmp_path / "new" / "llm.safetensors"), "llm", params(), stored, EVEN)
    loaded = load_module(str(file), "llm", like(wanted))
    assert loaded.keys() == SPECS.keys()
    for path, x in loaded.items():
        shape, spec = SPECS[path]
        assert x.dtype == wanted and x.sharding.spec == spec and len(x.addressable_shards) == 8
        expected = np.asarray(params()[path].astype(stored).astype(wanted))
        np.testing.assert_array_equal(np.asarray(x), expected)  # bit for bit: bfloat16 fits into float32
    assert not list(tmp_path.rglob("*.partial"))


def test_equal_weights_make_equal_files(tmp_path):
    files = [save_module(str(tmp_path / f"{i}.safetensors"), "llm", params(), "float32", EVEN) for i in range(8)]
    assert len({file.read_bytes() for file in files}) == 1


def test_each_device_reads_only_its_slice(tmp_path, monkeypatch):
    file = save_module(str(tmp_path / "llm.safetensors"), "llm", params(), "float32", EVEN)
    reads = []
    make = jax.make_array_from_callback

    def spy(shape, sharding, callback):
        return make(shape, sharding, lambda index: reads.append((shape, callback(index).shape)) or callback(index))

    monkeypatch.setattr(jax, "make_array_from_callback", spy)
    load_module(str(file), "llm", like())
    assert {part for shape, part in reads if shape == (16, 8)} == {(8, 4)}


def test_file_has_parameter_names_and_metadata(tmp_path):
    file = save_module(str(tmp_path / "llm.safetensors"), "llm", params(), "float32", EVEN)
    with safe_open(file, "np") as tensors:
        assert set(tensors.keys()) == {"embed/embedding", "layers/q/kernel", "norm/scale"}
        metadata = json.loads(tensors.metadata()["about"])
    assert metadata == {"module": "llm", "architecture": architecture_to_json(EVEN)}
    assert module_architecture(file, "llm") == EVEN


def write(path, tensors) -> str:
    save_file(tensors, path)
    return str(path)


GOOD = {path.removeprefix("llm/"): np.ones(shape, np.float32) for path, (shape, _) in SPECS.items()}


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({k: v for k, v in GOOD.items() if k != "norm/scale"}, r"missing \['norm/scale'\], unexpected none"),
        (GOOD | {"head/kernel": np.ones(2, np.float32)}, r"missing none, unexpected \['head/kernel'\]"),
        (GOOD | {"norm/scale": np.ones(9, np.float32)}, r"tensor norm/scale has shape \(9,\), the model needs \(8,\)"),
        (GOOD | {"norm/scale": np.ones((8, 1), np.float32)}, r"norm/scale has shape \(8, 1\)"),
        (GOOD | {"norm/scale": np.ones(8, np.int8)}, "tensor norm/scale holds I8"),
    ],
    ids=["missing", "unexpected", "shape", "rank", "integers"],
)
def test_mismatched_file_raises_naming_file_and_tensor(tmp_path, tensors, message):
    file = write(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(DataError, match=message) as fault:
        load_module(file, "llm", like())
    assert file in str(fault.value)


@pytest.mark.parametrize("damage", ["absent", "empty", "folder", "truncated", "text"])
def test_unreadable_file_raises_naming_file_and_module(tmp_path, damage):
    file = tmp_path / "llm.safetensors"
    if damage == "folder":
        file.mkdir()
    elif damage != "absent":
        whole = open(write(file, GOOD), "rb").read()
        file.write_bytes({"empty": b"", "truncated": whole[:-100], "text": b"weights " * 100}[damage])
    with pytest.raises(
        DataError, match=r"llm.safetensors holds no" if damage == "folder" else r"llm.safetensors .*`llm`"
    ):
        load_module(str(file), "llm", like())


@pytest.mark.parametrize("content, clause", [(b"version https://git-lfs\n", "git-lfs"), (b"", "is empty")])
def test_file_of_another_kind_is_called_what_it_is(tmp_path, content, clause):
    (tmp_path / "llm.safetensors").write_bytes(content)
    for read in (
        lambda file: load_module(file, "llm", like()),
        lambda file: module_architecture(resolve(file), "llm"),
    ):
        with pytest.raises(DataError, match=f"llm.safetensors .*{clause}"):
            read(str(tmp_path / "llm.safetensors"))


def test_other_float_dtypes_load(tmp_path):
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        file = write(tmp_path / "llm.safetensors", {k: v.astype(dtype) * 0.5 for k, v in GOOD.items()})
        assert all(x.dtype == jnp.float32 and np.all(x == 0.5) for x in load_module(file, "llm", like()).values())


def test_unwritable_folder_raises_naming_the_file(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "llm.safetensors", "/proc/none/llm.safetensors"):
        with pytest.raises(DataError, match=r"llm.safetensors .*`llm`"):
            save_module(str(path), "llm", params(), "float32", EVEN)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    file = save_module(str(tmp_path / "llm.safetensors"), "llm", params(), "float32", EVEN)
    before = file.read_bytes()

    def full(tensors, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llava_jax.checkpoint.module_file.save_file", full)
    with pytest.raises(DataError, match=r"llm.safetensors.*No space left"):
        save_module(str(file), "llm", params(), "bfloat16", EVEN)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_tiny_names_are_built_in_and_others_are_paths():
    assert resolve("tiny:vision") == BUILT_IN / "vision.safetensors"
    assert str(resolve("some/vision.safetensors")) == "some/vision.safetensors"
