/* What decode steps and prefills do beside their matrix products, for float32 on a CPU.
 *
 * Called from step.py, attention.py and choice.py beside it, which check types, shapes and places;
 * PyTorch's operations there do the same elsewhere. Rows are independent: a row's result is the
 * same in any company. Arrays are contiguous; `restrict` holds because outputs are never inputs.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

enum { NO_MEMORY = 1, OUT_OF_RANGE = 2 }; /* what is returned; 0 for success. As in arguments.py */

#define EACH _Pragma("omp simd")
#define SUM(s) PRAGMA(omp simd reduction(+ : s))
#define MAX(s) PRAGMA(omp simd reduction(max : s))
#define PRAGMA(text) _Pragma(#text)
/* known widths let the compiler unroll */
#define WITH_KNOWN_WIDTH(dim, CALL)                                                                \
    switch (dim) {                                                                                 \
    case 32: CALL(32); break;                                                                      \
    case 64: CALL(64); break;                                                                      \
    case 128: CALL(128); break;                                                                    \
    default: CALL(dim);                                                                            \
    }
#define INLINE static inline __attribute__((always_inline))

/* Whether all numbers are least to most */
static int within(long count, const int64_t *numbers, long least, long most)
{
    for (long i = 0; i < count; i++)
        if (numbers[i] < least || numbers[i] > most) return 0;
    return 1;
}

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

/* Not inlined: in the loop over rows gcc 12 makes it take twice as long */
static __attribute__((noinline)) void silu_product_of(long dim, const float *restrict gate,
                                                      const float *restrict up,
                                                      float *restrict out)
{
    EACH for (long i = 0; i < dim; i++) out[i] = gate[i] / (1.0f + exp_of(-gate[i])) * up[i];
}

/* out = silu(gate) · up, for gate_up: [rows, 2 * dim], out: [rows, dim] */
void silu_product(long rows, long dim, const float *gate_up, float *out)
{
    for (long row = 0; row < rows; row++, gate_up += 2 * dim, out += dim)
        silu_product_of(dim, gate_up, gate_up + dim, out);
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

/* Rotary positions on queries and keys; keys and values into slots.
 *
 * qkv: [rows, heads * (group + 2), dim], queries before keys before values; cos, sin: [rows, dim]
 * slots, write: slot and column of each row's entry, slots null for 0 to rows - 1
 * keys, values: [count, heads, columns, dim]; rotated: [rows, heads * group, dim]
 */
int enter(long rows, long heads, long group, long dim, long count, long columns,
          const float *restrict qkv, const float *restrict cos, const float *restrict sin,
          const int64_t *restrict slots, const int64_t *restrict write, float *restrict keys,
          float *restrict values, float *restrict rotated)
{
    if (!within(rows, write, 0, columns - 1)) return OUT_OF_RANGE;
    if (slots && !within(rows, slots, 0, count - 1)) return OUT_OF_RANGE;
    for (long row = 0; row < rows; row++, cos += dim, sin += dim) {
        for (long i = 0; i < heads * group; i++, qkv += dim, rotated += dim)
            rotate(dim, qkv, cos, sin, rotated);
        long at = ((slots ? slots[row] : row) * heads * columns + write[row]) * dim;
        for (long head = 0; head < heads; head++, qkv += dim)
            rotate(dim, qkv, cos, sin, keys + at + head * columns * dim);
        for (long head = 0; head < heads; head++, qkv += dim)
            EACH for (long i = 0; i < dim; i++) values[at + head * columns * dim + i] = qkv[i];
    }
    return 0;
}

/* Softmax of `count` scores in place, unnormalised; their sum goes to `total`. The largest score. */
INLINE float exponentials(long count, float top, float *restrict scores, float *total)
{
    MAX(top) for (long j = 0; j < count; j++) top = scores[j] > top ? scores[j] : top;
    float sum = 0;
    SUM(sum) for (long j = 0; j < count; j++) {
        scores[j] = exp_of(scores[j] - top);
        sum += scores[j];
    }
    *total = sum;
    return top;
}

#define PART 64    /* numbers that are summed in float32 */
#define SURE 2e-6 /* of the total: what rounding here and in PyTorch's softmax can add up to */

/* The largest of x / temperature */
static float largest(long count, float temperature, const float *restrict x)
{
    float top = -INFINITY;
    MAX(top) for (long j = 0; j < count; j++) top = x[j] > top ? x[j] : top;
    return top / temperature;
}

/* out = e^(x / temperature - top), at most PART of them, and their sum */
static float part_of(long count, float temperature, float top, const float *restrict x,
                     float *restrict out)
{
    float sum = 0;
    EACH for (long j = 0; j < count; j++) out[j] = exp_of(x[j] / temperature - top);
    SUM(sum) for (long j = 0; j < count; j++) sum += out[j];
    return sum;
}

INLINE long part_end(long start, long vocab) { return vocab - start < PART ? vocab - start : PART; }

/* The token at which the distribution function exceeds `uniform`, -1 where rounding may decide
 *
 * sums: [vocab / PART, rounded up], overwritten
 */
static int64_t sample_one(long vocab, float temperature, const float *restrict logits,
                          double uniform, double *restrict sums)
{
    float top = largest(vocab, temperature, logits), values[PART];
    double total = 0, before = 0;
    for (long start = 0; start < vocab; start += PART)
        total += sums[start / PART] = part_of(part_end(start, vocab), temperature, top,
                                              logits + start, values);
    double target = uniform * total, most = SURE * total;
    if (!(most < INFINITY)) return -1;
    long start = 0;
    while (start + PART < vocab && before + sums[start / PART] <= target)
        before += sums[start / PART], start += PART;
    long count = part_end(start, vocab);
    part_of(count, temperature, top, logits + start, values);
    for (long j = 0; j < count; j++) {
        double after = before + values[j];
        if (after > target)
            return target - before > most && after - target > most ? start + j : -1;
        before = after;
    }
    return -1;
}

/* tokens: [rows], of logits [rows, vocab] at uniforms [rows] */
int sample(long rows, long vocab, float temperature, const float *logits, const double *uniforms,
           int64_t *tokens)
{
    double *sums = malloc(sizeof(double) * (size_t)(vocab / PART + 1));
    if (!sums) return NO_MEMORY;
    for (long row = 0; row < rows; row++)
        tokens[row] = sample_one(vocab, temperature, logits + row * vocab, uniforms[row], sums);
    free(sums);
    return 0;
}

/* out: [rows], -log softmax(logits)[token] for logits: [rows, vocab] */
int token_nll(long rows, long vocab, const float *logits, const int64_t *tokens, float *out)
{
    if (!within(rows, tokens, 0, vocab - 1)) return OUT_OF_RANGE;
    for (long row = 0; row < rows; row++, logits += vocab) {
        float top = largest(vocab, 1.0f, logits), values[PART];
        double total = 0;
        for (long start = 0; start < vocab; start += PART)
            total += part_of(part_end(start, vocab), 1.0f, top, logits + start, values);
        out[row] = (float)(log(total) + ((double)top - (double)logits[tokens[row]]));
    }
    return 0;
}

typedef float vec __attribute__((vector_size(64), aligned(4))); /* 16 numbers */
#define TILE 8                                                  /* queries that share a read */
#define COLUMNS 16                                              /* keys, or coordinates, at a time */
#define WIDEST 256                                              /* heads */
#define LOAD(p) (*(const vec *)(p))
#define STORE(p) (*(vec *)(p))

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int which __attribute__((vector_size(64)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (which){__VA_ARGS__})
#endif

/* The sums of 16 vectors' elements, as one vector: neighbours are added up four times over */
INLINE vec sums_of(vec v[16])
{
    for (int i = 0; i < 8; i++) {
        vec a = v[2 * i], b = v[2 * i + 1];
        v[i] = SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
    for (int i = 0; i < 4; i++) {
        vec a = v[2 * i], b = v[2 * i + 1];
        v[i] = SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    for (int i = 0; i < 2; i++) {
        vec a = v[2 * i], b = v[2 * i + 1];
        v[i] = SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    return SHUFFLE(v[0], v[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(v[0], v[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

/* One query over `count` entries and a prompt that is given by its result; the log-sum-exp.
 * Meanwhile entries `next` numbers further on are fetched: reading them is what takes time. */
INLINE float attend_one(long dim, long count, long next, float scale, const float *restrict q,
                        const float *restrict keys, const float *restrict values,
                        const float *restrict prompt, float prompt_lse, float *restrict scores,
                        float *restrict out)
{
    for (long j = 0; j < count; j += COLUMNS) {
        vec products[COLUMNS];
        for (long t = 0; t < COLUMNS; t++) { /* behind the last key, that one again */
            const float *key = keys + (j + t < count ? j + t : count - 1) * dim;
            products[t] = LOAD(q) * LOAD(key);
            for (long i = COLUMNS; i < dim; i += COLUMNS) products[t] += LOAD(q + i) * LOAD(key + i);
            if (next)
                for (long i = 0; i < dim; i += COLUMNS) __builtin_prefetch(key + next + i, 0, 2);
        }
        STORE(scores + j) = sums_of(products) * scale;
    }
    float total, top = exponentials(count, prompt_lse, scores, &total);
    float of_prompt = prompt ? exp_of(prompt_lse - top) : 0.0f;
    total += of_prompt;
    vec even[WIDEST / COLUMNS], odd[WIDEST / COLUMNS]; /* entries in turn */
    for (long i = 0; i < dim / COLUMNS; i++)
        even[i] = (vec){0}, odd[i] = prompt ? of_prompt * LOAD(prompt + i * COLUMNS) : (vec){0};
    long j = 0;
    for (; j + 2 <= count; j += 2) {
        const float *value = values + j * dim;
        for (long i = 0; i < dim / COLUMNS; i++, value += COLUMNS) {
            even[i] += scores[j] * LOAD(value);
            odd[i] += scores[j + 1] * LOAD(value + dim);
            if (next) __builtin_prefetch(value + next, 0, 2);
            if (next) __builtin_prefetch(value + next + dim, 0, 2);
        }
    }
    for (long i = 0; i < dim / COLUMNS; i++) {
        if (j < count) even[i] += scores[j] * LOAD(values + j * dim + i * COLUMNS);
        STORE(out + i * COLUMNS) = (even[i] + odd[i]) / total;
    }
    return top + logf(total);
}

INLINE int attend_all(long dim, long rows, long heads, long group, long columns, float scale,
                      const float *restrict q, const float *restrict keys,
                      const float *restrict values, const int64_t *restrict lengths,
                      const float *restrict prompt, const float *restrict prompt_lse,
                      float *restrict out, float *restrict lse)
{
    float *scores = malloc(sizeof(float) * (size_t)(columns + COLUMNS));
    if (!scores) return NO_MEMORY;
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++, keys += columns * dim, values += columns * dim)
            for (long i = 0; i < group; i++, q += dim, out += dim, lse++) {
                *lse = attend_one(dim, lengths[row], i ? 0 : columns * dim, scale, q, keys, values,
                                  prompt, prompt ? *prompt_lse++ : -INFINITY, scores, out);
                if (prompt) prompt += dim;
            }
    free(scores);
    return 0;
}

/* Softmax attention of each row over its first `lengths[row]` entries and, unless `prompt` is null,
 * over a prompt, of which attention's result and log-sum-exp are given: in one softmax.
 *
 * q, prompt, out: [rows, heads, group, dim], dim a multiple of 16, at most 256
 * keys, values: [rows, heads, columns, dim], of which `width` columns may be read
 * prompt_lse, lse: [rows, heads, group]
 */
int attend(long dim, long rows, long heads, long group, long width, long columns, float scale,
           const float *q, const float *keys, const float *values, const int64_t *lengths,
           const float *prompt, const float *prompt_lse, float *out, float *lse)
{
    if (!within(rows, lengths, 1, width)) return OUT_OF_RANGE;
#define CALL(width)                                                                                \
    attend_all(width, rows, heads, group, columns, scale, q, keys, values, lengths, prompt,        \
               prompt_lse, out, lse)
    WITH_KNOWN_WIDTH(dim, return CALL);
#undef CALL
}

/* A tile of queries over entries in memory: what a key or value costs to read serves all of them.
 *
 * length: entries that any of the queries sees; seen: how many of them each one sees
 * columns: [dim, padded], zeros or finite numbers behind `length`; values: [length, dim]
 * prompt, prompt_lse: attention over what comes before and its log-sum-exps, null for nothing
 * scores: [TILE, padded]; lse may be null
 */
INLINE void attend_tile(long dim, long length, const long seen[TILE], long padded, float scale,
                        const float *const q[TILE], const float *restrict columns,
                        const float *restrict values, const float *const *prompt,
                        const float *prompt_lse, float *restrict scores, float *const out[TILE],
                        float *const *lse)
{
    for (long j = 0; j < length; j += COLUMNS) {
        vec sum[TILE] = {{0}};
        for (long i = 0; i < dim; i++) {
            const vec keys = LOAD(columns + i * padded + j);
            for (int t = 0; t < TILE; t++) sum[t] += q[t][i] * keys;
        }
        for (int t = 0; t < TILE; t++) STORE(scores + t * padded + j) = sum[t] * scale;
    }
    float total[TILE], of_prompt[TILE] = {0};
    for (int t = 0; t < TILE; t++) {
        float before = prompt ? prompt_lse[t] : -INFINITY;
        float top = exponentials(seen[t], before, scores + t * padded, &total[t]);
        for (long j = seen[t]; j < length; j++) scores[t * padded + j] = 0.0f;
        if (prompt) total[t] += of_prompt[t] = exp_of(before - top);
        if (lse) *lse[t] = top + logf(total[t]);
        total[t] = 1.0f / total[t];
    }
    for (long i = 0; i < dim; i += COLUMNS) {
        vec sum[TILE] = {{0}};
        if (prompt)
            for (int t = 0; t < TILE; t++) sum[t] = of_prompt[t] * LOAD(prompt[t] + i);
        for (long j = 0; j < length; j++) {
            const vec value = LOAD(values + j * dim + i);
            for (int t = 0; t < TILE; t++) sum[t] += scores[t * padded + j] * value;
        }
        for (int t = 0; t < TILE; t++) STORE(out[t] + i) = sum[t] * total[t];
    }
}

static void attend_tile_of(long dim, long length, const long seen[TILE], long padded, float scale,
                           const float *const q[TILE], const float *columns, const float *values,
                           const float *const *prompt, const float *prompt_lse, float *scores,
                           float *const out[TILE], float *const *lse)
{
#define CALL(width)                                                                                \
    attend_tile(width, length, seen, padded, scale, q, columns, values, prompt, prompt_lse,        \
                scores, out, lse)
    WITH_KNOWN_WIDTH(dim, CALL);
#undef CALL
}

/* Softmax attention of rows over a prompt that they share.
 *
 * rows: [count], which rows of q and out, or null for rows 0 to count - 1
 * q, out: [all, heads, group, dim], lse: [all, heads, group]; dim is a multiple of 16
 * columns: [heads, dim, padded], the keys' transpose, zeros behind `length`; values: [heads, length, dim]
 */
int attend_prompt(long dim, long count, long all, long heads, long group, long length, long padded,
                  float scale, const int64_t *restrict rows, const float *restrict q,
                  const float *restrict columns, const float *restrict values, float *restrict out,
                  float *restrict lse)
{
    if (rows && !within(count, rows, 0, all - 1)) return OUT_OF_RANGE;
    long queries = count * group;
    float *scores = malloc(sizeof(float) * (size_t)(TILE * padded));
    if (!scores) return NO_MEMORY;
    for (long head = 0; head < heads; head++) {
        for (long start = 0; start < queries; start += TILE) {
            const float *from[TILE];
            float *to[TILE], *sums[TILE];
            long seen[TILE];
            for (int t = 0; t < TILE; t++) { /* the last tile does its last query several times */
                long query = start + t < queries ? start + t : queries - 1;
                long row = rows ? rows[query / group] : query / group;
                long at = (row * heads + head) * group + query % group;
                from[t] = q + at * dim;
                to[t] = out + at * dim;
                sums[t] = lse + at;
                seen[t] = length;
            }
            attend_tile_of(dim, length, seen, padded, scale, from, columns, values, 0, 0, scores,
                           to, sums);
        }
        columns += dim * padded;
        values += length * dim;
    }
    free(scores);
    return 0;
}

/* Causal softmax attention of prompts whose entries are the first of slots.
 *
 * first, last: of the rows · heads problems, those to solve
 * q, out: [rows, length, heads, group, dim]; dim is a multiple of 16
 * slots: [rows]; keys, values: [count, heads, columns, dim]
 * prompt, prompt_lse: attention over what comes before all of them, like out, and its log-sum-exps,
 *     [rows, length, heads, group]; null for nothing
 */
int attend_causal(long first, long last, long dim, long length, long heads, long group, long count,
                  long columns, float scale, const int64_t *restrict slots,
                  const float *restrict q, const float *restrict keys,
                  const float *restrict values, const float *restrict prompt,
                  const float *restrict prompt_lse, float *restrict out)
{
    if (first < last && !within((last - 1) / heads + 1 - first / heads, slots + first / heads, 0, count - 1))
        return OUT_OF_RANGE;
    long padded = (length + COLUMNS - 1) / COLUMNS * COLUMNS;
    float *scores = calloc((size_t)((TILE + dim) * padded), sizeof(float));
    if (!scores) return NO_MEMORY;
    float *transposed = scores + TILE * padded; /* [dim, padded] */
    for (long problem = first; problem < last; problem++) {
        long row = problem / heads, head = problem % heads;
        long of_slot = (slots[row] * heads + head) * columns * dim;
        for (long j = 0; j < length; j++)
            for (long i = 0; i < dim; i++)
                transposed[i * padded + j] = keys[of_slot + j * dim + i];
        for (long member = 0; member < group; member++)
            for (long start = 0; start < length; start += TILE) {
                const float *from[TILE], *before[TILE];
                float *to[TILE], before_lse[TILE];
                long seen[TILE], end = start + TILE < length ? start + TILE : length;
                for (int t = 0; t < TILE; t++) { /* as above */
                    long query = start + t < end ? start + t : end - 1;
                    long at = ((row * length + query) * heads + head) * group + member;
                    from[t] = q + at * dim;
                    to[t] = out + at * dim;
                    seen[t] = query + 1;
                    before[t] = prompt + (prompt ? at * dim : 0);
                    before_lse[t] = prompt ? prompt_lse[at] : 0;
                }
                attend_tile_of(dim, end, seen, padded, scale, from, transposed, values + of_slot,
                               prompt ? before : 0, before_lse, scores, to, 0);
            }
    }
    free(scores);
    return 0;
}
