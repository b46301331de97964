// What a compiler makes of the elementwise regime by hand: the yardstick of `mixerzoo bench elementwise`.
//
// Channels lie across the lanes of vector registers, states stay in registers, exp is a polynomial. Time is
// walked in blocks of STEPS; forward keeps the state before each block, backward walks a block once more.
// A thread takes GROUP vectors of channels at a time, so that every row of memory it touches is several
// cache lines. Arrays are dense, row by row, the last axis first.

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int STEPS = 32, GROUP = 4, WIDTH = GROUP * LANES;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float* p) { return *(const loose*)p; }
static inline void store(float* p, vec x) { *(loose*)p = x; }

static inline vec shuffled(vec x, vec y, ivec at) {
#ifdef __clang__
    vec z;
    for (int i = 0; i < LANES; i++) z[i] = at[i] < LANES ? x[at[i]] : y[at[i] - LANES];
    return z;
#else
    return __builtin_shuffle(x, y, at);
#endif
}

// Lane i: the sum over lanes of x[i]. At each level two vectors become one: of every pair of lanes `h` apart, the
// first vector's sum lies in the one and the second's in the other.
static inline vec sums(const vec* x) {
    vec y[LANES];
    memcpy(y, x, sizeof y);
#pragma GCC unroll 4
    for (int h = LANES / 2; h; h /= 2) {
        ivec own, other;
        for (int i = 0; i < LANES; i++) own[i] = i & h ? LANES + i : i, other[i] = own[i] ^ h;
#pragma GCC unroll 8
        for (int m = 0; m < h; m++) y[m] = shuffled(y[m], y[m + h], own) + shuffled(y[m], y[m + h], other);
    }
    return y[0];
}

// 2^x for x <= 0: 2^f by a polynomial on [-1/2, 1/2] (relative error 3e-9), the rest into the exponent.
static inline vec exp2_of(vec x) {
    vec c = x > -126.0f ? x : -126.0f - vec{};
    vec n = c + 12582912.0f;  // rounds; the low bits are the whole number
    vec f = c - (n - 12582912.0f);
    vec p = 1.55946781613266193e-4f - vec{};
    p = p * f + 1.34066439023517592e-3f;
    p = p * f + 9.61769297299306232e-3f;
    p = p * f + 5.55031055101379717e-2f;
    p = p * f + 2.40226527828877374e-1f;
    p = p * f + 6.93147214968027899e-1f;
    p = p * f + 1.0f;
    ivec bits;
    ivec whole;
    memcpy(&bits, &p, sizeof p);
    memcpy(&whole, &n, sizeof n);
    bits += whole << 23;
    memcpy(&p, &bits, sizeof p);
    return x > -126.0f ? p : vec{};
}

constexpr float LOG2E = 1.4426950408889634f;

// ------------------------------------------------------------------ Mamba-1: h = exp(dt A) h + dt B x, y = C h

template <int N, bool SAVE>
static void mamba_walk(const float* dt, const float* A, const float* B, const float* C, const float* x,
                       float* y, float* final, float* states, long T, long D, long first) {
    alignas(64) float a2[N][WIDTH];
    alignas(64) float h[N][WIDTH] = {};
    for (int n = 0; n < N; n++)
        for (int i = 0; i < WIDTH; i++) a2[n][i] = A[(first + i) * N + n] * LOG2E;
    for (long t0 = 0; t0 < T; t0 += STEPS) {
        long t1 = t0 + STEPS < T ? t0 + STEPS : T;
        if (SAVE) {
            float* kept = states + t0 / STEPS * N * D + first;
            for (int n = 0; n < N; n++) memcpy(kept + n * D, h[n], sizeof h[n]);
        }
        for (int j = 0; j < WIDTH; j += LANES) {
            vec s[N];
            for (int n = 0; n < N; n++) s[n] = load(&h[n][j]);
            for (long t = t0; t < t1; t++) {
                const float *b = B + t * N, *c = C + t * N;
                long at = t * D + first + j;
                __builtin_prefetch(dt + at + STEPS * D);
                __builtin_prefetch(x + at + STEPS * D);
                vec d = load(dt + at), w = d * load(x + at);
                vec o0 = {}, o1 = {};
#pragma GCC unroll 16
                for (int n = 0; n < N; n += 2) {
                    s[n] = exp2_of(d * load(&a2[n][j])) * s[n] + w * b[n];
                    o0 += s[n] * c[n];
                    s[n + 1] = exp2_of(d * load(&a2[n + 1][j])) * s[n + 1] + w * b[n + 1];
                    o1 += s[n + 1] * c[n + 1];
                }
                store(y + at, o0 + o1);
            }
            for (int n = 0; n < N; n++) store(&h[n][j], s[n]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < WIDTH; i++) final[(first + i) * N + n] = h[n][i];
}

static inline long padded(long T) { return (T + STEPS - 1) / STEPS * STEPS; }

// part [16, 2, padded T]: gradients of C and B, added to what other channels gave.
template <int N>
static void mamba_back(const float* dt, const float* A, const float* B, const float* C, const float* x,
                       const float* states, const float* dy, const float* dfinal, float* ddt, float* dA,
                       float* part, float* dx, long T, long D, long first) {
    alignas(64) float a2[N][WIDTH], an[N][WIDTH], g[N][WIDTH], da[N][WIDTH] = {};
    alignas(64) float rdt[STEPS][WIDTH], rx[STEPS][WIDTH], rdy[STEPS][WIDTH];
    alignas(64) float gdt[STEPS][WIDTH], gw[STEPS][WIDTH];
    vec faded[STEPS], decays[STEPS], reads[STEPS], writes[STEPS];
    for (int n = 0; n < N; n++)
        for (int i = 0; i < WIDTH; i++) {
            an[n][i] = A[(first + i) * N + n];
            a2[n][i] = an[n][i] * LOG2E;
            g[n][i] = dfinal[(first + i) * N + n];
        }
    for (long t0 = (T - 1) / STEPS * STEPS; t0 >= 0; t0 -= STEPS) {
        int len = int(t0 + STEPS < T ? STEPS : T - t0);
        for (int t = 0; t < len; t++) {
            long at = (t0 + t) * D + first;
            memcpy(rdt[t], dt + at, sizeof rdt[t]);
            memcpy(rx[t], x + at, sizeof rx[t]);
            memcpy(rdy[t], dy + at, sizeof rdy[t]);
            for (int j = 0; j < WIDTH; j += LANES) {
                store(&rx[t][j], load(&rx[t][j]) * load(&rdt[t][j]));  // what B writes
                __builtin_prefetch(dt + at + j - STEPS * D);
                __builtin_prefetch(x + at + j - STEPS * D);
                __builtin_prefetch(dy + at + j - STEPS * D);
            }
        }
        memset(gdt, 0, sizeof gdt);
        memset(gw, 0, sizeof gw);
        for (int n = 0; n < N; n++) {
            const float *b = B + t0 * N + n, *c = C + t0 * N + n;
            memset(reads, 0, sizeof reads);
            memset(writes, 0, sizeof writes);
            for (int j = 0; j < WIDTH; j += LANES) {
                vec s = load(states + (t0 / STEPS * N + n) * D + first + j), e = load(&a2[n][j]);
                for (int t = 0; t < len; t++) {
                    vec a = exp2_of(load(&rdt[t][j]) * e), f = a * s;
                    decays[t] = a;
                    faded[t] = f;
                    s = f + load(&rx[t][j]) * b[t * N];
                }
                vec G = load(&g[n][j]), sum_a = load(&da[n][j]), real = load(&an[n][j]);
                for (int t = len - 1; t >= 0; t--) {
                    vec o = load(&rdy[t][j]), w = load(&rx[t][j]);
                    reads[t] += o * (faded[t] + w * b[t * N]);
                    G += o * c[t * N];
                    writes[t] += G * w;
                    store(&gw[t][j], load(&gw[t][j]) + G * b[t * N]);
                    vec u = G * faded[t];
                    store(&gdt[t][j], load(&gdt[t][j]) + u * real);
                    sum_a += u * load(&rdt[t][j]);
                    G *= decays[t];
                }
                store(&g[n][j], G);
                store(&da[n][j], sum_a);
            }
            for (int t = 0; t < STEPS; t += LANES) {
                float* at = part + n * 2 * padded(T) + t0 + t;
                store(at, load(at) + sums(reads + t));
                store(at + padded(T), load(at + padded(T)) + sums(writes + t));
            }
        }
        for (int t = 0; t < len; t++) {
            long at = (t0 + t) * D + first;
            for (int j = 0; j < WIDTH; j += LANES) {
                vec w = load(&gw[t][j]);
                store(dx + at + j, w * load(&rdt[t][j]));
                store(ddt + at + j, load(&gdt[t][j]) + w * load(x + at + j));
            }
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < WIDTH; i++) dA[(first + i) * N + n] = da[n][i];
}

// ------------------------------------------------------------------ HGRN: h = exp(l) h + v

template <bool SAVE>
static void hgrn_walk(const float* l, const float* v, float* h, float* final, float* states, long T, long D,
                      long first) {
    vec s[GROUP] = {};
    for (long t = 0; t < T; t++) {
        long at = t * D + first;
        for (int j = 0; j < GROUP; j++) {
            long i = at + j * LANES;
            __builtin_prefetch(l + i + 16 * D);
            __builtin_prefetch(v + i + 16 * D);
            if (SAVE && t % STEPS == 0) store(states + t / STEPS * D + first + j * LANES, s[j]);
            s[j] = exp2_of(load(l + i) * LOG2E) * s[j] + load(v + i);
            store(h + i, s[j]);
        }
    }
    for (int j = 0; j < GROUP; j++) store(final + first + j * LANES, s[j]);
}

static void hgrn_back(const float* l, const float* v, const float* states, const float* dh,
                      const float* dfinal, float* dl, float* dv, long T, long D, long first) {
    vec faded[STEPS][GROUP], decays[STEPS][GROUP], G[GROUP];
    for (int j = 0; j < GROUP; j++) G[j] = load(dfinal + first + j * LANES);
    for (long t0 = (T - 1) / STEPS * STEPS; t0 >= 0; t0 -= STEPS) {
        int len = int(t0 + STEPS < T ? STEPS : T - t0);
        vec s[GROUP];
        for (int j = 0; j < GROUP; j++) s[j] = load(states + t0 / STEPS * D + first + j * LANES);
        for (int t = 0; t < len; t++)
            for (int j = 0; j < GROUP; j++) {
                long i = (t0 + t) * D + first + j * LANES;
                __builtin_prefetch(l + i - STEPS * D);
                __builtin_prefetch(v + i - STEPS * D);
                __builtin_prefetch(dh + i - STEPS * D);
                vec a = exp2_of(load(l + i) * LOG2E), f = a * s[j];
                decays[t][j] = a;
                faded[t][j] = f;
                s[j] = f + load(v + i);
            }
        for (int t = len - 1; t >= 0; t--)
            for (int j = 0; j < GROUP; j++) {
                long i = (t0 + t) * D + first + j * LANES;
                vec g = G[j] + load(dh + i);
                store(dv + i, g);
                store(dl + i, g * faded[t][j]);
                G[j] = g * decays[t][j];
            }
    }
}

// ------------------------------------------------------------------ what is called: D a multiple of width()

extern "C" {

int width() { return WIDTH; }
int block() { return STEPS; }

// dt, x, y [T, D]; A, final [D, 16]; B, C [T, 16]; states [ceil(T / block), 16, D] or null.
void mamba_forward(const float* dt, const float* A, const float* B, const float* C, const float* x, float* y,
                   float* final, float* states, long T, long D, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long first = 0; first < D; first += WIDTH)
        if (states)
            mamba_walk<16, true>(dt, A, B, C, x, y, final, states, T, D, first);
        else
            mamba_walk<16, false>(dt, A, B, C, x, y, final, states, T, D, first);
}

void mamba_backward(const float* dt, const float* A, const float* B, const float* C, const float* x,
                    const float* states, const float* dy, const float* dfinal, float* ddt, float* dA,
                    float* dB, float* dC, float* dx, long T, long D, int threads) {
    long row = padded(T), own = 32 * row;
    std::vector<float> parts(own * threads);
    long share = (D / WIDTH + threads - 1) / threads * WIDTH;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int i = 0; i < threads; i++)
        for (long first = i * share; first < D && first < (i + 1) * share; first += WIDTH)
            mamba_back<16>(dt, A, B, C, x, states, dy, dfinal, ddt, dA, parts.data() + own * i, dx, T, D, first);
    for (long t = 0; t < T; t++)
        for (int n = 0; n < 16; n++) {
            float b = 0, c = 0;
            for (int i = 0; i < threads; i++) {
                const float* at = parts.data() + own * i + n * 2 * row + t;
                c += at[0];
                b += at[row];
            }
            dB[t * 16 + n] = b;
            dC[t * 16 + n] = c;
        }
}

// l, v, h [T, D]; final [D]; states [ceil(T / block), D] or null.
void hgrn_forward(const float* l, const float* v, float* h, float* final, float* states, long T, long D,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < D; first += WIDTH)
        if (states)
            hgrn_walk<true>(l, v, h, final, states, T, D, first);
        else
            hgrn_walk<false>(l, v, h, final, states, T, D, first);
}

void hgrn_backward(const float* l, const float* v, const float* states, const float* dh, const float* dfinal,
                   float* dl, float* dv, long T, long D, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < D; first += WIDTH)
        hgrn_back(l, v, states, dh, dfinal, dl, dv, T, D, first);
}
}
