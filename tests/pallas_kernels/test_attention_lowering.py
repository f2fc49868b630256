"""The attention kernels of every case and width are lowered for CUDA by name, without a GPU and without memory."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.paged_attention.api import paged_decode, paged_prefill
from pallas_kernels.paged_attention.cases import CASES, MAX_QUERIES, AttentionCase
from pallas_kernels.paged_attention.decode_layout import MOST_QUERIES
from pallas_kernels.paged_attention.reference import Pages

LAYERS, PAGES, WIDTH, ROWS, TOKENS = 32, 512, 128, 8, 300

struct = jax.ShapeDtypeStruct


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return struct(shape, jnp.int32)


def pool(case: AttentionCase, dtype=jnp.bfloat16) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None]:
    lead = (LAYERS, PAGES, case.kv_heads, case.page_size)
    if case.bits == 16:
        return struct((*lead, case.head_dim), dtype), None
    return struct((*lead, case.head_dim * case.bits // 8), jnp.uint8), struct((*lead, 2), jnp.float16)


def lower_decode(
    case: AttentionCase, implementation: str | None, dtype=jnp.bfloat16, *, rows: int = ROWS, **options
) -> str:
    def decode(q, k, v, *rest):
        k_pages, v_pages = Pages(k[0], k[1], case.bits), Pages(v[0], v[1], case.bits)
        return paged_decode(q, k_pages, v_pages, *rest, scale=0.1, implementation=implementation, **options)

    q = struct((rows, case.heads, case.head_dim), dtype)
    arguments = (q, pool(case, dtype), pool(case, dtype), ints(), ints(rows, WIDTH), ints(rows), ints())
    return jax.jit(decode).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def lower_prefill(case: AttentionCase, implementation: str | None, dtype=jnp.bfloat16, **options) -> str:
    def prefill(q, k, v, *rest):
        k_pages, v_pages = Pages(k[0], k[1], case.bits), Pages(v[0], v[1], case.bits)
        return paged_prefill(q, k_pages, v_pages, *rest, scale=0.1, implementation=implementation, **options)

    q = struct((TOKENS, case.heads, case.head_dim), dtype)
    rows = ints(ROWS, WIDTH), ints(ROWS + 1), ints(ROWS)
    arguments = (q, pool(case, dtype), pool(case, dtype), ints(), *rows, ints())
    return jax.jit(prefill).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def case_id(case: AttentionCase) -> str:
    return f"{case.model}-{case.heads}x{case.kv_heads}x{case.head_dim}-int{case.bits}-page{case.page_size}"


GROUPS = [AttentionCase("group", 2 * g, 2, 128, bits, 16) for g in (1, 3, 5, 8, 9, 16) for bits in (16, 8, 4)]
SIZES = [
    AttentionCase("size", 8, 2, h, bits, page) for h in (64, 128, 256) for bits in (16, 8, 4) for page in (32, 128)
]
WIDE = [AttentionCase("size", 8, 2, 96, bits, page) for bits in (16, 8, 4) for page in (16, 128)]
MANY = [AttentionCase("group", 2 * g, 2, h, 16) for g, h in ((17, 64), (32, 128))]


@pytest.mark.parametrize("case", [*CASES, *GROUPS, *SIZES, *WIDE, *MANY], ids=case_id)
def test_decode_kernel(case):
    text = lower_decode(case, "mosaic")
    assert text.count("@mosaic_gpu_v2") in (1, 2), "the kernel, and the merge where it doesn't do that itself"
    assert "stablehlo.while" not in text


def test_decode_of_few_rows_merges_its_chunks_itself():
    case = AttentionCase("any", 32, 8, 128)
    assert [lower_decode(case, "mosaic", rows=rows).count("@mosaic_gpu_v2") for rows in (1, 8, 9, 64)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("case", "most"), [*((case, 4) for case in CASES), *((CASES[6], most) for most in MAX_QUERIES)], ids=str
)
def test_decode_kernel_of_several_queries(case, most):
    text = lower_prefill(case, "mosaic", max_queries=most)
    assert text.count("@mosaic_gpu_v2") == 2, "the kernel and its merge"
    assert "stablehlo.while" not in text


def test_more_queries_than_decode_takes_are_prefill():
    case = AttentionCase("any", 8, 2, 128)
    assert lower_prefill(case, "mosaic", max_queries=MOST_QUERIES).count("@mosaic_gpu_v2") == 2
    assert lower_prefill(case, "mosaic", max_queries=MOST_QUERIES + 1).count("@mosaic_gpu_v2") == 1


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_answers_that_ride_along_take_the_decode_kernel(bits):
    case = AttentionCase("any", 8, 2, 128, bits)
    decode, prefill, both = (
        text.count("@mosaic_gpu_v2")
        for text in (
            lower_decode(case, "mosaic"),
            lower_prefill(case, "mosaic"),
            lower_prefill(case, "mosaic", mixed=True),
        )
    )
    assert both == decode + prefill


@pytest.mark.parametrize("options", [{"soft_cap": 30.0}, {"dtype": jnp.float16}], ids=str)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_decode_kernel_with(bits, options):
    assert "@mosaic_gpu_v2" in lower_decode(AttentionCase("any", 8, 2, 128, bits), "mosaic", **options)


PAGES_OF = [AttentionCase("page", 8, 2, 64, bits, page) for bits in (16, 8, 4) for page in (16, 32, 128)]


@pytest.mark.parametrize("case", [*CASES, *PAGES_OF], ids=case_id)
def test_prefill_kernel(case):
    text = lower_prefill(case, "mosaic")
    assert text.count("@mosaic_gpu_v2") == 1
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("options", [{"soft_cap": 30.0}, {"dtype": jnp.float16}], ids=str)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_prefill_kernel_with(bits, options):
    assert "@mosaic_gpu_v2" in lower_prefill(AttentionCase("any", 8, 2, 128, bits), "mosaic", **options)


def test_the_default_is_the_kernel_on_cuda_and_the_reference_elsewhere():
    case = AttentionCase("any", 8, 2, 64, 4)
    assert "@mosaic_gpu_v2" in lower_decode(case, None)
    assert "@mosaic_gpu_v2" not in lower_decode(case, "reference")
    assert "@mosaic_gpu_v2" in lower_prefill(case, None)
    assert "@mosaic_gpu_v2" not in lower_prefill(case, "reference")


@pytest.mark.parametrize(
    ("case", "dtype", "reason"),
    [
        (AttentionCase("page", 8, 2, 64, 16, 8), jnp.bfloat16, "page_size=8 must be"),
        (AttentionCase("row", 8, 2, 80, 4), jnp.bfloat16, "head_dim=80 at 4 bits"),
        (AttentionCase("head_dim", 8, 2, 40, 16), jnp.bfloat16, "head_dim=40 must be a multiple of 16"),
        (AttentionCase("dtype", 8, 2, 64, 16), jnp.float32, "queries of float32"),
    ],
    ids=lambda x: x.model if isinstance(x, AttentionCase) else "",
)
def test_what_the_kernel_cannot_take_goes_to_the_reference(case, dtype, reason):
    assert "@mosaic_gpu_v2" not in lower_decode(case, None, dtype)
    with pytest.raises(ValueError, match=reason):
        lower_decode(case, "mosaic", dtype)


@pytest.mark.parametrize(
    ("case", "dtype", "reason"),
    [
        (AttentionCase("page", 8, 2, 64, 16, 8), jnp.bfloat16, "page_size=8 must be"),
        (AttentionCase("head_dim", 8, 2, 192, 16), jnp.bfloat16, "head_dim=192 must be one of"),
        (AttentionCase("dtype", 8, 2, 64, 16), jnp.float32, "queries of float32"),
    ],
    ids=lambda x: x.model if isinstance(x, AttentionCase) else "",
)
def test_what_the_prefill_kernel_cannot_take_goes_to_the_reference(case, dtype, reason):
    assert "@mosaic_gpu_v2" not in lower_prefill(case, None, dtype)
    with pytest.raises(ValueError, match=reason):
        lower_prefill(case, "mosaic", dtype)
