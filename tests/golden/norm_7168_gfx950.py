# rmsnorm_mxfp4_quant, rendered by tunegen 0.1.0; edit the template, not this file.
#
# template  templates/rmsnorm_mxfp4.py.jinja (template hash)
# target    gfx950
# shape     hidden_size=7168
# rounding  none
# config    splits=1, rows=1, programs_per_unit=0, num_stages=1, cover=3x2048+1024, num_warps=4, load_policy=default, store_policy=default, waves_per_eu=0
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
def lane_sums(values, WIDTH: tl.constexpr):
    """Sums of what each of 256 lanes holds of WIDTH values: runs of up to 8, as load_row loads them.

    Segments of different widths are added up lane by lane before one reduction over the lanes.
    """
    PER_LANE: tl.constexpr = WIDTH // 256
    RUN: tl.constexpr = PER_LANE if PER_LANE < 8 else 8
    runs = tl.sum(tl.reshape(values, (PER_LANE // RUN, 256, RUN)), axis=2)
    return tl.sum(runs, axis=0)


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


@tl.core.extern
def convert_pair(word, low, high, scale, byte, _semantic=None):
    """Writes the E2M1 codes of low / scale (low nibble) and high / scale into one byte of word."""
    types = (tl.int32, tl.float32, tl.float32, tl.float32, tl.int32)
    return tl.core.extern_elementwise(
        "",
        "",
        [word, low, high, scale, byte],
        {types: ("llvm.amdgcn.cvt.scalef32.pk.fp4.f32", tl.int32)},
        is_pure=True,
        _semantic=_semantic,
    )


@triton.jit
def pack_8(values, scale, NUM_BLOCKS: tl.constexpr):
    """E2M1 codes of values / scale (block by block), 8 a word, the even element low."""
    even, odd = tl.split(tl.reshape(values, (NUM_BLOCKS, 4, 4, 2)))
    even_04, even_26 = tl.split(tl.reshape(even, (NUM_BLOCKS, 4, 2, 2)))
    odd_15, odd_37 = tl.split(tl.reshape(odd, (NUM_BLOCKS, 4, 2, 2)))
    v0, v4 = tl.split(even_04)
    v2, v6 = tl.split(even_26)
    v1, v5 = tl.split(odd_15)
    v3, v7 = tl.split(odd_37)
    scale = of_words(scale, NUM_BLOCKS, 8)
    word = tl.zeros((NUM_BLOCKS, 4), dtype=tl.int32)
    word = convert_pair(word, v0, v1, scale, 0)
    word = convert_pair(word, v2, v3, scale, 1)
    word = convert_pair(word, v4, v5, scale, 2)
    word = convert_pair(word, v6, v7, scale, 3)
    return word


@triton.jit
def pack_4(values, scale, NUM_BLOCKS: tl.constexpr):
    """E2M1 codes of values / scale (block by block), 4 a word, the even element low."""
    even, odd = tl.split(tl.reshape(values, (NUM_BLOCKS, 8, 2, 2)))
    v0, v2 = tl.split(even)
    v1, v3 = tl.split(odd)
    scale = of_words(scale, NUM_BLOCKS, 4)
    word = tl.zeros((NUM_BLOCKS, 8), dtype=tl.int32)
    word = convert_pair(word, v0, v1, scale, 0)
    word = convert_pair(word, v2, v3, scale, 1)
    return word


@triton.jit
def store_mxfp4(
    values,
    amax_bits,
    norm,
    q_ptr,
    scales_ptr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    PACK: tl.constexpr,
):
    """Quantises values * norm of columns COLUMN to COLUMN + WIDTH; stores codes and E8M0 scales.

    The lane that holds a block's first word stores its scale.
    """
    NUM_BLOCKS: tl.constexpr = WIDTH // 32
    WORDS: tl.constexpr = NUM_BLOCKS * 32 // PACK
    # What belongs to a block is spelled for each of its elements: a lane computes it once all the same.
    amax_bits = tl.broadcast_to(amax_bits[:, None], (NUM_BLOCKS, 32))
    amax_bits = (amax_bits.to(tl.float32, bitcast=True) * norm).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    finite = amax_bits < 0x7F800000
    e8 = tl.maximum(((amax_bits + 0x200000) >> 23) - 2, 0)
    keep = finite & (amax_bits >= 0x1F800000)  # 2^-64
    scale = tl.where(keep, e8, tl.where(finite, 0, 255))
    values = tl.reshape(values, (NUM_BLOCKS, 32))
    values = values * norm
    factor = (e8 << 23).to(tl.float32, bitcast=True)
    if PACK == 8:
        words = pack_8(values, factor, NUM_BLOCKS)
    elif PACK == 4:
        words = pack_4(values, factor, NUM_BLOCKS)
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
def rmsnorm_mxfp4_quant(
    x_ptr,
    weight_ptr,
    q_ptr,
    scales_ptr,
    num_tokens,
    x_stride,
    epsilon,
    PAIRS: tl.constexpr,
):
    tile = tl.program_id(0)
    first_row = tile.to(tl.int64)
    x_row = x_ptr + first_row * x_stride
    q_row = q_ptr + first_row * 3584
    scales_row = scales_ptr + first_row * 224
    weight_0 = load_row(weight_ptr, 0, 2048, PAIRS, "")
    weight_1 = load_row(weight_ptr, 2048, 2048, PAIRS, "")
    weight_2 = load_row(weight_ptr, 4096, 2048, PAIRS, "")
    weight_3 = load_row(weight_ptr, 6144, 1024, PAIRS, "")
    x_0 = load_row(x_row, 0, 2048, PAIRS, "")
    x_1 = load_row(x_row, 2048, 2048, PAIRS, "")
    x_2 = load_row(x_row, 4096, 2048, PAIRS, "")
    x_3 = load_row(x_row, 6144, 1024, PAIRS, "")
    squares_2048 = x_0 * x_0
    squares_2048 = tl.fma(x_1, x_1, squares_2048)
    squares_2048 = tl.fma(x_2, x_2, squares_2048)
    squares_1024 = x_3 * x_3
    y_0 = x_0 * weight_0
    amax_0 = block_amax_bits(y_0, 64)
    y_1 = x_1 * weight_1
    amax_1 = block_amax_bits(y_1, 64)
    y_2 = x_2 * weight_2
    amax_2 = block_amax_bits(y_2, 64)
    y_3 = x_3 * weight_3
    amax_3 = block_amax_bits(y_3, 32)
    squares = lane_sums(squares_2048, 2048)
    squares += lane_sums(squares_1024, 1024)
    sum_of_squares = tl.sum(squares)
    norm = tl.rsqrt(sum_of_squares * 0.00013950892857142856 + epsilon)  # 1 / 7168
    norm = tl.where(sum_of_squares < float("inf"), norm, float("nan"))
    store_mxfp4(y_0, amax_0, norm, q_row, scales_row, 0, 2048, 8)
    store_mxfp4(y_1, amax_1, norm, q_row, scales_row, 2048, 2048, 8)
    store_mxfp4(y_2, amax_2, norm, q_row, scales_row, 4096, 2048, 8)
    store_mxfp4(y_3, amax_3, norm, q_row, scales_row, 6144, 1024, 4)


KERNEL = "rmsnorm_mxfp4_quant"
ROWS = 1
SPLITS = 1
PROGRAMS_PER_UNIT = 0
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
