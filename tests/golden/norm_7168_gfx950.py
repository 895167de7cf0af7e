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
def word_of(low, high):
    """Two values of 16 bits as a word."""
    low = low.to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(tl.uint16, bitcast=True).to(tl.uint32)
    return (low | (high << 16)).to(tl.int32, bitcast=True)


@triton.jit
def load_words(
    row_ptr,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Columns START to START + WIDTH as words.

    PAIRS: they are bfloat16 on a four-byte boundary.
    """
    if PAIRS:
        columns = START // 2 + tl.arange(0, WIDTH // 2)
        words = tl.load(row_ptr.to(tl.pointer_type(tl.int32)) + columns, eviction_policy=POLICY)
    else:
        columns = START + tl.arange(0, WIDTH)
        values = tl.load(row_ptr + columns, eviction_policy=POLICY)
        low, high = tl.split(tl.reshape(values, (WIDTH // 2, 2)))
        words = word_of(low, high)
    return words


@triton.jit
def pair_of(low, high):
    """Two fp32 values as a pair."""
    low = low.to(tl.uint32, bitcast=True).to(tl.uint64)
    high = high.to(tl.uint32, bitcast=True).to(tl.uint64)
    return low | (high << 32)


@triton.jit
def halves_of(pairs):
    """The inverse of pair_of."""
    low = pairs.to(tl.uint32).to(tl.float32, bitcast=True)
    high = (pairs >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def widened(words, ACT: tl.constexpr):
    """Words of ACT as pairs."""
    if ACT == tl.bfloat16:
        low = (words << 16).to(tl.float32, bitcast=True)
        high = (words & -0x10000).to(tl.float32, bitcast=True)
    else:
        low = words.to(tl.uint16).to(ACT, bitcast=True).to(tl.float32)
        high = (words >> 16).to(tl.uint16).to(ACT, bitcast=True).to(tl.float32)
    return pair_of(low, high)


@tl.core.extern
def rounded_word(low, high, act, _semantic=None):
    """Two fp32 values as a word of act, to nearest even: one instruction, where LLVM puts halves together by another."""
    form = "bf16" if tl.core._unwrap_if_constexpr(act) == tl.bfloat16 else "f16"
    return tl.inline_asm_elementwise(
        f"v_cvt_pk_{form}_f32 $0, $1, $2",
        "=v,v,v",
        [low, high],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
        _semantic=_semantic,
    )


@triton.jit
def rounded(pairs, ACT: tl.constexpr):
    """Pairs as words of ACT, to nearest even."""
    low, high = halves_of(pairs)
    return rounded_word(low, high, ACT)


@triton.jit
def load_row(
    row_ptr,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    POLICY: tl.constexpr,
):
    """Columns START to START + WIDTH as pairs."""
    return widened(load_words(row_ptr, START, WIDTH, PAIRS, POLICY), row_ptr.dtype.element_ty)


@triton.jit
def packed_mul(a, b):
    return tl.inline_asm_elementwise(
        "v_pk_mul_f32 $0, $1, $2",
        "=v,v,v",
        [a, b],
        dtype=tl.uint64,
        is_pure=True,
        pack=1,
    )


@triton.jit
def packed_add(a, b):
    return tl.inline_asm_elementwise(
        "v_pk_add_f32 $0, $1, $2",
        "=v,v,v",
        [a, b],
        dtype=tl.uint64,
        is_pure=True,
        pack=1,
    )


@triton.jit
def packed_fma(a, b, c):
    return tl.inline_asm_elementwise(
        "v_pk_fma_f32 $0, $1, $2, $3",
        "=v,v,v,v",
        [a, b, c],
        dtype=tl.uint64,
        is_pure=True,
        pack=1,
    )


@triton.jit
def lane_sums(pairs, WIDTH: tl.constexpr):
    """Sums of what each of 256 lanes holds of WIDTH values: runs of up to four pairs, as load_row loads them.

    Segments of different widths are added up lane by lane before one reduction over the lanes.
    """
    PER_LANE: tl.constexpr = WIDTH // 512
    RUN: tl.constexpr = PER_LANE if PER_LANE < 4 else 4
    runs = tl.reduce(tl.reshape(pairs, (PER_LANE // RUN, 256, RUN)), 2, packed_add)
    return tl.reduce(runs, 0, packed_add)


@triton.jit
def larger(a, b):
    """The larger of two values; NaN if one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def block_amax(values, NUM_BLOCKS: tl.constexpr):
    """The largest |value| of each 32 as fp32; NaN if one is."""
    low, high = halves_of(values)
    amax = larger(tl.abs(low), tl.abs(high))
    amax = tl.reduce(tl.reshape(amax, (NUM_BLOCKS, 16)), 1, larger)
    return amax


@triton.jit
def of_words(block_tile, NUM_BLOCKS: tl.constexpr, PACK: tl.constexpr):
    """What is the same for all 16 words of a block, (NUM_BLOCKS, 16), once for each word of PACK codes.

    Reduced from the words, it has the layout in which the packed codes come out, so that nothing passes through shared
    memory; the compiler sees that all operands of a reduction are one register.
    """
    return tl.max(tl.reshape(block_tile, (NUM_BLOCKS, 32 // PACK, PACK // 2)), axis=2)


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
    even, odd = tl.split(tl.reshape(values, (NUM_BLOCKS, 4, 2, 2)))
    p0, p2 = tl.split(even)
    p1, p3 = tl.split(odd)
    scale = of_words(scale, NUM_BLOCKS, 8).to(tl.float32, bitcast=True)
    low, high = halves_of(p0)
    # Its bytes are written one after another; until then it may hold anything, and what is at hand costs nothing.
    codes = low.to(tl.int32, bitcast=True)
    codes = convert_pair(codes, low, high, scale, 0)
    low, high = halves_of(p1)
    codes = convert_pair(codes, low, high, scale, 1)
    low, high = halves_of(p2)
    codes = convert_pair(codes, low, high, scale, 2)
    low, high = halves_of(p3)
    codes = convert_pair(codes, low, high, scale, 3)
    return codes


@triton.jit
def pack_4(values, scale, NUM_BLOCKS: tl.constexpr):
    """E2M1 codes of values / scale (block by block), 4 a word, the even element low."""
    p0, p1 = tl.split(tl.reshape(values, (NUM_BLOCKS, 8, 2)))
    scale = of_words(scale, NUM_BLOCKS, 4).to(tl.float32, bitcast=True)
    low, high = halves_of(p0)
    # Its bytes are written one after another; until then it may hold anything, and what is at hand costs nothing.
    codes = low.to(tl.int32, bitcast=True)
    codes = convert_pair(codes, low, high, scale, 0)
    low, high = halves_of(p1)
    codes = convert_pair(codes, low, high, scale, 1)
    return codes


@triton.jit
def store_mxfp4(
    values,
    amax,
    norm,
    q_ptr,
    scales_ptr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    PACK: tl.constexpr,
):
    """Quantises values * norm of columns COLUMN to COLUMN + WIDTH; stores codes and E8M0 scales.

    Every lane that has a part of a block stores its scale.
    """
    NUM_BLOCKS: tl.constexpr = WIDTH // 32
    WORDS: tl.constexpr = NUM_BLOCKS * 32 // PACK
    # The bits of an amax less two in the exponent and a quarter of the mantissa, which round the scale to even.
    BELOW: tl.constexpr = 0xE00000
    # What belongs to a block is spelled for each of its words: a lane computes it once all the same.
    amax = tl.broadcast_to(amax[:, None], (NUM_BLOCKS, 16))
    values = tl.reshape(values, (NUM_BLOCKS, 16))
    amax = amax * norm
    values = packed_mul(values, pair_of(norm, norm))
    bits = amax.to(tl.uint32, bitcast=True)
    # Its exponent field is e8; the conversion does not read the mantissa.
    factor = (tl.maximum(bits, BELOW) - BELOW).to(tl.int32, bitcast=True)
    e8 = factor >> 23
    finite = amax < float("inf")
    keep = finite & (bits >= 0x1F800000)  # 2^-64
    scale = tl.where(keep, e8, tl.where(finite, 0, 255))
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
    tl.store(scales_ptr + COLUMN // 32 + index // (32 // PACK), scale.to(tl.uint8))


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
    squares_2048 = packed_mul(x_0, x_0)
    squares_2048 = packed_fma(x_1, x_1, squares_2048)
    squares_2048 = packed_fma(x_2, x_2, squares_2048)
    squares_1024 = packed_mul(x_3, x_3)
    y_0 = packed_mul(x_0, weight_0)
    amax_0 = block_amax(y_0, 64)
    y_1 = packed_mul(x_1, weight_1)
    amax_1 = block_amax(y_1, 64)
    y_2 = packed_mul(x_2, weight_2)
    amax_2 = block_amax(y_2, 64)
    y_3 = packed_mul(x_3, weight_3)
    amax_3 = block_amax(y_3, 32)
    squares = lane_sums(squares_2048, 2048)
    squares = packed_add(squares, lane_sums(squares_1024, 1024))
    low, high = halves_of(squares)
    sum_of_squares = tl.sum(low + high)
    norm = tl.rsqrt(sum_of_squares * 0.00013950892857142856 + epsilon)  # 1 / 7168
    norm = tl.fma(sum_of_squares, 0.0, norm)  # NaN if the sum is not finite
    store_mxfp4(y_0, amax_0, norm, q_row, scales_row, 0, 2048, 8)
    store_mxfp4(y_1, amax_1, norm, q_row, scales_row, 2048, 2048, 8)
    store_mxfp4(y_2, amax_2, norm, q_row, scales_row, 4096, 2048, 8)
    store_mxfp4(y_3, amax_3, norm, q_row, scales_row, 6144, 1024, 4)


KERNEL = "rmsnorm_mxfp4_quant"
ROWS = 1
SPLITS = 1
PROGRAMS_PER_UNIT = 0
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
