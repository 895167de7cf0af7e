# rmsnorm_add_mxfp4_quant, rendered by tunegen 0.1.0; edit the template, not this file.
#
# template  templates/rmsnorm_mxfp4.py.jinja (template hash)
# target    sm90
# shape     hidden_size=1536
# rounding  sum_norm_output
# config    splits=1, rows=2, programs_per_unit=2, num_stages=2, cover=3x512, num_warps=4, load_policy=default, store_policy=streaming, max_registers=0
import triton
import triton.language as tl


@triton.jit
def load_row(
    row_ptr,
    inside,
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
        columns = START // 2 + tl.arange(0, WIDTH // 2)[None, :]
        words = tl.load(row_ptr.to(tl.pointer_type(tl.int32)) + columns, mask=inside, eviction_policy=POLICY)
        even = (words << 16).to(tl.float32, bitcast=True)
        odd = (words & -0x10000).to(tl.float32, bitcast=True)
        values = tl.reshape(tl.join(even, odd), (words.shape[0], WIDTH))
    else:
        columns = START + tl.arange(0, WIDTH)[None, :]
        values = tl.load(row_ptr + columns, mask=inside, eviction_policy=POLICY).to(tl.float32)
    return values


@triton.jit
def block_amax_bits(values, NUM_BLOCKS: tl.constexpr):
    """Bit pattern of the largest |value| of each 32; NaN wins."""
    low, high = tl.split(tl.reshape(values, (NUM_BLOCKS, 16, 2)))
    larger = tl.maximum(tl.abs(low), tl.abs(high), propagate_nan=tl.PropagateNan.ALL)
    # Both values have their maximum: a tensor of the shape of the values keeps their layout, and costs nothing.
    bits = tl.join(larger, larger).to(tl.int32, bitcast=True) & 0x7FFFFFFF
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
    """Bits of 2^23 - 2, plus the E2M1 code of v = |a| scale, which is below 7, rounded to nearest even.

    Added to 2^23 - 2, v is rounded to halves while the sum is below 2^23, and to ones from there: the two steps of
    E2M1 below 4. Above 4 it is v / 2, rounded to ones, that is added to 2^23. Rounding is monotonic: the code
    belongs to the less of the two. Positive floats are in the order of their bits.
    """
    a = tl.abs(a)
    below_4 = tl.fma(a, scale, 8388606.0).to(tl.int32, bitcast=True)
    above_4 = tl.fma(a, scale * 0.5, 8388608.0).to(tl.int32, bitcast=True)
    return tl.minimum(below_4, above_4)


@triton.jit
def append_sign(signs, bits):
    """Shifts the top four bits of a value in from the right: its sign comes to the nibble's top."""
    return (signs << 4) | ((bits >> 28) & 0xF)


@triton.jit
def pack_8(values, scale, NUM_BLOCKS: tl.constexpr):
    """E2M1 codes of values * scale (block by block), 8 a word, the even element low."""
    bits = values.to(tl.int32, bitcast=True)
    codes = round_e2m1(values, scale)
    even, odd = tl.split(tl.reshape(codes, (NUM_BLOCKS, 4, 4, 2)))
    even_04, even_26 = tl.split(tl.reshape(even, (NUM_BLOCKS, 4, 2, 2)))
    odd_15, odd_37 = tl.split(tl.reshape(odd, (NUM_BLOCKS, 4, 2, 2)))
    c0, c4 = tl.split(even_04)
    c2, c6 = tl.split(even_26)
    c1, c5 = tl.split(odd_15)
    c3, c7 = tl.split(odd_37)
    even, odd = tl.split(tl.reshape(bits, (NUM_BLOCKS, 4, 4, 2)))
    even_04, even_26 = tl.split(tl.reshape(even, (NUM_BLOCKS, 4, 2, 2)))
    odd_15, odd_37 = tl.split(tl.reshape(odd, (NUM_BLOCKS, 4, 2, 2)))
    b0, b4 = tl.split(even_04)
    b2, b6 = tl.split(even_26)
    b1, b5 = tl.split(odd_15)
    b3, b7 = tl.split(odd_37)
    signs = append_sign((b7 >> 28) & 0xF, b6)
    signs = append_sign(signs, b5)
    signs = append_sign(signs, b4)
    signs = append_sign(signs, b3)
    signs = append_sign(signs, b2)
    signs = append_sign(signs, b1)
    signs = append_sign(signs, b0)
    word = c0
    word += c1 << 4
    word += c2 << 8
    word += c3 << 12
    word += c4 << 16
    word += c5 << 20
    word += c6 << 24
    word += c7 << 28
    # The bits of 2^23 - 2 once for each nibble: 0x4AFFFFFC * 0x11111111.
    return (word + 0x49444444) | (signs & -0x77777778)


@triton.jit
def store_mxfp4(
    values,
    amax_bits,
    q_ptr,
    scales_ptr,
    rows_left,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    PACK: tl.constexpr,
):
    """Quantises values of columns COLUMN to COLUMN + WIDTH; stores codes and E8M0 scales.

    The lane that holds a block's first word stores its scale.
    """
    NUM_BLOCKS: tl.constexpr = 2 * WIDTH // 32
    WORDS: tl.constexpr = NUM_BLOCKS * 32 // PACK
    # What belongs to a block is spelled for each of its elements: a lane computes it once all the same.
    amax_bits = tl.broadcast_to(amax_bits[:, None], (NUM_BLOCKS, 32))
    finite = amax_bits < 0x7F800000
    # ((bits + 0x200000) >> 23) - 2, which is above 0 where it is kept
    e8 = (amax_bits - 0xE00000) >> 23
    keep = finite & (amax_bits >= 0x1F800000)  # 2^-64
    scale = tl.where(keep, e8, tl.where(finite, 0, 255))
    values = tl.reshape(values, (NUM_BLOCKS, 32))
    factor = ((254 - e8) << 23).to(tl.float32, bitcast=True)
    words = pack_8(values, factor, NUM_BLOCKS)
    words = tl.reshape(words & of_words(tl.where(keep, -1, 0), NUM_BLOCKS, PACK), (WORDS,))
    scale = tl.reshape(of_words(scale, NUM_BLOCKS, PACK), (WORDS,))

    word_type: tl.constexpr = tl.int32 if PACK == 8 else (tl.int16 if PACK == 4 else tl.int8)
    # Said not to be contiguous, words are stored by the lanes that hold them, not regrouped for wider stores.
    index = tl.max_contiguous(tl.arange(0, WORDS), 1)
    row = index // (WIDTH // PACK)
    column = index % (WIDTH // PACK)
    word_offsets = row * (1536 // PACK) + COLUMN // PACK + column
    scale_offsets = row * 48 + COLUMN // 32 + column // (32 // PACK)
    first = column % (32 // PACK) == 0
    inside = row < rows_left
    words_ptr = q_ptr.to(tl.pointer_type(word_type)) + tl.max_contiguous(word_offsets, 1)
    tl.store(words_ptr, words.to(word_type), mask=inside, cache_modifier=".cs")
    tl.store(scales_ptr + scale_offsets, scale.to(tl.uint8), mask=first & inside)


@triton.jit(do_not_specialize=["num_tokens"])
def rmsnorm_add_mxfp4_quant(
    x_ptr,
    residual_ptr,
    weight_ptr,
    q_ptr,
    scales_ptr,
    residual_out_ptr,
    num_tokens,
    x_stride,
    residual_stride,
    epsilon,
    PAIRS: tl.constexpr,
):
    columns_512 = tl.arange(0, 512)[None, :]
    weight_0 = load_row(weight_ptr, True, 0, 512, PAIRS, "")
    weight_1 = load_row(weight_ptr, True, 512, 512, PAIRS, "")
    weight_2 = load_row(weight_ptr, True, 1024, 512, PAIRS, "")
    num_tiles = tl.cdiv(num_tokens, 2)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=2):
        first_row = tile.to(tl.int64) * 2
        row = first_row + tl.arange(0, 2)[:, None]
        rows_left = (num_tokens - first_row).to(tl.int32)
        inside = row < num_tokens
        x_row = x_ptr + row * x_stride
        residual_row = residual_ptr + row * residual_stride
        residual_out_row = residual_out_ptr + row * 1536
        q_row = q_ptr + first_row * 768
        scales_row = scales_ptr + first_row * 48
        x_0 = load_row(x_row, inside, 0, 512, PAIRS, "")
        x_1 = load_row(x_row, inside, 512, 512, PAIRS, "")
        x_2 = load_row(x_row, inside, 1024, 512, PAIRS, "")
        residual_0 = load_row(residual_row, inside, 0, 512, PAIRS, "")
        residual_1 = load_row(residual_row, inside, 512, 512, PAIRS, "")
        residual_2 = load_row(residual_row, inside, 1024, 512, PAIRS, "")
        sum_0 = (x_0 + residual_0).to(x_ptr.dtype.element_ty)
        tl.store(residual_out_row + columns_512, sum_0, mask=inside, cache_modifier=".cs")
        sum_0 = sum_0.to(tl.float32)
        sum_1 = (x_1 + residual_1).to(x_ptr.dtype.element_ty)
        tl.store(residual_out_row + 512 + columns_512, sum_1, mask=inside, cache_modifier=".cs")
        sum_1 = sum_1.to(tl.float32)
        sum_2 = (x_2 + residual_2).to(x_ptr.dtype.element_ty)
        tl.store(residual_out_row + 1024 + columns_512, sum_2, mask=inside, cache_modifier=".cs")
        sum_2 = sum_2.to(tl.float32)
        squares_512 = sum_0 * sum_0
        squares_512 = tl.fma(sum_1, sum_1, squares_512)
        squares_512 = tl.fma(sum_2, sum_2, squares_512)
        sum_of_squares = tl.sum(squares_512, axis=1)
        norm = tl.rsqrt(sum_of_squares * 0.0006510416666666666 + epsilon)  # 1 / 1536
        norm = tl.where(sum_of_squares < float("inf"), norm, float("nan"))
        y_0 = (sum_0 * norm[:, None]).to(x_ptr.dtype.element_ty).to(tl.float32) * weight_0
        y_0 = y_0.to(x_ptr.dtype.element_ty).to(tl.float32)
        amax_0 = block_amax_bits(y_0, 32)
        store_mxfp4(y_0, amax_0, q_row, scales_row, rows_left, 0, 512, 8)
        y_1 = (sum_1 * norm[:, None]).to(x_ptr.dtype.element_ty).to(tl.float32) * weight_1
        y_1 = y_1.to(x_ptr.dtype.element_ty).to(tl.float32)
        amax_1 = block_amax_bits(y_1, 32)
        store_mxfp4(y_1, amax_1, q_row, scales_row, rows_left, 512, 512, 8)
        y_2 = (sum_2 * norm[:, None]).to(x_ptr.dtype.element_ty).to(tl.float32) * weight_2
        y_2 = y_2.to(x_ptr.dtype.element_ty).to(tl.float32)
        amax_2 = block_amax_bits(y_2, 32)
        store_mxfp4(y_2, amax_2, q_row, scales_row, rows_left, 1024, 512, 8)


KERNEL = "rmsnorm_add_mxfp4_quant"
ROWS = 2
SPLITS = 1
PROGRAMS_PER_UNIT = 2
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
