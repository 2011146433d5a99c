/* Functions that compute in one pass over memory what takes torch several passes. Their definitions, with bit-identical
   results, are the `plain_` functions of the modules that call them: lowbit/integer_passes.py, lowbit/nf4.py and
   fast/activations.py. Therefore nothing may be contracted to fused multiply-adds
   (-ffp-contract=off). Only `low_rank_added`, `rows_added`, `rms_norm`, `decode_attention`, `attention` and the functions
   of few rows of floats sum in another order than torch; their definitions are in fast/product.py, fast/row_products.py,
   fast/norms.py, generation/decoding.py, fast/attention.py and lowbit/few_rows.py. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

/* On Linux with GCC, compile a version for each generation of processors; the loader chooses one. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define HAS_AVX512 /* the compiler knows the instructions */
#define FAST __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FAST
#endif

#define INLINE static inline __attribute__((always_inline))
#define PARTS 16
/* Those of `dither_rows`. */
#define DITHER_OF_COLUMN 0x9e3779b1u
#define DITHER_OF_ROW 0x85ebca6bu
#define DITHER_STEP (0.499f / 8388608.0f)

/* Increase this, here and in native.py, whenever the arguments of a function change. */
EXPORT int64_t interface_version(void) { return 13; }

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float from_float(float x) { return x; }
static inline float from_bfloat16(uint16_t x) { return as_float((uint32_t)x << 16); }
static inline float to_float(float x) { return x; }

static inline uint16_t to_bfloat16(float x) {
    uint32_t bits = as_bits(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

/* `rotated`: see lowbit/integer_passes.py. Each step adds and subtracts the four quarters of a piece of the row, and the next
   step does so in each quarter. */
INLINE void rotate(float *row, int64_t n, int64_t blocks) {
    for (int64_t run = n / 4; run >= n / blocks && blocks > 1; run /= 4)
        for (int64_t start = 0; start < n; start += 4 * run) {
            float *restrict a = row + start, *restrict b = a + run, *restrict c = b + run, *restrict d = c + run;
            for (int64_t i = 0; i < run; i++) {
                float ab = a[i] + b[i], a_b = a[i] - b[i], cd = c[i] + d[i], c_d = c[i] - d[i];
                a[i] = (ab + cd) * 0.5f;
                b[i] = (a_b + c_d) * 0.5f;
                c[i] = (ab - cd) * 0.5f;
                d[i] = (a_b - c_d) * 0.5f;
            }
        }
}

EXPORT FAST void rotated(float *x, int64_t rows, int64_t n, int64_t blocks) {
    for (int64_t row = 0; row < rows; row++) rotate(x + row * n, n, blocks);
}

INLINE float step_of(uint32_t largest) {
    float step = as_float(largest) / 127.0f;
    return step < 1.17549435e-38f ? 1.17549435e-38f : step;
}

INLINE int8_t nearest(float x) { /* adding 1.5 * 2^23 rounds to the nearest even integer */
    return (int8_t)(as_bits(x + 12582912.0f) - 0x4b400000u);
}

#define LARGE 8.0 /* those of lowbit/integer_passes.py */
#define LEAST_SHARE (1.0f / 128.0f)
#define RUN 64

INLINE int32_t nearest_level(float x) { /* as `nearest`, for absolute values below 2^22 */
    return (int32_t)(as_bits(x + 12582912.0f) - 0x4b400000u);
}

/* The share of the largest number of a row that is 127 steps, so that few large numbers do not decide the step: see
   `plain_levels`. */
INLINE float share_of(const float *row, int64_t n, float step) {
    uint32_t sum = 0;
    float inverse = 256.0f / step;
    if (step < 1e-30f) return 1.0f;
    for (int64_t i = 0; i < n; i++) sum += (uint32_t)nearest_level(fabsf(row[i]) * inverse);
    float share = (float)sum * (float)(LARGE / (127.0 * 256.0 * (double)n));
    return share < LEAST_SHARE ? LEAST_SHARE : share > 1.0f ? 1.0f : share;
}

/* q [n] = the levels of a row, limited to ±127. What is beyond is appended to columns and values, which have `count`
   elements; their new number is returned. */
INLINE int64_t limited(const float *row, int64_t n, float step, int8_t *q, int64_t count, int32_t *columns,
                       int32_t *values) {
    for (int64_t start = 0; start < n; start += RUN) {
        int64_t size = n - start < RUN ? n - start : RUN;
        int32_t rest[RUN], beyond = 0;
        for (int64_t i = 0; i < size; i++) {
            int32_t level = nearest_level(row[start + i] / step), kept = level > 127 ? 127 : level < -127 ? -127 : level;
            q[start + i] = (int8_t)kept;
            rest[i] = level - kept;
            beyond |= level - kept;
        }
        for (int64_t i = 0; beyond != 0 && i < size; i++)
            if (rest[i] != 0) columns[count] = (int32_t)(start + i), values[count++] = rest[i];
    }
    return count;
}

/* `rounded`: q [rows, n] and s [rows]; `exact` is memory for one row. With `ends` it is `levels_of`, which has large
   numbers as well. */
#define ROUNDED(NAME, TYPE, FROM)                                                                                     \
    EXPORT FAST void NAME(const TYPE *x, int64_t rows, int64_t n, int64_t stride, int64_t blocks, int8_t *q,          \
                          float *s, float *exact, int64_t *ends, int32_t *columns, int32_t *values) {                 \
        int64_t count = 0;                                                                                            \
        for (int64_t row = 0; row < rows; row++, x += stride, q += n) {                                               \
            uint32_t largest = 0; /* bits of absolute values, as integers, have the values' order; NaN is largest */  \
            for (int64_t i = 0; i < n; i++) exact[i] = FROM(x[i]);                                                    \
            rotate(exact, n, blocks);                                                                                 \
            for (int64_t i = 0; i < n; i++) {                                                                         \
                uint32_t bits = as_bits(exact[i]) & 0x7fffffff;                                                       \
                largest = bits > largest ? bits : largest;                                                            \
            }                                                                                                         \
            float step = s[row] = step_of(largest);                                                                   \
            float share = ends == 0 || largest >= 0x7f800000 ? 1.0f : share_of(exact, n, step);                       \
            if (largest >= 0x7f800000)                                                                                \
                memset(q, 0, (size_t)n);                                                                              \
            else if (share < 1.0f) {                                                                                  \
                s[row] = step * share;                                                                                \
                count = limited(exact, n, s[row], q, count, columns, values);                                         \
            } else                                                                                                    \
                for (int64_t i = 0; i < n; i++) q[i] = nearest(exact[i] / step);                                      \
            if (ends != 0) ends[row] = count;                                                                         \
        }                                                                                                             \
    }

ROUNDED(rounded_float32, float, from_float)
ROUNDED(rounded_bfloat16, uint16_t, from_bfloat16)

/* sums [64] = the columns of w [width, 64] at `columns`, times `values`. The compiler would not keep them in registers. */
#ifdef HAS_AVX512
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
EXPORT int64_t has_large_added(void) { return __builtin_cpu_supports("avx2") != 0; }

AVX2 INLINE void sum_columns(const int8_t *w, const int32_t *columns, const int32_t *values, int64_t count, int32_t *sums) {
    for (int k = 0; k < RUN; k += 32) {
        __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t i = 0; i < count; i++) {
            const int8_t *column = w + columns[i] * (int64_t)RUN + k;
            __m256i value = _mm256_set1_epi32(values[i]);
            for (int m = 0; m < 4; m++) {
                __m256i part = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(column + 8 * m)));
                sum[m] = _mm256_add_epi32(sum[m], _mm256_mullo_epi32(part, value));
            }
        }
        for (int m = 0; m < 4; m++) _mm256_storeu_si256((__m256i *)(sums + k + 8 * m), sum[m]);
    }
}
#else
#define AVX2
INLINE void sum_columns(const int8_t *w, const int32_t *columns, const int32_t *values, int64_t count, int32_t *sums) {
    memset(sums, 0, RUN * sizeof *sums);
    for (int64_t i = 0; i < count; i++)
        for (int k = 0; k < RUN; k++) sums[k] += values[i] * w[columns[i] * (int64_t)RUN + k];
}
#endif

/* to [width, 64] = the columns of w that are needed, of 64 rows, of which `rows` exist. Lines of 64 columns are copied
   first, because rows that are a power of two apart displace each other from the cache. */
AVX2 INLINE void copy_columns(const int8_t *w, int64_t rows, int64_t width, const uint8_t *is_needed, int8_t *restrict to) {
    int8_t lines[RUN][RUN] = {{0}};
    for (int64_t start = 0; start < width; start += RUN) {
        int64_t columns = width - start < RUN ? width - start : RUN;
        if (memchr(is_needed + start, 1, (size_t)columns) == 0) continue;
        if (columns == RUN)
            for (int64_t r = 0; r < rows; r++) memcpy(lines[r], w + r * width + start, RUN);
        else
            for (int64_t r = 0; r < rows; r++) memcpy(lines[r], w + r * width + start, (size_t)columns);
        for (int64_t c = 0; c < columns; c++)
            if (is_needed[start + c])
                for (int r = 0; r < RUN; r++) to[(start + c) * RUN + r] = lines[r][c];
    }
}

/* `add_large`: product [rows, n] += the large numbers times their columns of w [n, width]. `columns_of_w` [width, 64] and
   `is_needed` [width] are memory for 64 rows of w at a time. */
EXPORT AVX2 void large_added(int32_t *restrict product, int64_t rows, int64_t n, int64_t width, const int64_t *ends,
                             const int32_t *columns, const int32_t *values, const int8_t *w, int8_t *columns_of_w,
                             uint8_t *is_needed) {
    memset(is_needed, 0, (size_t)width);
    for (int64_t i = 0; i < ends[rows - 1]; i++) is_needed[columns[i]] = 1;
    for (int64_t c = 0; c < n; c += RUN, w += RUN * width) {
        int64_t channels = n - c < RUN ? n - c : RUN, first = 0;
        copy_columns(w, channels, width, is_needed, columns_of_w);
        for (int64_t row = 0; row < rows; first = ends[row++]) {
            if (first == ends[row]) continue;
            int32_t sums[RUN], *to = product + row * n + c;
            sum_columns(columns_of_w, columns + first, values + first, ends[row] - first, sums);
            if (channels == RUN)
                for (int k = 0; k < RUN; k++) to[k] += sums[k];
            else
                for (int64_t k = 0; k < channels; k++) to[k] += sums[k];
        }
    }
}

/* `dithered`: q [rows, n], s [rows] and lost [rows]. A row is read twice, the second time from the cache. */
#define DITHERED(NAME, TYPE, FROM)                                                                                    \
    EXPORT FAST void NAME(const TYPE *x, int64_t rows, int64_t n, int64_t stride, const float *scale, int8_t *q,      \
                          float *s, float *lost) {                                                                    \
        for (int64_t row = 0; row < rows; row++, x += stride, q += n) {                                               \
            uint32_t largest = 0;                                                                                     \
            double parts[PARTS] = {0}, sum = 0;                                                                       \
            for (int64_t i = 0; i < n; i++) {                                                                         \
                uint32_t bits = as_bits(FROM(x[i]) * scale[i]) & 0x7fffffff;                                          \
                largest = bits > largest ? bits : largest;                                                            \
            }                                                                                                         \
            int64_t whole = n - n % PARTS;                                                                            \
            for (int64_t i = 0; i < whole; i += PARTS)                                                                \
                for (int k = 0; k < PARTS; k++) parts[k] += FROM(x[i + k]) * scale[i + k];                            \
            for (int k = 0; k < PARTS; k++) sum += parts[k];                                                          \
            for (int64_t i = whole; i < n; i++) sum += FROM(x[i]) * scale[i];                                         \
            float step = s[row] = step_of(largest);                                                                   \
            int32_t total = 0;                                                                                        \
            if (largest >= 0x7f800000) {                                                                              \
                memset(q, 0, (size_t)n);                                                                              \
            } else {                                                                                                  \
                uint32_t of_row = (as_bits(step) >> 12) * DITHER_OF_ROW;                                                     \
                for (int64_t i = 0; i < n; i++) {                                                                     \
                    int32_t dither = (int32_t)(of_row + (uint32_t)i * DITHER_OF_COLUMN) >> 8;                         \
                    int8_t value = nearest(FROM(x[i]) * scale[i] / step + (float)dither * DITHER_STEP);               \
                    q[i] = value;                                                                                     \
                    total += value;                                                                                   \
                }                                                                                                     \
            }                                                                                                         \
            lost[row] = (float)(sum - (double)step * total);                                                          \
        }                                                                                                             \
    }

DITHERED(dithered_float32, float, from_float)
DITHERED(dithered_bfloat16, uint16_t, from_bfloat16)

/* `scaled`: y [rows, n], with `stride` elements from one row to the next. */
#define SCALED(NAME, TYPE, TO)                                                                                        \
    EXPORT FAST void NAME(const int32_t *product, int64_t rows, int64_t n, const float *s, const float *scale,        \
                          const float *bias, TYPE *restrict y, int64_t stride) {                                      \
        for (int64_t row = 0; row < rows; row++, product += n, y += stride) {                                         \
            float of_row = s[row];                                                                                    \
            if (bias == 0)                                                                                            \
                for (int64_t i = 0; i < n; i++) y[i] = TO((float)product[i] * of_row * scale[i]);                     \
            else                                                                                                      \
                for (int64_t i = 0; i < n; i++) y[i] = TO(bias[i] + (float)product[i] * of_row * scale[i]);           \
        }                                                                                                             \
    }

SCALED(scaled_float32, float, to_float)
SCALED(scaled_bfloat16, uint16_t, to_bfloat16)

/* `added`: out [rows, n] = rotated((before, if given) + s product + lost mean); `exact` is memory for one row. */
#define ADDED(NAME, TYPE, TO)                                                                                         \
    EXPORT FAST void NAME(const int32_t *product, int64_t rows, int64_t n, const float *s, const float *lost,         \
                          const float *mean, const float *before, int64_t blocks, TYPE *out, float *exact) {          \
        for (int64_t row = 0; row < rows; row++, product += n, out += n) {                                            \
            float of_row = s[row], lost_of_row = lost[row];                                                           \
            for (int64_t i = 0; i < n; i++) exact[i] = (float)product[i] * of_row + lost_of_row * mean[i];            \
            if (before != 0) {                                                                                        \
                for (int64_t i = 0; i < n; i++) exact[i] = before[i] + exact[i];                                      \
                before += n;                                                                                          \
            }                                                                                                         \
            rotate(exact, n, blocks);                                                                                 \
            for (int64_t i = 0; i < n; i++) out[i] = TO(exact[i]);                                                    \
        }                                                                                                             \
    }

ADDED(added_float32, float, to_float)
ADDED(added_bfloat16, uint16_t, to_bfloat16)

/* `_look_up` of fast/activations.py: an activation's value and derivative for 16-bit inputs, from a table that is
   indexed by the input's bits. */
EXPORT void looked_up(const uint16_t *x, int64_t n, const uint32_t *table, uint16_t *restrict value,
                      uint16_t *restrict slope) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t both = table[x[i]];
        value[i] = (uint16_t)both;
        slope[i] = (uint16_t)(both >> 16);
    }
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

/* Look up 16 indices, 0 to 15, in a table of 16 bytes: one instruction with the builtin, but not with the loop. */
static inline Bytes bytes_at(Bytes table, Bytes places) {
#if defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(table, places);
#else
    Bytes found;
    for (int i = 0; i < 16; i++) found[i] = table[places[i]];
    return found;
#endif
}

/* Interleave two vectors: out[2 i] = first[i], out[2 i + 1] = second[i]. */
static inline void interleave(Bytes first, Bytes second, int8_t *out) {
#if defined(__clang__) || __GNUC__ >= 12
    Bytes lower = __builtin_shufflevector(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    Bytes upper = __builtin_shufflevector(first, second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    memcpy(out, &lower, 16);
    memcpy(out + 16, &upper, 16);
#else
    for (int i = 0; i < 16; i++) out[2 * i] = (int8_t)first[i], out[2 * i + 1] = (int8_t)second[i];
#endif
}

/* The 64 levels of a block of NF4. `row` has the levels of the 16 codes for the m of this block. */
static inline void levels_of_block(const uint8_t *packed, const int8_t *row, int8_t *levels) {
    Bytes table, codes;
    memcpy(&table, row, 16);
    for (int half = 0; half < 2; half++) {
        memcpy(&codes, packed + 16 * half, 16);
        interleave(bytes_at(table, codes >> 4), bytes_at(table, codes & 15), levels + 32 * half);
    }
}

/* `decode` of lowbit/nf4.py: out [rows, blocks * 64], by `table` [256, 16]; without a scale, the levels themselves. */
EXPORT FAST void nf4_int8(const uint8_t *packed, const uint8_t *m, int64_t rows, int64_t blocks, const int8_t *table,
                          const float *scale, int8_t *out) {
    (void)scale;
    for (int64_t i = 0; i < rows * blocks; i++) levels_of_block(packed + 32 * i, table + 16 * m[i], out + 64 * i);
}

#define NF4(NAME, TYPE, TO)                                                                                           \
    EXPORT FAST void NAME(const uint8_t *packed, const uint8_t *m, int64_t rows, int64_t blocks, const int8_t *table, \
                          const float *scale, TYPE *restrict out) {                                                   \
        for (int64_t row = 0; row < rows; row++) {                                                                    \
            float of_row = scale[row];                                                                                \
            for (int64_t block = 0; block < blocks; block++, packed += 32, m++, out += 64) {                          \
                int8_t levels[64];                                                                                    \
                levels_of_block(packed, table + 16 * *m, levels);                                                     \
                for (int i = 0; i < 64; i++) out[i] = TO((float)levels[i] * of_row);                                  \
            }                                                                                                         \
        }                                                                                                             \
    }

NF4(nf4_float32, float, to_float)
NF4(nf4_bfloat16, uint16_t, to_bfloat16)

/* `nearest_codes` of lowbit/nf4.py: packed [rows, blocks * 32] and largest [rows, blocks]; the last block of a row is
   filled up with zeros. A code is the number of bounds that are below x. */
#define CODES(NAME, TYPE, FROM)                                                                                       \
    EXPORT FAST void NAME(const TYPE *w, int64_t rows, int64_t width, int64_t stride, const float *bounds,            \
                          uint8_t *packed, float *largest) {                                                          \
        for (int64_t row = 0; row < rows; row++, w += stride) {                                                       \
            for (int64_t start = 0; start < width; start += 64, packed += 32, largest++) {                            \
                float x[64] = {0};                                                                                    \
                int64_t n = width - start < 64 ? width - start : 64;                                                  \
                for (int64_t i = 0; i < n; i++) x[i] = FROM(w[start + i]);                                            \
                uint32_t most = 0; /* as in `rounded` */                                                              \
                for (int i = 0; i < 64; i++) {                                                                        \
                    uint32_t bits = as_bits(x[i]) & 0x7fffffff;                                                       \
                    most = bits > most ? bits : most;                                                                 \
                }                                                                                                     \
                *largest = as_float(most);                                                                            \
                float inverse = 1.0f / (*largest < 1e-38f ? 1e-38f : *largest);                                       \
                int32_t codes[64] = {0};                                                                              \
                for (int k = 0; k < 15; k++)                                                                          \
                    for (int i = 0; i < 64; i++) codes[i] += x[i] * inverse > bounds[k];                              \
                for (int i = 0; i < 32; i++) packed[i] = (uint8_t)(codes[2 * i] << 4 | codes[2 * i + 1]);             \
            }                                                                                                         \
        }                                                                                                             \
    }

CODES(nf4_codes_float32, float, from_float)
CODES(nf4_codes_bfloat16, uint16_t, from_bfloat16)

/* Dot product of a and x, always summed in the same order. */
static inline float dot(const float *a, const float *x, int64_t n) {
    float parts[PARTS] = {0}, sum = 0;
    int64_t whole = n - n % PARTS;
    for (int64_t i = 0; i < whole; i += PARTS)
        for (int k = 0; k < PARTS; k++) parts[k] += a[i + k] * x[i + k];
    for (int k = 0; k < PARTS; k++) sum += parts[k];
    for (int64_t i = whole; i < n; i++) sum += a[i] * x[i];
    return sum;
}

/* With vectors of eight numbers: products of eight rows of a matrix, each in eight parts, which are then added. */
#if defined(__clang__) || __GNUC__ >= 12
#define HAS_EIGHT 1
typedef float Floats __attribute__((vector_size(32)));
INLINE void add_parts(Floats *part, float *sum) {
    for (int i = 0; i < 4; i++)
        part[i] = __builtin_shufflevector(part[2 * i], part[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
                  __builtin_shufflevector(part[2 * i], part[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    for (int i = 0; i < 2; i++)
        part[i] = __builtin_shufflevector(part[2 * i], part[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
                  __builtin_shufflevector(part[2 * i], part[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    part[0] = __builtin_shufflevector(part[0], part[1], 0, 1, 2, 3, 8, 9, 10, 11) +
              __builtin_shufflevector(part[0], part[1], 4, 5, 6, 7, 12, 13, 14, 15);
    memcpy(sum, part, 32);
}

/* sum [8] = the products of eight rows of w, which are `stride` numbers apart, with x [n]. */
INLINE void eight(const float *w, int64_t stride, const float *x, int64_t n, float *sum) {
    Floats part[8] = {{0}}, a, b;
    int64_t whole = n / 8 * 8;
    for (int64_t i = 0; i < whole; i += 8) {
        memcpy(&b, x + i, 32);
        for (int row = 0; row < 8; row++) {
            memcpy(&a, w + row * stride + i, 32);
            part[row] += a * b;
        }
    }
    add_parts(part, sum);
    for (int row = 0; row < 8 && whole < n; row++) sum[row] += dot(w + row * stride + whole, x + whole, n - whole);
}
/* Dot product of a and x in four times eight parts. */
INLINE float long_dot(const float *a, const float *x, int64_t n) {
    Floats part[4] = {{0}}, of_a, of_x;
    float sum[8];
    int64_t whole = n / 32 * 32;
    for (int64_t i = 0; i < whole; i += 32)
        for (int k = 0; k < 4; k++) {
            memcpy(&of_a, a + i + 8 * k, 32);
            memcpy(&of_x, x + i + 8 * k, 32);
            part[k] += of_a * of_x;
        }
    part[0] = (part[0] + part[1]) + (part[2] + part[3]);
    memcpy(sum, part, 32);
    for (int k = 0; k < 4; k++) sum[k] += sum[k + 4];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]) + dot(a + whole, x + whole, n - whole);
}
#else
#define HAS_EIGHT 0
#define eight(w, stride, x, n, sum)
#define long_dot dot
#endif

#define LONG 64 /* with fewer numbers, adding the parts takes longer than the products */

/* y [n] = w x for w [n, width], whose rows are `stride` numbers apart. Long rows are read one after another, because
   processors fetch a single stream ahead. */
INLINE void product(const float *w, int64_t n, int64_t stride, const float *x, int64_t width, float *y) {
    int64_t i = 0;
    for (; width >= LONG && i < n; i++) y[i] = long_dot(w + i * stride, x, width);
    for (; HAS_EIGHT && width >= 8 && i + 8 <= n; i += 8) eight(w + i * stride, stride, x, width, y + i);
    for (; i < n; i++) y[i] = dot(w + i * stride, x, width);
}

#define MOST_RANKS 1024
#define COLUMNS 1024 /* of x or y that are converted at once */

/* `add_low_rank`: y [rows, out] += scaling x A^T B^T, with x [rows, in], A [r, in], B [out, r] and r <= MOST_RANKS. */
#define LOW_RANK_ADDED(NAME, TYPE, FROM, TO)                                                                          \
    EXPORT FAST void NAME(const TYPE *x, int64_t rows, int64_t in, int64_t out, int64_t r, const float *A,            \
                          const float *B, double scaling, TYPE *y) {                                                  \
        float low[MOST_RANKS], part[MOST_RANKS], columns[COLUMNS];                                                    \
        for (int64_t row = 0; row < rows; row++, x += in, y += out) {                                                 \
            for (int64_t k = 0; k < r; k++) low[k] = 0;                                                               \
            for (int64_t start = 0; start < in; start += COLUMNS) {                                                   \
                int64_t n = in - start < COLUMNS ? in - start : COLUMNS;                                              \
                for (int64_t i = 0; i < n; i++) columns[i] = FROM(x[start + i]);                                      \
                product(A + start, r, in, columns, n, part);                                                          \
                for (int64_t k = 0; k < r; k++) low[k] += part[k];                                                    \
            }                                                                                                         \
            for (int64_t k = 0; k < r; k++) low[k] *= (float)scaling;                                                 \
            for (int64_t start = 0; start < out; start += COLUMNS) {                                                  \
                int64_t n = out - start < COLUMNS ? out - start : COLUMNS;                                            \
                if (r == 8) /* the compiler knows the size */                                                         \
                    product(B + start * 8, n, 8, low, 8, columns);                                                    \
                else                                                                                                  \
                    product(B + start * r, n, r, low, r, columns);                                                    \
                for (int64_t i = 0; i < n; i++) y[start + i] = TO(FROM(y[start + i]) + columns[i]);                   \
            }                                                                                                         \
        }                                                                                                             \
    }

LOW_RANK_ADDED(low_rank_added_float32, float, from_float, to_float)
LOW_RANK_ADDED(low_rank_added_bfloat16, uint16_t, from_bfloat16, to_bfloat16)

/* `rows_product` of fast/row_products.py for few tokens: the same for each group of rows, with its factors and scaling.
   `table` has the address of A, the address of B, the rank and, as a double, the scaling of each group, [4, groups]; A is
   null for the base. */
#define ROWS_ADDED(NAME, TYPE, LOW_RANK)                                                                              \
    EXPORT void NAME(const TYPE *x, int64_t groups, int64_t rows, int64_t in, int64_t out, const int64_t *table,      \
                     TYPE *y) {                                                                                       \
        for (int64_t g = 0; g < groups; g++, x += rows * in, y += rows * out) {                                       \
            const float *A = (const float *)(intptr_t)table[g], *B = (const float *)(intptr_t)table[groups + g];      \
            double scaling;                                                                                           \
            memcpy(&scaling, table + 3 * groups + g, 8);                                                              \
            if (A != 0) LOW_RANK(x, rows, in, out, table[2 * groups + g], A, B, scaling, y);                          \
        }                                                                                                             \
    }

ROWS_ADDED(rows_added_float32, float, low_rank_added_float32)
ROWS_ADDED(rows_added_bfloat16, uint16_t, low_rank_added_bfloat16)

/* `rms_norm` of fast/norms.py: y [rows, n] = x / sqrt(mean of x^2 + eps) * (offset + weight). */
#define RMS_NORM(NAME, TYPE, FROM, TO)                                                                                \
    EXPORT FAST void NAME(const TYPE *x, int64_t rows, int64_t n, const TYPE *weight, double eps, double offset,      \
                          TYPE *y) {                                                                                  \
        for (int64_t row = 0; row < rows; row++, x += n, y += n) {                                                    \
            float parts[PARTS] = {0}, sum = 0;                                                                        \
            int64_t whole = n - n % PARTS;                                                                            \
            for (int64_t i = 0; i < whole; i += PARTS)                                                                \
                for (int k = 0; k < PARTS; k++) parts[k] += FROM(x[i + k]) * FROM(x[i + k]);                          \
            for (int k = 0; k < PARTS; k++) sum += parts[k];                                                          \
            for (int64_t i = whole; i < n; i++) sum += FROM(x[i]) * FROM(x[i]);                                       \
            float inverse = 1.0f / sqrtf(sum / (float)n + (float)eps);                                                \
            for (int64_t i = 0; i < n; i++) y[i] = TO(FROM(x[i]) * inverse * ((float)offset + FROM(weight[i])));      \
        }                                                                                                             \
    }

RMS_NORM(rms_norm_float32, float, from_float, to_float)
RMS_NORM(rms_norm_bfloat16, uint16_t, from_bfloat16, to_bfloat16)

/* The sum of 16 parts, in pairs, because sums that follow each other wait for each other. */
INLINE float sum_of_parts(const float *parts) {
    float sum[8];
    for (int i = 0; i < 8; i++) sum[i] = parts[i] + parts[i + 8];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

/* `decode_attention` of generation/decoding.py: q [rows, heads, width] and k, v [rows, key_heads, width] are those of one
   new token in each row; cos and sin are [rows, width]. The rotated k and v are written to the end of `keys` and `values`
   [rows, key_heads, length, width], of which `row` and `head` are the strides. `mask` [rows, length], with the stride
   `of_mask`, is 0 where a token is not seen; it may be null. `memory` has room for width + length numbers.

   Numbers are rounded where torch rounds them, so that keys are bit-identical and the output nearly so: some models turn a
   small difference of rounding into one of 7 % of their logits. */
#define DECODE_ATTENTION(NAME, TYPE, FROM, TO)                                                                        \
    INLINE void NAME##_rotate(const TYPE *x, const TYPE *cos, const TYPE *sin, int64_t width, TYPE *restrict y) {     \
        for (int64_t i = 0, half = width / 2; i < half; i++) {                                                        \
            float a = FROM(x[i]), b = FROM(x[half + i]);                                                              \
            y[i] = TO(FROM(TO(a * FROM(cos[i]))) - FROM(TO(b * FROM(sin[i]))));                                       \
            y[half + i] = TO(FROM(TO(b * FROM(cos[half + i]))) + FROM(TO(a * FROM(sin[half + i]))));                  \
        }                                                                                                             \
    }                                                                                                                 \
    /* p [length] = the probabilities of a head with the query q [width], times their sum, which is returned. */      \
    INLINE float NAME##_weigh(const float *q, const TYPE *keys, int64_t length, int64_t width, const uint8_t *mask,   \
                              float scale, float *p) {                                                                \
        float largest = -INFINITY, total = 0;                                                                         \
        int64_t whole = width - width % PARTS;                                                                        \
        for (int64_t t = 0; t < length; t++, keys += width) {                                                         \
            float parts[PARTS] = {0};                                                                                 \
            for (int64_t i = 0; i < whole; i += PARTS)                                                                \
                for (int j = 0; j < PARTS; j++) parts[j] += q[i + j] * FROM(keys[i + j]);                             \
            float sum = sum_of_parts(parts);                                                                          \
            for (int64_t i = whole; i < width; i++) sum += q[i] * FROM(keys[i]);                                      \
            p[t] = mask == 0 || mask[t] ? sum * scale : -INFINITY;                                                    \
            largest = p[t] > largest ? p[t] : largest;                                                                \
        }                                                                                                             \
        for (int64_t t = 0; t < length; t++) {                                                                        \
            float probability = expf(p[t] - largest);                                                                 \
            total += probability;                                                                                     \
            p[t] = FROM(TO(probability));                                                                             \
        }                                                                                                             \
        return total;                                                                                                 \
    }                                                                                                                 \
    /* y [width] = the sum of p times the values, divided by `total`; 16 columns at a time, which stay in registers. */\
    INLINE void NAME##_sum(const float *p, float total, const TYPE *values, int64_t length, int64_t width, TYPE *y) { \
        for (int64_t i = 0; i < width; i += PARTS) {                                                                  \
            float parts[PARTS] = {0};                                                                                 \
            int64_t n = width - i < PARTS ? width - i : PARTS;                                                        \
            const TYPE *value = values + i;                                                                           \
            if (n == PARTS)                                                                                           \
                for (int64_t t = 0; t < length; t++, value += width)                                                  \
                    for (int j = 0; j < PARTS; j++) parts[j] += p[t] * FROM(value[j]);                                \
            else                                                                                                      \
                for (int64_t t = 0; t < length; t++, value += width)                                                  \
                    for (int64_t j = 0; j < n; j++) parts[j] += p[t] * FROM(value[j]);                                \
            for (int64_t j = 0; j < n; j++) y[i + j] = TO(parts[j] / total);                                          \
        }                                                                                                             \
    }                                                                                                                 \
    EXPORT FAST void NAME(const TYPE *q, const TYPE *k, const TYPE *v, int64_t rows, int64_t heads, int64_t key_heads,\
                          int64_t width, int64_t length, const TYPE *cos, const TYPE *sin, TYPE *keys, TYPE *values,  \
                          int64_t row, int64_t head, const uint8_t *mask, int64_t of_mask, double scale,              \
                          float *memory, TYPE *y) {                                                                   \
        float *of_q = memory, *p = memory + width;                                                                    \
        int64_t group = heads / key_heads, last = (length - 1) * width;                                               \
        for (int64_t r = 0; r < rows; r++, cos += width, sin += width)                                                \
            for (int64_t h = 0; h < heads; h++, q += width, y += width) {                                             \
                TYPE *of_keys = keys + r * row + h / group * head, *of_values = values + r * row + h / group * head;  \
                if (h % group == 0) { /* the first of the heads that share these keys */                              \
                    NAME##_rotate(k, cos, sin, width, of_keys + last);                                                \
                    memcpy(of_values + last, v, (size_t)width * sizeof(TYPE));                                        \
                    k += width, v += width;                                                                           \
                }                                                                                                     \
                NAME##_rotate(q, cos, sin, width, y);                                                                 \
                for (int64_t i = 0; i < width; i++) of_q[i] = FROM(y[i]);                                             \
                const uint8_t *of_row = mask == 0 ? 0 : mask + r * of_mask;                                           \
                float total = NAME##_weigh(of_q, of_keys, length, width, of_row, (float)scale, p);                    \
                NAME##_sum(p, total, of_values, length, width, y);                                                    \
            }                                                                                                         \
    }

DECODE_ATTENTION(decode_attention_float32, float, from_float, to_float)
DECODE_ATTENTION(decode_attention_bfloat16, uint16_t, from_bfloat16, to_bfloat16)

#if defined(__GNUC__)
#define FETCH(PLACE, LOCALITY) __builtin_prefetch(PLACE, 0, LOCALITY)
#else
#define FETCH(PLACE, LOCALITY) (void)(PLACE)
#endif
#define AHEAD 2048 /* bytes */

/* Ask for `bytes` of memory that are read soon, because processors alone do not fetch as far ahead as memory needs. */
INLINE void fetch(const void *now, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) FETCH((const char *)now + AHEAD + i, 3);
}

/* Products with few rows, as while text is generated: see lowbit/few_rows.py. y [rows, stride] = x [rows, in] w^T for `out`
   channels of w [out, in]; `bias` [out] may be null. They read the weight once, at the speed of the memory: one channel
   after another, because processors fetch a single stream ahead. Four channels side by side took twice the time
   (docs/log.md). `memory` is what the functions for the matrix unit and for transposed weights need. */
#define FEW_ROWS(NAME, TARGET, TYPE, DOT, FROM, TO)                                                                   \
    EXPORT TARGET void NAME(const TYPE *x, int64_t rows, int64_t in, int64_t out, int64_t stride, const TYPE *w,      \
                            const TYPE *bias, void *memory, TYPE *y) {                                                \
        (void)memory;                                                                                                 \
        for (int64_t c = 0; c < out; c++, w += in) {                                                                  \
            fetch(w, in * (int64_t)sizeof(TYPE));                                                                     \
            for (int64_t row = 0; row < rows; row++) {                                                                \
                float sum = DOT(w, x + row * in, in);                                                                 \
                y[row * stride + c] = TO(bias ? sum + FROM(bias[c]) : sum);                                           \
            }                                                                                                         \
        }                                                                                                             \
    }

EXPORT int64_t has_few_rows_float32(void) { return HAS_EIGHT; }
FEW_ROWS(few_rows_float32, FAST, float, long_dot, from_float, to_float)

#ifdef HAS_AVX512
#include <cpuid.h>
#include <immintrin.h>

#define SUMS 4 /* of a dot product, because an addition has to wait for the one before */
#define BFLOAT16 __attribute__((target("avx512f,avx512bw,avx512bf16")))
#define INTEGERS __attribute__((target("avx512f,avx512bw,avx512vnni")))

EXPORT int64_t has_few_rows_bfloat16(void) { return __builtin_cpu_supports("avx512bf16") != 0; }
EXPORT int64_t has_few_integer_rows_float32(void) { return __builtin_cpu_supports("avx512vnni") != 0; }
EXPORT int64_t has_few_integer_rows_bfloat16(void) { return has_few_integer_rows_float32(); }

/* A mask of the first n of 32 numbers. */
BFLOAT16 INLINE __mmask32 first_of_32(int64_t n) {
    return n >= 32 ? (__mmask32)-1 : n <= 0 ? 0 : ((__mmask32)1 << n) - 1;
}

BFLOAT16 INLINE float dot_bfloat16(const uint16_t *a, const uint16_t *x, int64_t n) {
    __m512 sum[SUMS];
    int64_t i = 0;
    for (int s = 0; s < SUMS; s++) sum[s] = _mm512_setzero_ps();
    for (; i + 32 * SUMS <= n; i += 32 * SUMS)
        for (int s = 0; s < SUMS; s++) {
            __m512i of_a = _mm512_loadu_epi16(a + i + 32 * s), of_x = _mm512_loadu_epi16(x + i + 32 * s);
            sum[s] = _mm512_dpbf16_ps(sum[s], (__m512bh)of_a, (__m512bh)of_x);
        }
    for (; i < n; i += 32) {
        __mmask32 mask = first_of_32(n - i);
        __m512i of_a = _mm512_maskz_loadu_epi16(mask, a + i), of_x = _mm512_maskz_loadu_epi16(mask, x + i);
        sum[0] = _mm512_dpbf16_ps(sum[0], (__m512bh)of_a, (__m512bh)of_x);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

FEW_ROWS(few_rows_bfloat16, BFLOAT16, uint16_t, dot_bfloat16, from_bfloat16, to_bfloat16)

/* The sum of a x. The instruction takes one factor without a sign, and flipping the bit of the sign of a adds 128 to it, so
   `of_128`, the sum of 128 x, is subtracted. */
INTEGERS INLINE int32_t dot_int8(const int8_t *a, const int8_t *x, int64_t n, int32_t of_128) {
    const __m512i flip = _mm512_set1_epi8(-128);
    __m512i sum[SUMS];
    int64_t i = 0;
    for (int s = 0; s < SUMS; s++) sum[s] = _mm512_setzero_si512();
    for (; i + 64 * SUMS <= n; i += 64 * SUMS)
        for (int s = 0; s < SUMS; s++) {
            __m512i of_a = _mm512_xor_si512(_mm512_loadu_epi8(a + i + 64 * s), flip);
            sum[s] = _mm512_dpbusd_epi32(sum[s], of_a, _mm512_loadu_epi8(x + i + 64 * s));
        }
    for (; i < n; i += 64) {
        __mmask64 mask = n - i < 64 ? ((__mmask64)1 << (n - i)) - 1 : (__mmask64)-1;
        __m512i of_a = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, a + i), flip);
        sum[0] = _mm512_dpbusd_epi32(sum[0], of_a, _mm512_maskz_loadu_epi8(mask, x + i));
    }
    sum[0] = _mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3]));
    return _mm512_reduce_add_epi32(sum[0]) - of_128;
}

/* levels [in] = those of a channel in NF4, as `levels_of_block` has them: the codes of 64 numbers, one in each byte and in
   their order, look up their levels by one instruction. */
INTEGERS INLINE void levels_of_channel(const uint8_t *packed, const uint8_t *m, int64_t in, const int8_t *table,
                                       int8_t *levels) {
    const __m512i code = _mm512_set1_epi8(15);
    for (int64_t i = 0; i < in; i += 64, packed += 32, m++) {
        __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)packed));
        __m512i codes = _mm512_or_si512(_mm512_srli_epi16(both, 4), _mm512_slli_epi16(both, 8));
        __m512i of_block = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(table + 16 * *m)));
        _mm512_storeu_epi8(levels + i, _mm512_shuffle_epi8(of_block, _mm512_and_si512(codes, code)));
    }
}

/* `few_integer_rows`: x [rows, in] is rounded as by `levels_of`, and y [rows, out] = s (q + large) w^T scale + bias. w has
   integers, or the codes of NF4 if the m of the blocks and `table` are given (see `nf4_int8`).
   `memory` has room for 16 rows + 5 in + 2 rows in bytes. */
#define FEW_INTEGER_ROWS(NAME, TYPE, ROUNDED, TO)                                                                     \
    EXPORT INTEGERS void NAME(const TYPE *x, int64_t rows, int64_t in, int64_t out, int64_t blocks, const int8_t *w,  \
                              const uint8_t *m, const int8_t *table, const float *scale, const float *bias,           \
                              void *memory, TYPE *y) {                                                                \
        int64_t *ends = memory, of_channel = m == 0 ? in : in / 2;                                                    \
        int32_t *of_128 = (int32_t *)(ends + rows);                                                                   \
        float *s = (float *)(of_128 + rows), *exact = s + rows;                                                       \
        int32_t *columns = (int32_t *)(exact + in), *values = columns + rows * in / 8;                                \
        int8_t *q = (int8_t *)(values + rows * in / 8), *levels = q + rows * in;                                      \
        ROUNDED(x, rows, in, in, blocks, q, s, exact, ends, columns, values);                                         \
        for (int64_t row = 0; row < rows; row++) {                                                                    \
            of_128[row] = 0;                                                                                          \
            for (int64_t i = 0; i < in; i++) of_128[row] += 128 * q[row * in + i];                                    \
        }                                                                                                             \
        for (int64_t c = 0; c < out; c++, w += of_channel) {                                                          \
            const int8_t *channel = m == 0 ? w : levels;                                                              \
            int64_t i = 0;                                                                                            \
            fetch(w, of_channel);                                                                                     \
            if (m != 0) levels_of_channel((const uint8_t *)w, m + c * (in / 64), in, table, levels);                  \
            for (int64_t row = 0; row < rows; row++) {                                                                \
                int32_t sum = dot_int8(channel, q + row * in, in, of_128[row]);                                       \
                for (; i < ends[row]; i++) sum += values[i] * channel[columns[i]];                                    \
                float value = (float)sum * s[row] * scale[c];                                                         \
                y[row * out + c] = TO(bias ? bias[c] + value : value);                                                \
            }                                                                                                         \
        }                                                                                                             \
    }

FEW_INTEGER_ROWS(few_integer_rows_float32, float, rounded_float32, to_float)
FEW_INTEGER_ROWS(few_integer_rows_bfloat16, uint16_t, rounded_bfloat16, to_bfloat16)

/* The same for a weight that is stored as w [in, out], without its transposition: 16 of its rows are read side by side,
   and added to sums [rows, padded], of which `padded` is `out` rounded up to a multiple of 32. Two neighbouring rows are
   interleaved, because the instruction adds the products of pairs. That leaves the sums of 32 columns in another order:
   those of columns 0 to 3, 8 to 11, 16 to 19 and 24 to 27 come first. */
#define PAIRS 8
#define MOST_ROWS 4

BFLOAT16 INLINE void strip_bfloat16(int rows, int pairs, const uint16_t *x, int64_t in, int64_t n, const uint16_t *w,
                                    int64_t columns, float *sums, int64_t padded) {
    for (int64_t i = 0; i < columns; i += 32) {
        __mmask32 mask = first_of_32(columns - i);
        __m512 low[MOST_ROWS], high[MOST_ROWS];
        for (int r = 0; r < rows; r++) {
            low[r] = _mm512_loadu_ps(sums + r * padded + i);
            high[r] = _mm512_loadu_ps(sums + r * padded + i + 16);
        }
        for (int p = 0; p < pairs; p++) {
            __m512i even = _mm512_maskz_loadu_epi16(mask, w + 2 * p * n + i), odd = _mm512_setzero_si512();
            if (2 * p + 1 < in) odd = _mm512_maskz_loadu_epi16(mask, w + (2 * p + 1) * n + i);
            __m512bh first = (__m512bh)_mm512_unpacklo_epi16(even, odd);
            __m512bh second = (__m512bh)_mm512_unpackhi_epi16(even, odd);
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x + r * 2 * PAIRS + 2 * p, 4);
                __m512bh of_x = (__m512bh)_mm512_set1_epi32(pair);
                low[r] = _mm512_dpbf16_ps(low[r], first, of_x);
                high[r] = _mm512_dpbf16_ps(high[r], second, of_x);
            }
        }
        for (int r = 0; r < rows; r++) {
            _mm512_storeu_ps(sums + r * padded + i, low[r]);
            _mm512_storeu_ps(sums + r * padded + i + 16, high[r]);
        }
    }
}

BFLOAT16 INLINE void transposed_bfloat16(int rows, const uint16_t *x, int64_t in, int64_t columns, int64_t n,
                                         const uint16_t *w, float *sums, int64_t padded) {
    for (int64_t k = 0; k < in; k += 2 * PAIRS) {
        uint16_t of_x[MOST_ROWS * 2 * PAIRS] = {0};
        int64_t left = in - k < 2 * PAIRS ? in - k : 2 * PAIRS;
        for (int r = 0; r < rows; r++) memcpy(of_x + r * 2 * PAIRS, x + r * in + k, (size_t)left * 2);
        if (left == 2 * PAIRS)
            strip_bfloat16(rows, PAIRS, of_x, left, n, w + k * n, columns, sums, padded);
        else
            strip_bfloat16(rows, (int)(left + 1) / 2, of_x, left, n, w + k * n, columns, sums, padded);
    }
}

/* y [rows, n] = sums [rows, padded] + bias, with the columns in their order. */
INLINE void deinterleaved(const float *sums, int64_t rows, int64_t out, int64_t padded, int64_t n, const uint16_t *bias,
                          uint16_t *y) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < out; i++) {
            int64_t place = i / 32 * 32 + i % 32 / 8 * 4 + i % 4 + (i % 8 < 4 ? 0 : 16);
            float total = sums[r * padded + place];
            y[r * n + i] = to_bfloat16(bias ? total + from_bfloat16(bias[i]) : total);
        }
}

EXPORT int64_t has_few_rows_transposed_bfloat16(void) { return has_few_rows_bfloat16(); }

/* For `out` of the n columns of w, whose first one is at w; at most 4 rows. `sums` has room for [rows, padded]. */
EXPORT BFLOAT16 void few_rows_transposed_bfloat16(const uint16_t *x, int64_t rows, int64_t in, int64_t out, int64_t n,
                                                  const uint16_t *w, const uint16_t *bias, float *sums, uint16_t *y) {
    int64_t padded = (out + 31) / 32 * 32;
    memset(sums, 0, (size_t)(rows * padded) * 4);
    if (rows == 4) transposed_bfloat16(4, x, in, out, n, w, sums, padded);
    if (rows == 3) transposed_bfloat16(3, x, in, out, n, w, sums, padded);
    if (rows == 2) transposed_bfloat16(2, x, in, out, n, w, sums, padded);
    if (rows == 1) transposed_bfloat16(1, x, in, out, n, w, sums, padded);
    deinterleaved(sums, rows, out, padded, n, bias, y);
}

/* Whether there are a matrix unit and its products of bfloat16. */
static int has_amx(void) {
    unsigned a, b, c, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1 && d >> 24 & 1;
}

/* The same by the matrix unit AMX, whose tiles have 16 rows of 64 bytes. TDPBF16PS adds the products of neighbouring
   pairs of numbers, so one of its factors has pairs in its rows: x for w [out, in], and w for w [in, out]. */
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512bf16")))
#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM of Linux */
#define TILE_DATA 18
/* `_tile_loadd` of GCC does not tell the compiler that it reads memory, so what C writes to a buffer could come after the
   load of a tile from it. This keeps the order. */
#define WRITTEN_BEFORE_TILES() __asm__ volatile("" ::: "memory")

/* Linux lets a process use the tiles only after a request. */
EXPORT int64_t has_few_rows_amx_bfloat16(void) {
    return has_amx() && has_few_rows_bfloat16() && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
EXPORT int64_t has_few_rows_transposed_amx_bfloat16(void) { return has_few_rows_amx_bfloat16(); }

/* All tiles have 16 rows of 64 bytes. This is the layout that LDTILECFG reads. */
AMX INLINE void use_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } sizes = {.palette = 1};
    for (int t = 0; t < 8; t++) sizes.rows[t] = 16, sizes.row_bytes[t] = 64;
    _tile_loadconfig(&sizes);
}

/* Tiles 0 and 1 are the sums of two groups of 16 rows of x [16 channels, 16 rows], tile 2 is w [16 channels, 32
   columns], and tile 3 is x [16 pairs of columns, 16 rows, 2]. The pairs of the second group are `next` numbers further
   on. */
AMX INLINE void add_products(int groups, const uint16_t *w, int64_t w_bytes, const uint32_t *pairs, int64_t next) {
    WRITTEN_BEFORE_TILES();
    _tile_loadd(2, w, w_bytes);
    _tile_loadd(3, pairs, 64);
    _tile_dpbf16ps(0, 2, 3);
    if (groups == 1) return;
    _tile_loadd(3, pairs + next, 64);
    _tile_dpbf16ps(1, 2, 3);
}

/* For 16 channels, of which `channels` exist; w, `bias` and y begin at the first one. */
AMX INLINE void channels_amx(int groups, int64_t rows, int64_t in, int64_t channels, int64_t stride, const uint16_t *w,
                             const uint16_t *bias, const uint32_t *pairs, uint16_t *y) {
    int64_t tiles = (in + 31) / 32, whole = channels == 16 ? in / 32 : 0;
    float sums[2][16][16] __attribute__((aligned(64)));
    uint16_t part[16][32] __attribute__((aligned(64)));
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t t = 0; t < whole; t++) {
        for (int c = 0; c < 16; c++) FETCH(w + 16 * in + 32 * (16 * t + c), 2); /* of the next channels, in their order */
        add_products(groups, w + 32 * t, 2 * in, pairs + 256 * t, 256 * tiles);
    }
    for (int64_t t = whole; t < tiles; t++) { /* at the edge of w, with zeros beside it */
        int64_t columns = in - 32 * t < 32 ? in - 32 * t : 32;
        memset(part, 0, sizeof part);
        for (int64_t c = 0; c < channels; c++) memcpy(part[c], w + c * in + 32 * t, (size_t)columns * 2);
        add_products(groups, part[0], 64, pairs + 256 * t, 256 * tiles);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c++) {
            float total = sums[r / 16][c][r % 16];
            y[r * stride + c] = to_bfloat16(bias ? total + from_bfloat16(bias[c]) : total);
        }
}

/* For w [out, in] and at most 32 rows. `pairs` has room for 256 numbers for each 32 columns of x and each group of 16
   rows. */
EXPORT AMX void few_rows_amx_bfloat16(const uint16_t *x, int64_t rows, int64_t in, int64_t out, int64_t stride,
                                      const uint16_t *w, const uint16_t *bias, uint32_t *pairs, uint16_t *y) {
    int64_t groups = (rows + 15) / 16, tiles = (in + 31) / 32;
    memset(pairs, 0, (size_t)(groups * tiles) * 1024);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < in; i += 2)
            memcpy(pairs + r / 16 * tiles * 256 + i / 2 * 16 + r % 16, x + r * in + i, in - i < 2 ? 2 : 4);
    use_tiles();
    for (int64_t c = 0; c < out; c += 16) {
        int64_t channels = out - c < 16 ? out - c : 16;
        const uint16_t *of_bias = bias ? bias + c : 0;
        if (groups == 1) channels_amx(1, rows, in, channels, stride, w + c * in, of_bias, pairs, y + c);
        if (groups == 2) channels_amx(2, rows, in, channels, stride, w + c * in, of_bias, pairs, y + c);
    }
    _tile_release();
}

/* For `out` of the n columns of w [in, n], and at most 16 rows. 32 rows of w are read side by side, and each 32 of their
   columns are interleaved as in `strip_bfloat16`. `sums` has room for [16, out rounded up to a multiple of 32]. */
EXPORT AMX void few_rows_transposed_amx_bfloat16(const uint16_t *x, int64_t rows, int64_t in, int64_t out, int64_t n,
                                                 const uint16_t *w, const uint16_t *bias, float *sums, uint16_t *y) {
    int64_t padded = (out + 31) / 32 * 32;
    uint16_t of_x[16][32] __attribute__((aligned(64))), pairs[2][16][32] __attribute__((aligned(64)));
    memset(sums, 0, (size_t)(16 * padded) * 4);
    use_tiles();
    for (int64_t k = 0; k < in; k += 32) {
        int64_t left = in - k < 32 ? in - k : 32;
        memset(of_x, 0, sizeof of_x);
        for (int64_t r = 0; r < rows; r++) memcpy(of_x[r], x + r * in + k, (size_t)left * 2);
        WRITTEN_BEFORE_TILES();
        _tile_loadd(2, of_x[0], 64);
        for (int64_t i = 0; i < out; i += 32) {
            __mmask32 mask = first_of_32(out - i);
            for (int p = 0; p < 16; p++) {
                const uint16_t *row = w + (k + 2 * p) * n + i;
                __m512i even = _mm512_maskz_loadu_epi16(2 * p < left ? mask : 0, row);
                __m512i odd = _mm512_maskz_loadu_epi16(2 * p + 1 < left ? mask : 0, row + n);
                _mm512_store_si512(pairs[0][p], _mm512_unpacklo_epi16(even, odd));
                _mm512_store_si512(pairs[1][p], _mm512_unpackhi_epi16(even, odd));
            }
            WRITTEN_BEFORE_TILES();
            for (int half = 0; half < 2; half++) {
                _tile_loadd(0, sums + i + 16 * half, 4 * padded);
                _tile_loadd(3, pairs[half], 64);
                _tile_dpbf16ps(0, 2, 3);
                _tile_stored(0, sums + i + 16 * half, 4 * padded);
            }
        }
    }
    _tile_release();
    deinterleaved(sums, rows, out, padded, n, bias, y);
}
#endif

/* Attention in bfloat16, in blocks of 32 queries and 32 keys, whose scores stay in the cache: see `_CAttention` of
   fast/attention.py. The instruction adds products of neighbouring pairs of numbers, so one factor is [m, 2 n] as it is,
   and of the other one two neighbouring rows are interleaved: [n, width] of pairs. Widths are filled up with zeros to
   `columns`, a multiple of 32. */
#define BLOCK 32
#define SQUARE (BLOCK * BLOCK)

EXPORT int64_t has_attention_bfloat16(void) { return has_few_rows_bfloat16(); }

/* A tensor [batch, heads, tokens, width]: its address and strides. */
typedef struct { uint16_t *data; int64_t batch, head, token, width; } View;

typedef struct {
    View q, k, v, out;
    View logarithms; /* of width 1 and float32: what the function for AMX writes forward, and reads backward */
    View d_out, dq, dk, dv;
    int64_t heads, key_heads, queries, keys, columns;
    double scale;
    const uint32_t *bits; /* [queries, blocks of keys] for each row of the batch: a bit for each key that a query sees */
    int64_t of_bits;      /* from one row of the batch to the next */
} Attention;

/* to [BLOCK, columns] = the tokens of a head from `start` on, and zeros. */
BFLOAT16 INLINE void read_block(View x, int64_t b, int64_t head, int64_t start, int64_t tokens, int64_t columns, uint16_t *to) {
    const uint16_t *from = x.data + b * x.batch + head * x.head + start * x.token;
    for (int64_t r = 0; r < BLOCK; r++, from += x.token, to += columns)
        for (int64_t c = 0; c < columns; c += 32) {
            __mmask32 mask = start + r < tokens ? first_of_32(x.width - c) : 0;
            _mm512_storeu_epi16(to + c, _mm512_maskz_loadu_epi16(mask, from + c));
        }
}

BFLOAT16 INLINE void write_block(const uint16_t *x, int64_t columns, View to, int64_t b, int64_t head, int64_t start,
                                 int64_t tokens) {
    uint16_t *row = to.data + b * to.batch + head * to.head + start * to.token;
    for (int64_t r = 0; r < BLOCK && start + r < tokens; r++, x += columns, row += to.token)
        for (int64_t c = 0; c < columns; c += 32)
            _mm512_mask_storeu_epi16(row + c, first_of_32(to.width - c), _mm512_loadu_epi16(x + c));
}

/* to [n, width] = the interleaved rows of x [2 n, width]. */
BFLOAT16 INLINE void pair_rows(const uint16_t *x, int64_t n, int64_t width, uint32_t *restrict to) {
    for (int64_t r = 0; r < n; r++, x += 2 * width, to += width)
        for (int64_t i = 0; i < width; i++) to[i] = x[i] | (uint32_t)x[width + i] << 16;
}

/* to [columns, rows] = the transpose of x [rows, columns], for multiples of 16. In 4 steps, 16 rows exchange numbers with
   the row that is `d` further on. */
BFLOAT16 INLINE void transpose(const void *x, int64_t rows, int64_t columns, void *to) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < columns; c += 16) {
            __m512i line[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) line[i] = _mm512_loadu_si512((const uint32_t *)x + (r + i) * columns + c);
#pragma GCC unroll 4
            for (int d = 1; d < 16; d *= 2) {
                __m512i other = _mm512_xor_si512(lane, _mm512_set1_epi32(d));
                __mmask16 upper = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(d));
                __m512i first = _mm512_mask_add_epi32(lane, upper, other, _mm512_set1_epi32(16));
                __m512i second = _mm512_mask_add_epi32(other, upper, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++)
                    if (!(i & d)) {
                        __m512i a = line[i], b = line[i + d];
                        line[i] = _mm512_permutex2var_epi32(a, first, b);
                        line[i + d] = _mm512_permutex2var_epi32(a, second, b);
                    }
            }
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_storeu_si512((uint32_t *)to + (c + i) * rows + r, line[i]);
        }
}

BFLOAT16 INLINE void round_floats(const float *x, int64_t n, uint16_t *to) {
    for (int64_t i = 0; i < n; i += 16)
        _mm256_storeu_si256((__m256i *)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
}

/* The same as `write_block` for x in float32; `rows` is memory for the rounded block. */
BFLOAT16 INLINE void write_floats(const float *x, int64_t columns, uint16_t *rows, View to, int64_t b, int64_t head,
                                  int64_t start, int64_t tokens) {
    round_floats(x, BLOCK * columns, rows);
    write_block(rows, columns, to, b, head, start, tokens);
}

/* c [m, width] += a b, for a [m, n] of pairs, whose rows are `stride` pairs apart, and b [n, width] of pairs. */
BFLOAT16 INLINE void add_product(const void *a, int64_t stride, int64_t m, const uint32_t *b, int64_t n, int64_t width,
                                 float *c) {
    for (int64_t j = 0; j < width; j += 32)
        for (int64_t i = 0; i < m; i += 8) { /* 8 rows of 32 columns are kept in registers */
            const uint32_t *of_a = (const uint32_t *)a + i * stride, *of_b = b + j;
            float *of_c = c + i * width + j;
            __m512 sum[16];
            for (int s = 0; s < 16; s++) sum[s] = _mm512_loadu_ps(of_c + s / 2 * width + s % 2 * 16);
            for (int64_t k = 0; k < n; k++, of_b += width)
                for (int s = 0; s < 16; s++)
                    sum[s] = _mm512_dpbf16_ps(sum[s], (__m512bh)_mm512_set1_epi32((int)of_a[s / 2 * stride + k]),
                                              (__m512bh)_mm512_loadu_si512(of_b + s % 2 * 16));
            for (int s = 0; s < 16; s++) _mm512_storeu_ps(of_c + s / 2 * width + s % 2 * 16, sum[s]);
        }
}

#define OF_2 1.44269504f /* 2^(OF_2 x) is e^x */

/* 2^x, with an error of 2^-22. */
BFLOAT16 INLINE __m512 power_of_2(__m512 x) {
    static const float factors[] = {8.9893397e-3f, 5.5826318e-2f, 2.4015361e-1f, 6.9315308e-1f, 1.0f};
    __m512 whole = _mm512_roundscale_ps(x, 0), rest = _mm512_sub_ps(x, whole), sum = _mm512_set1_ps(1.8775767e-3f);
    for (int i = 0; i < 5; i++) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(sum, whole);
}

/* Whether any of n queries sees a key of a block. */
INLINE int is_seen(const uint32_t *bits, int64_t blocks, int64_t n) {
    while (n > 0 && bits[(n - 1) * blocks] == 0) n--;
    return n > 0;
}

/* Replace the scores of a query by bfloat16 of 2^(scale (score - the largest one)), in the first half of their places, and
   return their sum; `largest` becomes scale * the largest one. The scores are those of the blocks of keys in `list`,
   BLOCK for each, and `next` numbers lie from one block to the next. */
BFLOAT16 INLINE float exponentials(float *scores, int64_t next, const int32_t *list, int64_t count, const uint32_t *bits,
                                   float scale, float *largest) {
    __m512 most = _mm512_set1_ps(-1e30f), total = _mm512_setzero_ps(), factor = _mm512_set1_ps(scale);
    for (int64_t j = 0; j < 2 * count; j++) { /* half of a row of a block */
        __m512 x = _mm512_loadu_ps(scores + j / 2 * next + j % 2 * 16);
        most = _mm512_mask_max_ps(most, (__mmask16)(bits[list[j / 2]] >> j % 2 * 16), most, x);
    }
    *largest = _mm512_reduce_max_ps(most) * scale;
    most = _mm512_set1_ps(*largest);
    for (int64_t j = 0; j < 2 * count; j++) {
        float *block = scores + j / 2 * next;
        __m512 x = power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(block + j % 2 * 16), factor, most));
        x = _mm512_maskz_mov_ps((__mmask16)(bits[list[j / 2]] >> j % 2 * 16), x);
        total = _mm512_add_ps(total, x);
        _mm256_storeu_si256((__m256i *)block + j % 2, (__m256i)_mm512_cvtneps_pbh(x));
    }
    return _mm512_reduce_add_ps(total);
}

/* `out` or, if there is memory for dq, the gradients; for the heads from `first` to `last`, counted over the batch, which
   are all those of some key heads. With the probabilities P of a block, dS = scale P (d_out v^T - sum of d_out out),
   dv += P^T d_out, dq += dS k and dk += dS^T q. The sums of dk and dv are transposed, [columns, BLOCK] for each block of
   keys. `_memory` of fast/attention.py says how much `memory` there is, here and for AMX. */
EXPORT BFLOAT16 void attention_bfloat16(const Attention *a, int64_t first, int64_t last, uint16_t *memory) {
    int64_t blocks = (a->keys + BLOCK - 1) / BLOCK, group = a->heads / a->key_heads, columns = a->columns;
    int64_t size = BLOCK * columns / 2, backward = a->dq.data != 0;
    uint32_t *keys = (uint32_t *)memory, *values = keys + blocks * size, *key_pairs = values + blocks * size;
    uint32_t *pairs = key_pairs + blocks * size, *q_turned = pairs + size, *d_turned = q_turned + size;
    float *dk = (float *)(d_turned + size), *dv = dk + 2 * blocks * size, *scores = dv + 2 * blocks * size;
    float *sums = scores + blocks * SQUARE, inverse[BLOCK], mean[BLOCK], scale = (float)a->scale, largest;
    uint16_t *rows = (uint16_t *)(sums + 2 * size), *d_rows = rows + 2 * size;
    int32_t *list = (int32_t *)(d_rows + 2 * size);
    for (int64_t i = first; i < last; i++) {
        int64_t b = i / a->heads, h = i % a->heads;
        for (int64_t t = 0; t < blocks && h % group == 0; t++) {
            read_block(a->k, b, h / group, t * BLOCK, a->keys, columns, rows);
            transpose(rows, BLOCK, columns / 2, keys + t * size);
            read_block(a->v, b, h / group, t * BLOCK, a->keys, columns, d_rows);
            if (backward) transpose(d_rows, BLOCK, columns / 2, values + t * size);
            pair_rows(rows, BLOCK / 2, columns, key_pairs + t * size);
            if (!backward) pair_rows(d_rows, BLOCK / 2, columns, values + t * size);
        }
        if (backward && h % group == 0) memset(dk, 0, (size_t)(blocks * size) * 16); /* and dv */
        for (int64_t start = 0; start < a->queries; start += BLOCK) {
            int64_t n = a->queries - start < BLOCK ? a->queries - start : BLOCK, count = 0;
            const uint32_t *bits = a->bits + b * a->of_bits + start * blocks;
            read_block(a->q, b, h, start, a->queries, columns, rows);
            for (int64_t t = 0; t < blocks; t++) {
                if (!is_seen(bits + t, blocks, n)) continue;
                memset(scores + count * SQUARE, 0, SQUARE * 4);
                add_product(rows, columns / 2, BLOCK, keys + t * size, columns / 2, BLOCK, scores + count * SQUARE);
                list[count++] = (int32_t)t;
            }
            for (int64_t r = 0; r < n; r++)
                inverse[r] = 1.0f / exponentials(scores + r * BLOCK, SQUARE, list, count, bits + r * blocks,
                                                 scale * OF_2, &largest);
            memset(sums, 0, (size_t)size * 8);
            if (backward) {
                pair_rows(rows, BLOCK / 2, columns, pairs);
                transpose(pairs, BLOCK / 2, columns, q_turned);
                read_block(a->out, b, h, start, a->queries, columns, rows);
                read_block(a->d_out, b, h, start, a->queries, columns, d_rows);
                for (int64_t r = 0; r < n; r++) mean[r] = dot_bfloat16(rows + r * columns, d_rows + r * columns, columns);
                pair_rows(d_rows, BLOCK / 2, columns, pairs);
                transpose(pairs, BLOCK / 2, columns, d_turned);
            }
            for (int64_t j = 0; j < count; j++) {
                const uint16_t *of_scores = (uint16_t *)(scores + j * SQUARE);
                int64_t t = list[j];
                if (!backward) add_product(of_scores, BLOCK, BLOCK, values + t * size, BLOCK / 2, columns, sums);
                if (!backward) continue;
                uint16_t P[SQUARE] = {0}, dS[SQUARE] = {0};
                float dP[SQUARE] = {0};
                add_product(d_rows, columns / 2, BLOCK, values + t * size, columns / 2, BLOCK, dP);
                for (int64_t r = 0; r < n; r++)
                    for (int64_t k = 0; k < BLOCK; k++) {
                        float p = from_bfloat16(of_scores[r * 2 * BLOCK + k]) * inverse[r];
                        P[r * BLOCK + k] = to_bfloat16(p);
                        dS[r * BLOCK + k] = to_bfloat16(p * (dP[r * BLOCK + k] - mean[r]) * scale);
                    }
                pair_rows(P, BLOCK / 2, BLOCK, pairs);
                add_product(d_turned, BLOCK / 2, columns, pairs, BLOCK / 2, BLOCK, dv + 2 * t * size);
                pair_rows(dS, BLOCK / 2, BLOCK, pairs);
                add_product(q_turned, BLOCK / 2, columns, pairs, BLOCK / 2, BLOCK, dk + 2 * t * size);
                add_product(dS, BLOCK / 2, BLOCK, key_pairs + t * size, BLOCK / 2, columns, sums);
            }
            for (int64_t r = 0; r < n && !backward; r++)
                for (int64_t c = 0; c < columns; c++) sums[r * columns + c] *= inverse[r];
            write_floats(sums, columns, rows, backward ? a->dq : a->out, b, h, start, a->queries);
        }
        for (int64_t t = 0; t < 2 * blocks && backward && h % group == group - 1; t++) { /* dv follows dk */
            round_floats(dk + 2 * t * size, 2 * size, d_rows);
            pair_rows(d_rows, columns / 2, BLOCK, pairs);
            transpose(pairs, columns / 2, BLOCK, (uint32_t *)rows);
            write_block(rows, columns, t < blocks ? a->dk : a->dv, b, h / group, t % blocks * BLOCK, a->keys);
        }
    }
}

#ifdef __linux__
/* The same in tiles of the matrix unit AMX. Backward, a block of keys meets all blocks of queries that see it, and scores
   are transposed, [keys, queries]: so P^T and dS^T are the first factors of the products for dv and dk as they are, and
   the logarithms of the queries' sums, which were kept, stand beside each other. */
EXPORT int64_t has_attention_amx_bfloat16(void) { return has_few_rows_amx_bfloat16(); }

/* A factor of a product: its first block, and the bytes from a row to the next and from a block to the next. */
typedef struct { const void *data; int64_t row, block; } Factor;

/* c [m, n] = the sum of a_j b_list[j] for j < count, or of a_j b_j without a list, added to c if `add`. A block of a has
   32 columns, and one of b 16 rows of pairs; m and n are multiples of 32, and `width` is that of a row of c. */
AMX INLINE void multiply(Factor a, Factor b, const int32_t *list, int64_t count, int64_t m, int64_t n, int add, float *c,
                         int64_t width) {
    WRITTEN_BEFORE_TILES();
    for (int64_t i = 0; i < m; i += 32)
        for (int64_t k = 0; k < n; k += 32) {
            float *to = c + i * width + k, *below = to + 16 * width;
            const char *of_a = (const char *)a.data + i * a.row, *of_b = (const char *)b.data + 4 * k;
            if (add) {
                _tile_loadd(0, to, 4 * width);
                _tile_loadd(1, to + 16, 4 * width);
                _tile_loadd(2, below, 4 * width);
                _tile_loadd(3, below + 16, 4 * width);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t j = 0; j < count; j++, of_a += a.block) {
                const char *block = of_b + (list ? list[j] : j) * b.block;
                _tile_loadd(4, of_a, a.row);
                _tile_loadd(6, block, b.row);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, block + 64, b.row);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, of_a + 16 * a.row, a.row);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, 4 * width);
            _tile_stored(1, to + 16, 4 * width);
            _tile_stored(2, below, 4 * width);
            _tile_stored(3, below + 16, 4 * width);
        }
}

/* With scores and d_scores [32 keys, 32 queries], whose bits are in `seen`: P and dS in bfloat16, and dS as pairs of keys.
   P = 2^(scale score - logarithm), dS = P (d_score - mean) */
AMX INLINE void gradients_of_block(const float *scores, const float *d_scores, const __m512i *seen, const float *logarithms,
                                   const float *mean, float scale, uint16_t *P, uint16_t *dS, uint32_t *pairs) {
    for (int half = 0; half < 32; half += 16) {
        __m512 logarithm = _mm512_loadu_ps(logarithms + half), of_mean = _mm512_loadu_ps(mean + half);
        __m512 to_2 = _mm512_set1_ps(scale * OF_2), factor = _mm512_set1_ps(scale);
        for (int key = 0; key < BLOCK; key += 2) {
            __m256i of_dS[2];
            for (int k = 0; k < 2; k++) {
                int64_t place = (key + k) * BLOCK + half;
                __mmask16 mask = _mm512_test_epi32_mask(seen[half / 16], _mm512_set1_epi32((int)(1u << (key + k))));
                __m512 p = power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + place), to_2, logarithm));
                p = _mm512_maskz_mov_ps(mask, p);
                _mm256_storeu_si256((__m256i *)(P + place), (__m256i)_mm512_cvtneps_pbh(p));
                __m512 d = _mm512_sub_ps(_mm512_loadu_ps(d_scores + place), of_mean);
                d = _mm512_maskz_mul_ps(mask, _mm512_mul_ps(p, factor), d);
                of_dS[k] = (__m256i)_mm512_cvtneps_pbh(d);
                _mm256_storeu_si256((__m256i *)(dS + place), of_dS[k]);
            }
            __m512i even = _mm512_cvtepu16_epi32(of_dS[0]), odd = _mm512_slli_epi32(_mm512_cvtepu16_epi32(of_dS[1]), 16);
            _mm512_storeu_si512(pairs + key / 2 * BLOCK + half, _mm512_or_si512(even, odd));
        }
    }
}

INLINE float *logarithms_of(const Attention *a, int64_t b, int64_t head) {
    return (float *)a->logarithms.data + b * a->logarithms.batch + head * a->logarithms.head;
}

AMX INLINE void forward_amx(const Attention *a, int64_t first, int64_t last, uint16_t *memory) {
    int64_t blocks = (a->keys + BLOCK - 1) / BLOCK, group = a->heads / a->key_heads, columns = a->columns;
    int64_t size = BLOCK * columns, next = BLOCK * blocks + 16; /* so that rows do not displace each other from the cache */
    uint16_t *keys = memory, *values = keys + blocks * size, *rows = values + blocks * size;
    float *scores = (float *)(rows + size), *sums = scores + BLOCK * next, largest, scale = (float)a->scale * OF_2;
    int32_t *list = (int32_t *)(sums + size);
    for (int64_t i = first; i < last; i++) {
        int64_t b = i / a->heads, h = i % a->heads;
        float *logarithms = logarithms_of(a, b, h);
        for (int64_t t = 0; t < blocks && h % group == 0; t++) {
            read_block(a->k, b, h / group, t * BLOCK, a->keys, columns, rows);
            transpose(rows, BLOCK, columns / 2, keys + t * size);
            read_block(a->v, b, h / group, t * BLOCK, a->keys, columns, rows);
            pair_rows(rows, BLOCK / 2, columns, (uint32_t *)(values + t * size));
        }
        for (int64_t start = 0; start < a->queries; start += BLOCK) {
            int64_t n = a->queries - start < BLOCK ? a->queries - start : BLOCK, count = 0;
            const uint32_t *bits = a->bits + b * a->of_bits + start * blocks;
            Factor q = {rows, 2 * columns, 64}, P = {scores, 4 * next, 4 * BLOCK};
            read_block(a->q, b, h, start, a->queries, columns, rows);
            for (int64_t t = 0; t < blocks; t++) {
                if (!is_seen(bits + t, blocks, n)) continue;
                Factor key = {keys + t * size, 4 * BLOCK, 64 * BLOCK};
                multiply(q, key, 0, columns / 32, BLOCK, BLOCK, 0, scores + count * BLOCK, next);
                list[count++] = (int32_t)t;
            }
            float inverse[BLOCK] = {0};
            for (int64_t r = 0; r < n; r++) {
                float total = exponentials(scores + r * next, BLOCK, list, count, bits + r * blocks, scale, &largest);
                logarithms[(start + r) * a->logarithms.token] = largest + log2f(total);
                inverse[r] = 1.0f / total;
            }
            Factor value = {values, 4 * columns, 2 * size};
            multiply(P, value, list, count, BLOCK, columns, 0, sums, columns);
            for (int64_t r = 0; r < BLOCK; r++)
                for (int64_t c = 0; c < columns; c++) sums[r * columns + c] *= inverse[r];
            write_floats(sums, columns, rows, a->out, b, h, start, a->queries);
        }
    }
}

AMX INLINE void backward_amx(const Attention *a, int64_t first, int64_t last, uint16_t *memory) {
    int64_t blocks = (a->keys + BLOCK - 1) / BLOCK, of_queries = (a->queries + BLOCK - 1) / BLOCK;
    int64_t group = a->heads / a->key_heads, columns = a->columns, size = BLOCK * columns;
    uint16_t *q_turned = memory, *d_turned = q_turned + of_queries * size, *q_pairs = d_turned + of_queries * size;
    uint16_t *d_pairs = q_pairs + of_queries * size, *rows = d_pairs + of_queries * size, *d_rows = rows + size;
    uint16_t *k_turned = d_rows + size, *P = k_turned + size, *dS = P + of_queries * SQUARE;
    uint16_t *dS_pairs = dS + of_queries * SQUARE;
    float *dk = (float *)(dS_pairs + of_queries * SQUARE), *dv = dk + blocks * size, *dq = dv + blocks * size;
    float *sums = dq + of_queries * size, *scores = sums + size, *d_scores = scores + SQUARE, *mean = d_scores + SQUARE;
    float *logarithms = mean + of_queries * BLOCK, scale = (float)a->scale;
    int32_t *list = (int32_t *)(logarithms + of_queries * BLOCK);
    memset(mean, 0, (size_t)(of_queries * BLOCK) * 8); /* and logarithms */
    for (int64_t i = first; i < last; i++) {
        int64_t b = i / a->heads, h = i % a->heads;
        for (int64_t s = 0; s < of_queries; s++) {
            read_block(a->q, b, h, s * BLOCK, a->queries, columns, rows);
            transpose(rows, BLOCK, columns / 2, q_turned + s * size);
            pair_rows(rows, BLOCK / 2, columns, (uint32_t *)(q_pairs + s * size));
            read_block(a->out, b, h, s * BLOCK, a->queries, columns, rows);
            read_block(a->d_out, b, h, s * BLOCK, a->queries, columns, d_rows);
            transpose(d_rows, BLOCK, columns / 2, d_turned + s * size);
            pair_rows(d_rows, BLOCK / 2, columns, (uint32_t *)(d_pairs + s * size));
            for (int64_t r = 0; r < BLOCK; r++)
                mean[s * BLOCK + r] = dot_bfloat16(rows + r * columns, d_rows + r * columns, columns);
        }
        const float *of_head = logarithms_of(a, b, h);
        for (int64_t s = 0; s < a->queries; s++) logarithms[s] = of_head[s * a->logarithms.token];
        memset(dq, 0, (size_t)(of_queries * size) * 4);
        for (int64_t t = 0; t < blocks; t++) {
            int64_t count = 0;
            read_block(a->k, b, h / group, t * BLOCK, a->keys, columns, rows);
            read_block(a->v, b, h / group, t * BLOCK, a->keys, columns, d_rows);
            pair_rows(rows, BLOCK / 2, columns, (uint32_t *)sums);
            transpose(sums, BLOCK / 2, columns, k_turned);
            for (int64_t s = 0; s < of_queries; s++) {
                int64_t n = a->queries - s * BLOCK < BLOCK ? a->queries - s * BLOCK : BLOCK;
                const uint32_t *bits = a->bits + b * a->of_bits + s * BLOCK * blocks + t;
                if (!is_seen(bits, blocks, n)) continue;
                uint32_t of_block[BLOCK] = {0};
                for (int64_t r = 0; r < n; r++) of_block[r] = bits[r * blocks];
                __m512i seen[2] = {_mm512_loadu_si512(of_block), _mm512_loadu_si512(of_block + 16)};
                Factor key = {rows, 2 * columns, 64}, query = {q_turned + s * size, 4 * BLOCK, 64 * BLOCK};
                Factor value = {d_rows, 2 * columns, 64}, d_out = {d_turned + s * size, 4 * BLOCK, 64 * BLOCK};
                multiply(key, query, 0, columns / 32, BLOCK, BLOCK, 0, scores, BLOCK);
                multiply(value, d_out, 0, columns / 32, BLOCK, BLOCK, 0, d_scores, BLOCK);
                gradients_of_block(scores, d_scores, seen, logarithms + s * BLOCK, mean + s * BLOCK, scale,
                                   P + count * SQUARE, dS + count * SQUARE, (uint32_t *)(dS_pairs + count * SQUARE));
                Factor turned = {k_turned, 2 * BLOCK, 0}, pairs = {dS_pairs + count * SQUARE, 4 * BLOCK, 0};
                multiply(turned, pairs, 0, 1, columns, BLOCK, 1, dq + s * size, BLOCK);
                list[count++] = (int32_t)s;
            }
            Factor of_P = {P, 2 * BLOCK, 2 * SQUARE}, of_d = {d_pairs, 4 * columns, 2 * size};
            Factor of_dS = {dS, 2 * BLOCK, 2 * SQUARE}, of_q = {q_pairs, 4 * columns, 2 * size};
            multiply(of_P, of_d, list, count, BLOCK, columns, h % group != 0, dv + t * size, columns);
            multiply(of_dS, of_q, list, count, BLOCK, columns, h % group != 0, dk + t * size, columns);
            if (h % group < group - 1) continue;
            write_floats(dk + t * size, columns, rows, a->dk, b, h / group, t * BLOCK, a->keys);
            write_floats(dv + t * size, columns, rows, a->dv, b, h / group, t * BLOCK, a->keys);
        }
        for (int64_t s = 0; s < of_queries; s++) {
            transpose(dq + s * size, columns, BLOCK, sums);
            write_floats(sums, columns, rows, a->dq, b, h, s * BLOCK, a->queries);
        }
    }
}

EXPORT AMX void attention_amx_bfloat16(const Attention *a, int64_t first, int64_t last, uint16_t *memory) {
    use_tiles();
    if (a->dq.data != 0) backward_amx(a, first, last, memory);
    else forward_amx(a, first, last, memory);
    _tile_release();
}
#endif
#endif
