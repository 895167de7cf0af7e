# rmsnorm_mxfp4_quant, rendered by tunegen 0.1.0; edit the template, not this file.
#
# template  templates/rmsnorm_mxfp4.py.jinja (template hash)
# target    gfx942
# shape     hidden_size=96
# rounding  norm_output
# config    splits=1, rows=1, programs_per_unit=0, num_stages=1, cover=64+32, num_warps=1, load_policy=default, store_policy=default, waves_per_eu=0
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
def minus_zero_of(num_tokens):
    """-0.0, which the compiler cannot know: for that, num_tokens might be negative."""
    return (~num_tokens & -0x80000000).to(tl.float32, bitcast=True)


@triton.jit
def rounded_product(a, b, minus_zero, ACT: tl.constexpr):
    """a * b rounded to ACT, as fp32.

    LLVM makes one v_fma_mixlo_f16 of a product and its rounding to fp16, which adds +0: -0 would become +0.
    """
    if ACT == tl.float16:
        product = tl.fma(a, b, minus_zero)
    else:
        product = a * b
    return product.to(ACT).to(tl.float32)


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
def round_e2m1(a, scale):
    """Bits of 2^22 + half the E2M1 code of v = a scale, which is below 7, rounded to nearest even.

    The code is the nearest-even integer of min(2 v, v + 2, v / 2 + 4), and rounding is monotonic: it is the least
    of the three, each rounded once as it is added to 2^22, where an ulp is a half. Positive floats are in the
    order of their bits, and the least of three integers is one instruction.
    """
    below_2 = tl.fma(a, scale, 4194304.0).to(tl.int32, bitcast=True)
    below_4 = tl.fma(a, scale * 0.5, 4194305.0).to(tl.int32, bitcast=True)
    above_4 = tl.fma(a, scale * 0.25, 4194306.0).to(tl.int32, bitcast=True)
    return tl.minimum(tl.minimum(below_2, below_4), above_4)


@triton.jit
def append_sign(signs, bits):
    """Shifts the top four bits of a value in from the right: its sign comes to the nibble's top."""
    return (signs << 4) | ((bits >> 28) & 0xF)


@triton.jit
def pack_2(values, scale, NUM_BLOCKS: tl.constexpr):
    """E2M1 codes of values * scale (block by block), 2 a word, the even element low."""
    bits = values.to(tl.int32, bitcast=True)
    a = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    codes = round_e2m1(a, scale)
    c0, c1 = tl.split(tl.reshape(codes, (NUM_BLOCKS, 16, 2)))
    b0, b1 = tl.split(tl.reshape(bits, (NUM_BLOCKS, 16, 2)))
    signs = append_sign((b1 >> 28) & 0xF, b0)
    word = (c1 << 4) + c0
    # The exponent of 2^22 has left the word at the top, but for that of the last three: 0x4A800000 * 273.
    return (word - 0x72800000) | (signs & -0x77777778)


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
    keep = finite & (amax_bits >= 0x1F800000)  # 2^-64
    scale = tl.where(keep, e8, tl.where(finite, 0, 255))
    values = tl.reshape(values, (NUM_BLOCKS, 32))
    factor = ((254 - e8) << 23).to(tl.float32, bitcast=True)
    words = pack_2(values, factor, NUM_BLOCKS)
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
    minus_zero = minus_zero_of(num_tokens)
    tile = tl.program_id(0)
    first_row = tile.to(tl.int64)
    x_row = x_ptr + first_row * x_stride
    q_row = q_ptr + first_row * 48
    scales_row = scales_ptr + first_row * 3
    weight_0 = load_row(weight_ptr, 0, 64, PAIRS, "")
    weight_1 = load_row(weight_ptr, 64, 32, PAIRS, "")
    x_0 = load_row(x_row, 0, 64, PAIRS, "")
    x_1 = load_row(x_row, 64, 32, PAIRS, "")
    squares_64 = x_0 * x_0
    squares_32 = x_1 * x_1
    sum_of_squares = tl.sum(squares_64)
    sum_of_squares += tl.sum(squares_32)
    norm = tl.rsqrt(sum_of_squares * 0.010416666666666666 + epsilon)  # 1 / 96
    norm = tl.where(sum_of_squares < float("inf"), norm, float("nan"))
    normed_0 = rounded_product(x_0, norm, minus_zero, x_ptr.dtype.element_ty)
    y_0 = rounded_product(normed_0, weight_0, minus_zero, x_ptr.dtype.element_ty)
    amax_0 = block_amax_bits(y_0, 2)
    store_mxfp4(y_0, amax_0, q_row, scales_row, 0, 64, 2)
    normed_1 = rounded_product(x_1, norm, minus_zero, x_ptr.dtype.element_ty)
    y_1 = rounded_product(normed_1, weight_1, minus_zero, x_ptr.dtype.element_ty)
    amax_1 = block_amax_bits(y_1, 1)
    store_mxfp4(y_1, amax_1, q_row, scales_row, 64, 32, 2)


KERNEL = "rmsnorm_mxfp4_quant"
ROWS = 1
SPLITS = 1
PROGRAMS_PER_UNIT = 0
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}
