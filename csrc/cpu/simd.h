// Vectors of one instruction set: loads, select, exp, log, sums. GCC and Clang vector types, so that the same source is
// SSE2 or NEON (base), AVX2 and AVX-512 code.
//
// Nothing here may call an inline function of another header but memcpy and <cmath> on one number: it would be compiled for
// the base set, or not be inlined.
//
// Relative errors: exp at most 1 + 0.6 |x| ulp down to e^-87, then 0 (x log2(e) is rounded: probabilities far behind the
// largest have fewer digits); log at most 1 ulp; float64 calls libm per lane. What they amount to in losses and gradients is
// held against float64 by tests/test_host.py, for each instruction set.
#if defined(KD_CPU_SIMD_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_SIMD_H
#undef KD_CPU_SIMD_H
#else
#define KD_CPU_SIMD_H
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/target.h"

KD_BEGIN_TARGET

template <class A>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(KD_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(KD_VECTOR_BYTES)));
  static constexpr int lanes = KD_VECTOR_BYTES / 4;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(KD_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(KD_VECTOR_BYTES)));
  static constexpr int lanes = KD_VECTOR_BYTES / 8;
};

template <class A>
using Vec = typename Simd<A>::V;

typedef Simd<float>::V VecF;
typedef Simd<float>::I VecI;
typedef Simd<double>::V VecD;
typedef Simd<double>::I VecL;

template <class A>
KD_INLINE Vec<A> load(const A* from) {
  Vec<A> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class A>
KD_INLINE void store(A* to, Vec<A> v) {
  std::memcpy(to, &v, sizeof v);
}

// Past the caches, `to` being a multiple of the vector's size. end_streams() before anybody else may read it.
KD_INLINE void stream(float* to, VecF v) {
#if KD_VECTOR_BYTES == 64
  __builtin_ia32_movntps512(to, v);
#elif KD_VECTOR_BYTES == 32
  __builtin_ia32_movntps256(to, v);
#elif defined(__SSE2__)
  __builtin_ia32_movntps(to, v);
#else
  store(to, v);
#endif
}

KD_INLINE void stream(double* to, VecD v) { store(to, v); }

KD_INLINE void end_streams() {
#ifdef __SSE2__
  __builtin_ia32_sfence();
#endif
}

template <class A>
KD_INLINE Vec<A> splat(A x) {
  return Vec<A>{} + x;
}

KD_INLINE VecF select(VecI condition, VecF yes, VecF no) { return condition ? yes : no; }
KD_INLINE VecD select(VecL condition, VecD yes, VecD no) { return condition ? yes : no; }

// 2^((n + r) / steps), |r| <= 1/2, wherever that is a normal number; there are 2^exp_step_bits steps to a power of 2.
#if KD_VECTOR_BYTES == 64
// A register holds the powers of all steps and one instruction picks from it: a third degree is enough (relative error
// 2^-28), and what it lacks in degrees it saves where instructions queue up, at the multipliers.
constexpr int exp_step_bits = 4;

KD_INLINE VecF exp2_steps(VecI n, VecF r) {
  const VecF powers = {1.0f, 1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
                      1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                      1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
  const VecI number = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  // n without its last bits is a whole power of 2, an exponent. The bits need not be cleared: the table lacks them.
  VecI bits;
  std::memcpy(&bits, &powers, sizeof bits);
  bits = __builtin_shuffle(bits - (number << (23 - exp_step_bits)), n) + (n << (23 - exp_step_bits));
  VecF step;
  std::memcpy(&step, &bits, sizeof step);
  const VecF more = ((r * 1.35510462e-5f + 9.38412311e-4f) * r + 4.33216988e-2f) * r;
  return step * more + step;
}
#else
// The minimax polynomial of degree 6 (relative error 2^-29).
constexpr int exp_step_bits = 0;

KD_INLINE VecF exp2_steps(VecI n, VecF r) {
  VecF power = r * 1.534581243e-4f + 1.339993090e-3f;
  power = power * r + 9.618489072e-3f;
  power = power * r + 5.550328642e-2f;
  power = power * r + 2.402264625e-1f;
  power = power * r + 6.931471825e-1f;
  power = power * r + 1.0f;
  VecI bits;
  std::memcpy(&bits, &power, sizeof bits);
  bits += n << 23;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}
#endif

// e^(x y) for x y <= 88: the exponent of a softmax at inverse temperature y. As 2^((n + r) / steps) with n a whole number.
KD_INLINE VecF exp_product(VecF x, float y) {
  constexpr int steps = 1 << exp_step_bits;
  const float scale = y * (1.44269504f * steps);
  const float smallest = -125.0f * steps;  // the power is a normal number from there on
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. The product is fused into either sum.
  const float round = 12582912.0f;
  const VecF shifted = x * scale + round;
  const VecF r = x * scale - (shifted - round);
  VecI n;
  std::memcpy(&n, &shifted, sizeof n);
  return select(shifted < round + smallest, VecF{}, exp2_steps(n, r));
}

KD_INLINE VecF exp(VecF x) { return exp_product(select(x > 88.0f, splat(88.0f), x), 1.0f); }

// log x = n ln 2 + log m with m in [sqrt(1/2), sqrt(2)); polynomial of m - 1 from Cephes (S. Moshier, logf).
KD_INLINE VecF log(VecF x) {
  const VecI subnormal = x < 1.17549435e-38f;
  const VecF scaled = select(subnormal, x * 8388608.0f, x);
  VecI bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  const VecI offset = bits - 0x3f3504f3;  // sqrt(1/2): what is left of the mantissa lies around 1
  const VecI exponent = offset >> 23;
  const VecI mantissa = bits - (exponent << 23);
  VecF m;
  std::memcpy(&m, &mantissa, sizeof m);
  const VecF f = m - 1.0f;
  VecF n = __builtin_convertvector(exponent, VecF);
  n = select(subnormal, n - 23.0f, n);
  VecF y = f * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * f + 1.1676998740e-1f;
  y = y * f - 1.2420140846e-1f;
  y = y * f + 1.4249322787e-1f;
  y = y * f - 1.6668057665e-1f;
  y = y * f + 2.0000714765e-1f;
  y = y * f - 2.4999993993e-1f;
  y = y * f + 3.3333331174e-1f;
  const VecF f2 = f * f;
  y = y * f * f2 - n * 2.12194440e-4f - f2 * 0.5f;
  VecF result = (f + y) + n * 0.693359375f;
  result = select(x == 0.0f, splat(-HUGE_VALF), result);
  result = select(x == HUGE_VALF, x, result);
  return select((x < 0.0f) | (x != x), splat(NAN), result);
}

KD_INLINE VecD exp(VecD x) {
  for (int i = 0; i < Simd<double>::lanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

KD_INLINE VecD exp_product(VecD x, double y) { return exp(x * y); }

KD_INLINE VecD log(VecD x) {
  for (int i = 0; i < Simd<double>::lanes; ++i) x[i] = std::log(x[i]);
  return x;
}

// Halves onto halves: few steps that wait for each other, all of them in registers, where a half is shuffled down and not
// read from memory.
template <class A, int lanes>
struct Halves {
  typedef A V __attribute__((vector_size(lanes * sizeof(A))));
  typedef A Half __attribute__((vector_size(lanes / 2 * sizeof(A))));
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Index __attribute__((vector_size(lanes * sizeof(A))));

  template <class Combine>
  static KD_INLINE A reduce(V v, const Combine& combine) {
    Index other;
    for (int lane = 0; lane < lanes; ++lane) other[lane] = lane ^ (lanes / 2);
    const V swapped = __builtin_shuffle(v, other);
    Half low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, &swapped, sizeof high);
    return Halves<A, lanes / 2>::reduce(combine(low, high), combine);
  }
};

template <class A>
struct Halves<A, 2> {
  typedef A V __attribute__((vector_size(2 * sizeof(A))));

  template <class Combine>
  static KD_INLINE A reduce(V v, const Combine& combine) {
    return combine(v[0], v[1]);
  }
};

template <class A>
KD_INLINE A sum_lanes(Vec<A> v) {
  return Halves<A, Simd<A>::lanes>::reduce(v, [](auto low, auto high) { return low + high; });
}

template <class A>
KD_INLINE A max_lanes(Vec<A> v) {
  return Halves<A, Simd<A>::lanes>::reduce(v, [](auto low, auto high) { return high > low ? high : low; });
}

KD_END_TARGET
#endif
