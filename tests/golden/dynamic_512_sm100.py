# dynamic_mxfp4_quant, rendered by tunegen 0.1.0; edit the template, not this file.
#
# template  templates/rmsnorm_mxfp4.py.jinja (template hash)
# target    sm100
# shape     hidden_size=512
# rounding  none
# config    splits=1, rows=1, programs_per_unit=0, num_stages=1, cover=2x256, num_warps=1, load_policy=default, store_policy=default, max_registers=0
import triton
import triton.language as tl


@triton.jit
def load_row(
    row_ptr,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Columns START to START + WIDTH as fp32.

    PAIRS: the values are bfloat16 on a four-byte boundary. Two are loaded as one word, whose halves take one
    operation each to widen; values loaded one by one take three for two.
    """
    if PAIRS:
        columns = START // 2 + tl.arange(0, WIDTH // 2)
        words = tl.load(row_ptr.to(tl.pointer_type(tl.int32)) + columns, eviction_policy=POLICY)
        even = (words << 16).to(tl.float32, bitcast=True)
        odd = (words & -0x10000).to(tl.float32, bitcast=True)
        values = tl.reshape(tl.join(even, odd), (WIDTH,))
    else:
        columns = START + tl.arange(0, WIDTH)
        values = tl.load(row_ptr + columns, eviction_policy=POLICY).to(tl.float32)
    return values


@triton.jit
def block_amax_bits(values, NUM_BLOCKS: tl.constexpr):
    """Bit pattern of the largest |value| of each 32: compared as an integer, so that NaN wins."""
    bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(tl.reshape(bits, (NUM_BLOCKS, 32)), axis=1)


@triton.jit
def of_words(block_tile, NUM_BLOCKS: tl.constexpr, PACK: tl.constexpr):
    """What is the same for all 32 elements of a block, (NUM_BLOCKS, 32), once for each word of PACK elements.

    Reduced from the elements, it has the layout in which the packed words come out, so that nothing passes
    through shared memory; the compiler sees that all operands of a reduction are one register.
    """
    return tl.max(tl.reshape(block_tile, (NUM_BLOCKS, 32 // PACK, PACK)), axis=2)


@triton.jit
def convert_pair(low, high):
    """The E2M1 codes of low (low nibble) and high as a byte."""
    return tl.inline_asm_elementwise(
        "{ .reg .b8 pair; cvt.rn.satfinite.e2m1x2.f32 pair, $2, $1; cvt.u32.u8 $0, pair; }",
        "=r,f,f",
        [low, high],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def pack_8(values, scale, NUM_BLOCKS: tl.constexpr):
    """E2M1 codes of values * scale (block by block), 8 a word, the even element low."""
    values = values * scale
    even, odd = tl.split(tl.reshape(values, (NUM_BLOCKS, 4, 4, 2)))
    even_04, even_26 = tl.split(tl.reshape(even, (NUM_BLOCKS, 4, 2, 2)))
    odd_15, odd_37 = tl.split(tl.reshape(odd, (NUM_BLOCKS, 4, 2, 2)))
    v0, v4 = tl.split(even_04)
    v2, v6 = tl.split(even_26)
    v1, v5 = tl.split(odd_15)
    v3, v7 = tl.split(odd_37)
    word = convert_pair(v0, v1)
    word |= convert_pair(v2, v3) << 8
    word |= convert_pair(v4, v5) << 16
    word |= convert_pair(v6, v7) << 24
    return word


@triton.jit
def store_mxfp4(
    values,
    amax_bits,
    q_ptr,
    scales_ptr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    PACK: tl.constexpr,
):
    """Quantises values of columns COLUMN to COLUMN + WIDTH; stores codes and E8M0 scales.

    The lane that holds a block's first word stores its scale.
    """
    NUM_BLOCKS: tl.constexpr = WIDTH // 32
    WORDS: tl.constexpr = NUM_BLOCKS * 32 // PACK
    # What belongs to a block is spelled for each of its elements: a lane computes it once all the same.
    amax_bits = tl.broadcast_to(amax_bits[:, None], (NUM_BLOCKS, 32))
    finite = amax_bits < 0x7F800000
    e8 = tl.maximum(((amax_bits + 0x200000) >> 23) - 2, 0)
    keep = finite
    scale = tl.where(keep, e8, 255)
    values = tl.reshape(values, (NUM_BLOCKS, 32))
    factor = ((254 - e8) << 23).to(tl.float32, bitcast=True)
    words = pack_8(values, factor, NUM_BLOCKS)
    words = tl.reshape(words & of_words(tl.where(keep, -1, 0), NUM_BLOCKS, PACK), (WORDS,))
    scale = tl.reshape(of_words(scale, NUM_BLOCKS, PACK), (WORDS,))

    word_type: tl.constexpr = tl.int32 if PACK == 8 else (tl.int16 if PACK == 4 else tl.int8)
    # Said not to be contiguous, words are stored by the lanes that hold them, not regrouped for wider stores.
    index = tl.max_contiguous(tl.arange(0, WORDS), 1)
    words_ptr = q_ptr.to(tl.pointer_type(word_type)) + COLUMN // PACK + index
    tl.store(words_ptr, words.to(word_type))
    first = index % (32 // PACK) == 0
    tl.store(scales_ptr + COLUMN // 32 + index // (32 // PACK), scale.to(tl.uint8), mask=first)


@triton.jit(do_not_specialize=["num_tokens"])
def dynamic_mxfp4_quant(
    x_ptr,
    q_ptr,
    scales_ptr,
    num_tokens,
    x_stride,
    PAIRS: tl.constexpr,
):
    tile = tl.program_id(0)
    first_row = tile.to(tl.int64)
    x_row = x_ptr + first_row * x_stride
    q_row = q_ptr + first_row * 256
    scales_row = scales_ptr + first_row * 16
    x_0 = load_row(x_row, 0, 256, PAIRS, "")
    x_1 = load_row(x_row, 256, 256, PAIRS, "")
    amax_0 = block_amax_bits(x_0, 8)
    store_mxfp4(x_0, amax_0, q_row, scales_row, 0, 256, 8)
    amax_1 = block_amax_bits(x_1, 8)
    store_mxfp4(x_1, amax_1, q_row, scales_row, 256, 256, 8)


KERNEL = "dynamic_mxfp4_quant"
ROWS = 1
SPLITS = 1
PROGRAMS_PER_UNIT = 0
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}
