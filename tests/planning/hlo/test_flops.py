"""FLOPs of the matmuls and attention kernels of a compiled program, and the model FLOPs of a 7B model."""

import math

import pytest

from llava_jax.config.architectures import LLM, VISION, ModelConfig
from llava_jax.models.flops import model_flops
from llava_jax.models.params import abstract_model
from llava_jax.planning.hlo.flops import kernels, product_flops
from llava_jax.planning.hlo.parse import parse_program
from tests.planning.saved_programs import program

L, D, F, S = 4, 2048, 8192, 1024  # of tpu_programs.py


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("matmul", 2 * 2048 * 4096 * 4096),
        ("loops", 30 * 2 * 1024**3),
        ("gathers", L * 2 * 2 * (2 * S) * D * F),  # two rows per chip
        # Two matmuls forward, four backward, and one of the forward pass recomputed: nothing needs the other.
        ("offload", L * 7 * 2 * (2 * S) * D * F),
    ],
)
def test_matmuls_count_every_run(name, flops):
    assert product_flops(program(name)) == flops


def one_product(operation: str, left: str, right: str, result: str) -> float:
    return product_flops(
        parse_program(f"""HloModule m
ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %c = {result} {operation}
}}
""")
    )


def test_out_of_bounds_window_positions_count_no_flops():
    """The compiler writes a matmul with an axis of heads in this way."""
    operation = "convolution(%a, %b), window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f"
    types = "bf16[2,1024,512,1]{2,1,0,3}", "bf16[512,8,128,1]{0,2,1,3}", "bf16[2,1024,8,128]{3,1,2,0}"
    assert one_product(operation, *types) == 2 * (2 * 1024) * 512 * (8 * 128)


def test_flops_of_a_patch_embedding_and_a_dot():
    operation = "convolution(%a, %b), window={size=14x14 stride=14x14}, dim_labels=b01f_01io->b01f"
    types = "f32[8,224,224,3]{3,2,1,0}", "f32[14,14,3,1024]{3,2,1,0}", "f32[8,16,16,1024]{3,2,1,0}"
    assert one_product(operation, *types) == 2 * 8 * 256 * (14 * 14 * 3) * 1024
    operation = "dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert one_product(operation, "f32[3,5]{1,0}", "f32[5,7]{1,0}", "f32[3,7]{1,0}") == 2 * 3 * 5 * 7


def test_attention_kernel_has_two_matmuls_forward_five_backward():
    """For the half of the scores that the mask leaves, with the heads and size of the queries: keys have fewer heads,
    and what the kernel keeps for the backward pass has 128 lanes, not 256."""
    attention, unknown = kernels(program("attention"))
    product = 2 * (2 * 8) * 1024 * 1024 * 256 / 2
    shares = [(k.flops / product, k.padded / product, k.times) for k in attention]
    assert shares == [(2, 2, 1), (5, 5, 1)] and unknown == {}


def attention_kernels(name: str, q: str, results: str):
    constraints = "operand_layout_constraints"
    return kernels(
        parse_program(f"""HloModule m
ENTRY %main (x: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  ROOT %{name}.1 = {results} custom-call(%x), custom_call_target="tpu_custom_call", {constraints}={{{q}, {q}}}
}}
""")
    )


def test_head_size_64_pads_and_split_backward_has_seven_matmuls():
    q = "bf16[2,8,1024,64]{3,2,1,0}"
    product = 2 * (2 * 8) * 1024 * 1024 * 64 / 2
    (forward,), _ = attention_kernels("splash_mha_fwd", q, q)
    assert (forward.flops, forward.padded) == (2 * product, 4 * product)
    (keys,), _ = attention_kernels("splash_mha_dkv", q, f"({q}, {q})")
    (queries,), _ = attention_kernels("splash_mha_dq", q, q)
    assert keys.flops + queries.flops == 7 * product


def test_unknown_kernels_are_named():
    assert attention_kernels("fused_norm", "bf16[8,128]{1,0}", "bf16[8,128]{1,0}") == ([], {"fused_norm": 1})


# ---------------------------------------------------------------------------------------------------- model FLOPs

ROWS, LENGTH = 32, 768


@pytest.mark.parametrize(("stage", "passes"), [("stage 1", 2), ("stage 2", 3)])
def test_model_flops_of_7b_match_hand_count(stage, passes):
    """2 per weight and token forward; as much again for the gradient of the input, and of the weights if trained.
    Attention counts half of all pairs and three passes in both stages: it has no weights, and all its inputs have
    gradients."""
    config = ModelConfig(
        VISION["clip_l14_224"], LLM["llama_7b"], "linear", "bfloat16", "bfloat16", "full", False, "xla"
    )
    shapes, _ = abstract_model(config)
    sizes = {path: math.prod(x.shape) for path, x in shapes.items()}
    trained = {path for path in sizes if path.startswith(("projector/", "llm/")[: passes - 1])}
    counted = model_flops(config, sizes, trained, ROWS, LENGTH, images=1)

    d, f, n, v, layers = 4096, 11_008, ROWS * LENGTH, 32_000, 32
    llm = layers * (4 * d * d + 3 * d * f) + d * v
    attention = layers * 4 * n * (LENGTH / 2) * d
    w, patches, blocks = 1024, 257, 23
    vision = ROWS * patches * (2 * blocks * 12 * w * w + blocks * 4 * patches * w) + ROWS * 256 * 2 * (14 * 14 * 3) * w
    projector = ROWS * 256 * 2 * w * d * 2  # forward and its own gradient: nothing before it trains
    assert counted == pytest.approx(passes * 2 * llm * n + 3 * attention + vision + projector, rel=1e-3)
    assert llm == pytest.approx(6.607e9, rel=1e-3)
