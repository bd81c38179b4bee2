"""Maps torch tensors to our parameters, in both directions: one TensorMapping per parameter.

Our parameters are stacked over the layers, with separate axes for heads and head size. torch has one tensor per layer,
and its `Linear` weights are [out, in]. `groups` lists for each torch axis the axes of ours (without the layer axis)
that it flattens: ((1, 2), (0,)) maps our [D, H, E] to torch's [H * E, D]. Sources: `modeling_clip.py`,
`modeling_llama.py` and `modeling_llava.py` of transformers; `llava/model` of the original.
"""

import dataclasses
import math

Groups = tuple[tuple[int, ...], ...]
LINEAR: Groups = ((1,), (0,))
HEADS_IN: Groups = ((1, 2), (0,))  # q, k, v
HEADS_OUT: Groups = ((2,), (0, 1))  # o
HEADS_BIAS: Groups = ((0, 1),)
CONVOLUTION: Groups = ((3,), (2,), (0,), (1,))
VECTOR: Groups = ((0,),)
TABLE: Groups = ((0,), (1,))


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """`path`: our path below the module. `name`: torch's name below the module's prefix, {} for the layer number."""

    path: str
    name: str
    groups: Groups

    @property
    def stacked(self) -> bool:
        return self.path.startswith("layers/")


def _kernel_and_bias(
    path: str, name: str, kernel: Groups, bias: Groups = VECTOR, kernel_name: str = "kernel"
) -> tuple[TensorMapping, ...]:
    return TensorMapping(f"{path}/{kernel_name}", f"{name}.weight", kernel), TensorMapping(
        f"{path}/bias", f"{name}.bias", bias
    )


def _norm(path: str, name: str) -> tuple[TensorMapping, ...]:
    return _kernel_and_bias(path, name, VECTOR, kernel_name="scale")


CLIP = (
    TensorMapping("cls/embedding", "embeddings.class_embedding", VECTOR),
    TensorMapping("patch/kernel", "embeddings.patch_embedding.weight", CONVOLUTION),
    TensorMapping("position/embedding", "embeddings.position_embedding.weight", TABLE),
    *_norm("pre_norm", "pre_layrnorm"),  # misspelled in every published file
    *_norm("post_norm", "post_layernorm"),
    *_norm("layers/attention_norm", "encoder.layers.{}.layer_norm1"),
    *_kernel_and_bias("layers/q", "encoder.layers.{}.self_attn.q_proj", HEADS_IN, HEADS_BIAS),
    *_kernel_and_bias("layers/k", "encoder.layers.{}.self_attn.k_proj", HEADS_IN, HEADS_BIAS),
    *_kernel_and_bias("layers/v", "encoder.layers.{}.self_attn.v_proj", HEADS_IN, HEADS_BIAS),
    *_kernel_and_bias("layers/o", "encoder.layers.{}.self_attn.out_proj", HEADS_OUT),
    *_norm("layers/mlp_norm", "encoder.layers.{}.layer_norm2"),
    *_kernel_and_bias("layers/up", "encoder.layers.{}.mlp.fc1", LINEAR),
    *_kernel_and_bias("layers/down", "encoder.layers.{}.mlp.fc2", LINEAR),
)
LLAMA = (
    TensorMapping("embed/embedding", "model.embed_tokens.weight", TABLE),
    TensorMapping("norm/scale", "model.norm.weight", VECTOR),
    TensorMapping("head/kernel", "lm_head.weight", LINEAR),
    TensorMapping("layers/attention_norm/scale", "model.layers.{}.input_layernorm.weight", VECTOR),
    *_kernel_and_bias("layers/q", "model.layers.{}.self_attn.q_proj", HEADS_IN, HEADS_BIAS),
    *_kernel_and_bias("layers/k", "model.layers.{}.self_attn.k_proj", HEADS_IN, HEADS_BIAS),
    *_kernel_and_bias("layers/v", "model.layers.{}.self_attn.v_proj", HEADS_IN, HEADS_BIAS),
    *_kernel_and_bias("layers/o", "model.layers.{}.self_attn.o_proj", HEADS_OUT),
    TensorMapping("layers/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight", VECTOR),
    *_kernel_and_bias("layers/gate", "model.layers.{}.mlp.gate_proj", LINEAR),
    *_kernel_and_bias("layers/up", "model.layers.{}.mlp.up_proj", LINEAR),
    *_kernel_and_bias("layers/down", "model.layers.{}.mlp.down_proj", LINEAR),
)


def projector_mappings(depth: int, dialect: str) -> tuple[TensorMapping, ...]:
    """Returns the mappings of a projector with `depth` Linear layers. dialect: `hf` names them linear_1, linear_2;
    `llava` by their index in a torch Sequential with GELUs between (0, 2, 4), and a single layer not at all."""
    mappings = []
    for i in range(1, depth + 1):
        layer = f"linear_{i}" if dialect == "hf" else f"{2 * i - 2}"
        name = layer if dialect == "hf" or depth > 1 else ""
        mappings += [
            TensorMapping(f"linear_{i}/kernel", f"{name}.weight".removeprefix("."), LINEAR),
            TensorMapping(f"linear_{i}/bias", f"{name}.bias".removeprefix("."), VECTOR),
        ]
    return tuple(mappings)


def torch_shape(groups: Groups, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the torch tensor's shape for our `shape` (without the layer axis).

    >>> torch_shape(HEADS_IN, (4096, 32, 128))
    (4096, 4096)
    """
    return tuple(math.prod(shape[axis] for axis in group) for group in groups)


def torch_index(groups: Groups, shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[slice, ...]:
    """Returns the part of the torch tensor that corresponds to `index` of ours. Of axes flattened into one, only the
    first may be split: heads are sharded, the inside of a head never is."""
    torch_slices = []
    for group in groups:
        first, *inner_axes = group
        inner_size = math.prod(shape[axis] for axis in inner_axes)
        assert all(index[axis].indices(shape[axis]) == (0, shape[axis], 1) for axis in inner_axes), (groups, index)
        start, stop, step = index[first].indices(shape[first])
        assert step == 1
        torch_slices.append(slice(start * inner_size, stop * inner_size))
    return tuple(torch_slices)


def tensor_names(mapping: TensorMapping, shape: tuple[int, ...]) -> list[str]:
    """Returns the names of the torch tensors of our parameter of `shape`: one, or one per layer."""
    return [mapping.name.format(i) for i in range(shape[0])] if mapping.stacked else [mapping.name]
