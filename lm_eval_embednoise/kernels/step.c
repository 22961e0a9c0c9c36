/* What a decode step does beside its matrix products, for float32 on a CPU.
 *
 * Called from lean.py and attention.py, which have the same in PyTorch's operations. Rows don't
 * know of each other: a row's result is the same in any company.
 * Arrays are contiguous; `restrict` holds because outputs are never inputs.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define EACH _Pragma("omp simd")
#define SUM(s) SUM_(omp simd reduction(+ : s))
#define SUM_(text) _Pragma(#text)
#define INLINE static inline __attribute__((always_inline))

/* e^x within two units in the last place (Cody and Waite's reduction, a polynomial of degree 6), in
 * a form that compilers turn into vector instructions. 0 and infinity at the ends are e^±87. */
INLINE float exp_of(float x)
{
    const float round = 12582912.0f; /* adding 1.5 · 2^23 rounds to an integer */
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    float n = (x * 1.44269504f + round) - round;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return p * power.value;
}

/* out = x / rms(x) · weight, for x: [rows, dim] */
void rms_norm(long rows, long dim, float eps, const float *restrict x,
              const float *restrict weight, float *restrict out)
{
    for (long row = 0; row < rows; row++, x += dim, out += dim) {
        float sum = 0;
        SUM(sum) for (long i = 0; i < dim; i++) sum += x[i] * x[i];
        float scale = 1.0f / sqrtf(sum / (float)dim + eps);
        EACH for (long i = 0; i < dim; i++) out[i] = x[i] * scale * weight[i];
    }
}

/* out = silu(gate) · up, elementwise */
void silu_product(long count, const float *restrict gate, const float *restrict up,
                  float *restrict out)
{
    EACH for (long i = 0; i < count; i++) out[i] = gate[i] / (1.0f + exp_of(-gate[i])) * up[i];
}

/* v · cos + rotate_half(v) · sin for one head; `out` may have its heads anywhere */
INLINE void rotate(long dim, const float *restrict v, const float *restrict cos,
                   const float *restrict sin, float *restrict out)
{
    long half = dim / 2;
    EACH for (long i = 0; i < half; i++) {
        out[i] = v[i] * cos[i] - v[half + i] * sin[i];
        out[half + i] = v[half + i] * cos[half + i] + v[i] * sin[half + i];
    }
}

/* Rotary positions on queries and keys; keys and values into the rows' slots.
 *
 * q, rotated: [rows, heads * group, dim]; k, v: [rows, heads, dim]; cos, sin: [rows, dim]
 * write: column of each row's new entry; keys, values: [slots, heads, columns, dim]
 */
void enter(long rows, long heads, long group, long dim, long columns, const float *restrict q,
           const float *restrict k, const float *restrict v, const float *restrict cos,
           const float *restrict sin, const int64_t *restrict write, float *restrict keys,
           float *restrict values, float *restrict rotated)
{
    for (long row = 0; row < rows; row++, cos += dim, sin += dim)
        for (long head = 0; head < heads; head++, k += dim, v += dim) {
            for (long i = 0; i < group; i++, q += dim, rotated += dim)
                rotate(dim, q, cos, sin, rotated);
            long at = ((row * heads + head) * columns + write[row]) * dim;
            rotate(dim, k, cos, sin, keys + at);
            EACH for (long i = 0; i < dim; i++) values[at + i] = v[i];
        }
}

/* Softmax of `count` scores in place, unnormalised; their sum goes to `total`. The largest score. */
INLINE float exponentials(long count, float top, float *restrict scores, float *total)
{
    for (long j = 0; j < count; j++) top = scores[j] > top ? scores[j] : top;
    float sum = 0;
    SUM(sum) for (long j = 0; j < count; j++) {
        scores[j] = exp_of(scores[j] - top);
        sum += scores[j];
    }
    *total = sum;
    return top;
}

/* One query over `count` entries and a prompt that is given by its result; the log-sum-exp.
 * Meanwhile the entries that come next in memory are fetched: reading them is what takes time. */
INLINE float attend_one(long dim, long count, long columns, float scale, const float *restrict q,
                        const float *restrict keys, const float *restrict values,
                        const float *restrict prompt, float prompt_lse, float *restrict scores,
                        float *restrict out)
{
    const float *next_keys = keys + columns * dim, *next_values = values + columns * dim;
    for (long j = 0; j < count; j++) {
        float s = 0;
        for (long i = 0; i < dim; i += 16) __builtin_prefetch(next_keys + j * dim + i, 0, 2);
        SUM(s) for (long i = 0; i < dim; i++) s += q[i] * keys[j * dim + i];
        scores[j] = s * scale;
    }
    float total, top = exponentials(count, prompt_lse, scores, &total);
    float of_prompt = prompt ? exp_of(prompt_lse - top) : 0.0f;
    total += of_prompt;
    for (long i = 0; i < dim; i++) out[i] = prompt ? of_prompt * prompt[i] : 0.0f;
    for (long j = 0; j < count; j++) {
        float weight = scores[j];
        for (long i = 0; i < dim; i += 16) __builtin_prefetch(next_values + j * dim + i, 0, 2);
        EACH for (long i = 0; i < dim; i++) out[i] += weight * values[j * dim + i];
    }
    EACH for (long i = 0; i < dim; i++) out[i] /= total;
    return top + logf(total);
}

INLINE int attend_all(long dim, long rows, long heads, long group, long columns, float scale,
                      const float *restrict q, const float *restrict keys,
                      const float *restrict values, const int64_t *restrict lengths,
                      const float *restrict prompt, const float *restrict prompt_lse,
                      float *restrict out, float *restrict lse)
{
    float *scores = malloc(sizeof(float) * (size_t)columns);
    if (!scores) return 1;
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++, keys += columns * dim, values += columns * dim)
            for (long i = 0; i < group; i++, q += dim, out += dim, lse++) {
                *lse = attend_one(dim, lengths[row], columns, scale, q, keys, values, prompt,
                                  prompt ? *prompt_lse++ : -INFINITY, scores, out);
                if (prompt) prompt += dim;
            }
    free(scores);
    return 0;
}

/* Softmax attention of each row over its first `lengths[row]` entries and, unless `prompt` is null,
 * over a prompt, of which attention's result and log-sum-exp are given: in one softmax.
 *
 * q, prompt, out: [rows, heads, group, dim]; keys, values: [rows, heads, columns, dim]
 * prompt_lse, lse: [rows, heads, group]
 * Returns 1 where memory is short.
 */
int attend(long dim, long rows, long heads, long group, long columns, float scale, const float *q,
           const float *keys, const float *values, const int64_t *lengths, const float *prompt,
           const float *prompt_lse, float *out, float *lse)
{
#define CALL(width)                                                                                \
    attend_all(width, rows, heads, group, columns, scale, q, keys, values, lengths, prompt,        \
               prompt_lse, out, lse)
    switch (dim) { /* known widths let the compiler unroll */
    case 32: return CALL(32);
    case 64: return CALL(64);
    case 128: return CALL(128);
    default: return CALL(dim);
    }
#undef CALL
}

typedef float vec __attribute__((vector_size(64), aligned(4))); /* 16 numbers */
#define TILE 8                                                  /* queries that share a read */
#define COLUMNS 16                                              /* keys, or coordinates, at a time */
#define LOAD(p) (*(const vec *)(p))
#define STORE(p) (*(vec *)(p))

/* Some queries over one prompt: what a key or value costs to read serves all of them.
 * columns: [dim, padded]; values: [length, dim]; scores: [TILE, padded] */
INLINE void attend_tile(long dim, long length, long padded, float scale,
                        const float *const q[TILE], const float *restrict columns,
                        const float *restrict values, float *restrict scores, float *const out[TILE],
                        float *const lse[TILE])
{
    for (long j = 0; j < padded; j += COLUMNS) {
        vec sum[TILE] = {{0}};
        for (long i = 0; i < dim; i++) {
            const vec keys = LOAD(columns + i * padded + j);
            for (int t = 0; t < TILE; t++) sum[t] += q[t][i] * keys;
        }
        for (int t = 0; t < TILE; t++) STORE(scores + t * padded + j) = sum[t] * scale;
    }
    float total[TILE];
    for (int t = 0; t < TILE; t++) {
        float top = exponentials(length, -INFINITY, scores + t * padded, &total[t]);
        *lse[t] = top + logf(total[t]);
        total[t] = 1.0f / total[t];
    }
    for (long i = 0; i < dim; i += COLUMNS) {
        vec sum[TILE] = {{0}};
        for (long j = 0; j < length; j++) {
            const vec value = LOAD(values + j * dim + i);
            for (int t = 0; t < TILE; t++) sum[t] += scores[t * padded + j] * value;
        }
        for (int t = 0; t < TILE; t++) STORE(out[t] + i) = sum[t] * total[t];
    }
}

/* Softmax attention of rows over a prompt that they share.
 *
 * rows: [count], which rows of q and out, or null for rows 0 to count - 1
 * q, out: [.., heads, group, dim], lse: [.., heads, group]; dim is a multiple of 16
 * columns: [heads, dim, padded], the keys' transpose, zeros behind `length`; values: [heads, length, dim]
 * Returns 1 where memory is short.
 */
int attend_prompt(long dim, long count, long heads, long group, long length, long padded,
                  float scale, const int64_t *restrict rows, const float *restrict q,
                  const float *restrict columns, const float *restrict values, float *restrict out,
                  float *restrict lse)
{
    long queries = count * group;
    float *scores = malloc(sizeof(float) * (size_t)(TILE * padded));
    if (!scores) return 1;
    for (long head = 0; head < heads; head++) {
        for (long start = 0; start < queries; start += TILE) {
            const float *from[TILE];
            float *to[TILE], *sums[TILE];
            for (int t = 0; t < TILE; t++) { /* the last tile does its last query several times */
                long query = start + t < queries ? start + t : queries - 1;
                long row = rows ? rows[query / group] : query / group;
                long at = (row * heads + head) * group + query % group;
                from[t] = q + at * dim;
                to[t] = out + at * dim;
                sums[t] = lse + at;
            }
            switch (dim) {
            case 32: attend_tile(32, length, padded, scale, from, columns, values, scores, to, sums); break;
            case 64: attend_tile(64, length, padded, scale, from, columns, values, scores, to, sums); break;
            case 128: attend_tile(128, length, padded, scale, from, columns, values, scores, to, sums); break;
            default: attend_tile(dim, length, padded, scale, from, columns, values, scores, to, sums);
            }
        }
        columns += dim * padded;
        values += length * dim;
    }
    free(scores);
    return 0;
}
