// Vectors of one instruction set: loads, select, exp, log, sums. GCC and Clang vector types, so that the same source is
// SSE2 or NEON (base), AVX2 and AVX-512 code.
//
// No include guard: cpu/each_isa.h includes it once per instruction set, inside a namespace of that name and under the
// matching target pragma. Nothing here may call an inline function from outside but memcpy and <cmath> on one number:
// such a function could be compiled for a machine the user does not have.
//
// Errors: exp < 2 ulp on [-87.3, 88], 0 below; log < 2 ulp; float64 calls libm per lane (< 1 ulp).

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

template <class A>
KD_INLINE Vec<A> splat(A x) {
  return Vec<A>{} + x;
}

KD_INLINE VecF select(VecI condition, VecF yes, VecF no) { return condition ? yes : no; }
KD_INLINE VecD select(VecL condition, VecD yes, VecD no) { return condition ? yes : no; }

// 2^n * e^r with x = n ln 2 + r, |r| <= ln 2 / 2. The polynomial is e^r to degree 7 (Taylor, error below 2^-25).
KD_INLINE VecF exp(VecF x) {
  const float lowest = -87.33654f, highest = 88.37626f;  // e^x is a normal number in between
  const VecF clamped = select(x > highest, splat(highest), x);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const VecF shifted = clamped * 1.44269504f + 12582912.0f;
  const VecF n = shifted - 12582912.0f;
  const VecF r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  VecF y = r * 1.9841270e-4f + 1.3888889e-3f;
  y = y * r + 8.3333333e-3f;
  y = y * r + 4.1666667e-2f;
  y = y * r + 1.6666667e-1f;
  y = y * r + 5.0e-1f;
  y = (y * r) * r + r;
  y += 1.0f;
  VecI bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;
  VecF scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return select(x < lowest, VecF{}, y * scale);
}

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

KD_INLINE VecD log(VecD x) {
  for (int i = 0; i < Simd<double>::lanes; ++i) x[i] = std::log(x[i]);
  return x;
}

// Halves onto halves: few steps that wait for each other.
template <class A>
KD_INLINE A sum_lanes(Vec<A> v) {
  A lanes[Simd<A>::lanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = Simd<A>::lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class A>
KD_INLINE A max_lanes(Vec<A> v) {
  A lanes[Simd<A>::lanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = Simd<A>::lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
  return lanes[0];
}
