/* Standard vectors of the random streams: draws.py's numbers, bit for bit.
 *
 * Compiled without contraction (a fused multiply-add rounds once where draws.py rounds twice), so
 * every operation is one that IEEE 754 fixes. Keep the order of operations as it is there.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCKS 16           /* counters at a time */
#define CHUNK (4 * BLOCKS) /* numbers at a time */
#define EACH(i, n) _Pragma("omp simd") for (int i = 0; i < (n); i++)

/* Philox-4x32-10 (Salmon et al., SC 2011) at counters (first + i, position, 0, 0) */
static void philox(uint32_t first, uint32_t position, uint32_t k0, uint32_t k1,
                   uint32_t words[4][BLOCKS])
{
    EACH(i, BLOCKS) {
        words[0][i] = first + (uint32_t)i;
        words[1][i] = position;
        words[2][i] = words[3][i] = 0;
    }
    for (int round = 0; round < 10; round++) {
        EACH(i, BLOCKS) {
            uint64_t p0 = (uint64_t)words[0][i] * 0xD2511F53u, p1 = (uint64_t)words[2][i] * 0xCD9E8D57u;
            words[0][i] = (uint32_t)(p1 >> 32) ^ words[1][i] ^ k0;
            words[1][i] = (uint32_t)p1;
            words[2][i] = (uint32_t)(p0 >> 32) ^ words[3][i] ^ k1;
            words[3][i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* Natural logarithm of x in (0, 1) */
static inline double log_of(double x)
{
    union { double value; uint64_t bits; } u = {x};
    double exponent = (double)((int64_t)(u.bits >> 52) - 1022);
    u.bits = (u.bits & 0xFFFFFFFFFFFFFull) | 0x3FE0000000000000ull; /* mantissa in [1/2, 1) */
    double m = u.value * 1.4142135623730951, s = (m - 1.0) / (m + 1.0), z = s * s;
    double v = 2.0 / 17;
    v = v * z + 2.0 / 15;
    v = v * z + 2.0 / 13;
    v = v * z + 2.0 / 11;
    v = v * z + 2.0 / 9;
    v = v * z + 2.0 / 7;
    v = v * z + 2.0 / 5;
    v = v * z + 2.0 / 3;
    v = v * z + 2.0 / 1;
    return s * v + (exponent - 0.5) * 0.6931471805599453;
}

static inline double rational(const double *num, const double *den, double x)
{
    double n = num[0], d = den[0];
    for (int i = 1; i < 8; i++) {
        n = n * x + num[i];
        d = d * x + den[i];
    }
    return n / d;
}

/* Wichura's AS 241 (PPND16), as in draws.py */
static inline float normal_of(uint32_t word)
{
    static const double centre_num[] = {
        2.5090809287301226727e3,  3.3430575583588128105e4, 6.7265770927008700853e4,
        4.5921953931549871457e4,  1.3731693765509461125e4, 1.9715909503065514427e3,
        1.3314166789178437745e2,  3.3871328727963666080e0};
    static const double centre_den[] = {
        5.2264952788528545610e3,  2.8729085735721942674e4, 3.9307895800092710610e4,
        2.1213794301586595867e4,  5.3941960214247511077e3, 6.8718700749205790830e2,
        4.2313330701600911252e1,  1.0};
    static const double tail_num[] = {
        7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
        1.27045825245236838258e0,  3.64784832476320460504e0,  5.76949722146069140550e0,
        4.63033784615654529590e0,  1.42343711074968357734e0};
    static const double tail_den[] = {
        1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
        1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
        2.05319162663775882187e0,  1.0};
    double u = ((double)word + 0.5) * 0x1p-32, q = u - 0.5;
    double centre = q * rational(centre_num, centre_den, 0.180625 - q * q);
    double low = u < 1.0 - u ? u : 1.0 - u;
    double tail = rational(tail_num, tail_den, sqrt(-log_of(low)) - 1.6);
    tail = q < 0 ? -tail : tail;
    return (float)(fabs(q) <= 0.425 ? centre : tail);
}

/* Uniform of variance 1: (2u - 1) · sqrt(3) */
static inline float uniform_of(uint32_t word)
{
    double u = ((double)word + 0.5) * 0x1p-32;
    return (float)((2.0 * u - 1.0) * 1.7320508075688772);
}

/* Coordinates first to first + CHUNK of a stream's vector at a position, by the law's number in
 * draws.py: 0 normal, 1 uniform */
static void draw(long law, const int64_t key[2], int64_t position, long first, float out[CHUNK])
{
    uint32_t words[4][BLOCKS];
    float drawn[4][BLOCKS];
    philox((uint32_t)(first / 4), (uint32_t)position, (uint32_t)key[0], (uint32_t)key[1], words);
    if (law)
        for (int w = 0; w < 4; w++) EACH(i, BLOCKS) drawn[w][i] = uniform_of(words[w][i]);
    else
        for (int w = 0; w < 4; w++) EACH(i, BLOCKS) drawn[w][i] = normal_of(words[w][i]);
    for (int i = 0; i < BLOCKS; i++)
        for (int w = 0; w < 4; w++) out[4 * i + w] = drawn[w][i];
}

static inline int left(long first, long dim) { return dim - first < CHUNK ? (int)(dim - first) : CHUNK; }

/* keys: [rows, 2] 32-bit words; positions: [rows, count]; out: [rows, count, dim] */
void vectors(long law, long rows, long count, long dim, const int64_t *keys,
             const int64_t *positions, float *out)
{
    float drawn[CHUNK];
    for (long row = 0; row < rows; row++)
        for (long at = 0; at < count; at++, out += dim)
            for (long first = 0; first < dim; first += CHUNK) {
                draw(law, keys + 2 * row, positions[row * count + at], first, drawn);
                EACH(i, left(first, dim)) out[first + i] = drawn[i];
            }
}

/* out = hidden + std · vectors, for hidden, out: [rows, count, dim]; std: [rows, count].
 *
 * Where std is 0 nothing is drawn. ratios: [rows, 2] gets, of each row, the sum of |noise| / |hidden|
 * over the positions that have noise, and their number.
 */
void add_noise(long law, long rows, long count, long dim, const int64_t *keys,
               const int64_t *positions, const float *std, const float *restrict hidden,
               float *restrict out, double *ratios)
{
    float drawn[CHUNK];
    for (long row = 0; row < rows; row++) {
        double sum = 0, number = 0;
        for (long at = row * count; at < (row + 1) * count; at++, hidden += dim, out += dim) {
            float of_noise = 0, of_hidden = 0, scale = std[at];
            if (scale == 0) {
                memcpy(out, hidden, sizeof(float) * (size_t)dim);
                continue;
            }
            for (long first = 0; first < dim; first += CHUNK) {
                const float *h = hidden + first;
                draw(law, keys + 2 * row, positions[at], first, drawn);
                _Pragma("omp simd reduction(+ : of_noise, of_hidden)")
                for (int i = 0; i < left(first, dim); i++) {
                    float noise = scale * drawn[i];
                    of_noise += noise * noise;
                    of_hidden += h[i] * h[i];
                    out[first + i] = h[i] + noise;
                }
            }
            float norm = sqrtf(of_hidden);
            sum += sqrtf(of_noise) / (norm < 1e-30f ? 1e-30f : norm);
            number += 1;
        }
        ratios[2 * row] = sum;
        ratios[2 * row + 1] = number;
    }
}
