// The hard term with a distribution y instead of a label, as torch.nn.functional.cross_entropy takes it (mixup, soft labels):
// -sum u log softmax(z), u = (1 - s) y + s / C. The sum of u is as it is, and its gradient softmax(z) sum u - u.
#if defined(KD_CPU_HARD_DISTRIBUTION_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_HARD_DISTRIBUTION_INL_H
#undef KD_CPU_HARD_DISTRIBUTION_INL_H
#else
#define KD_CPU_HARD_DISTRIBUTION_INL_H
#endif

#include <cmath>
#include <cstdint>

#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_scales.h"

KD_BEGIN_TARGET

template <class A>
A hard_distribution(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row) {
  constexpr int lanes = Simd<A>::lanes;
  const int64_t classes = problem.classes;
  const A kept = A(1) - static_cast<A>(problem.hard.smoothing);
  const A spread = static_cast<A>(problem.hard.smoothing / static_cast<double>(classes));
  Vec<A> last_spread{};  // the padding is no class
  for (int lane = 0; lane < (classes - 1) % lanes + 1; ++lane) last_spread[lane] = spread;
  const auto smoothed = [&](int64_t i, Vec<A> y) { return y * kept + (i + lanes < classes ? splat(spread) : last_spread); };
  const Line<A> weights = row.student_weight(false);
  A sums[3];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    const Vec<A> above = load(row.student.in(place) + i) - row.student_max;
    const Vec<A> y = load(row.hard_probs.in(place) + i), u = smoothed(i, y);
    const Vec<A> weight = exp_product(above, A(1));
    store(weights.in(place) + i, weight);
    part[0] += weight;
    part[1] += y;
    part[2] += select(u == A(0), Vec<A>{}, u * above);
  });
  const A mass = kept * sums[1] + static_cast<A>(problem.hard.smoothing);  // of u
  if (row.grad_student) {
    const bool weighs = problem.hard.weight != 0;  // a term of weight 0 adds nothing, not even NaN
    const A share = mass / sums[0], scale = scales.hard_gradient;
    each_vector<A>(classes, [&](int64_t i, auto place) {
      const Vec<A> gradient = (load(weights.in(place) + i) * share - smoothed(i, load(row.hard_probs.in(place) + i))) * scale;
      store(row.grad_student.in(place) + i, weighs ? gradient : Vec<A>{});
    });
  }
  return std::log(sums[0]) * mass - sums[2];
}

KD_END_TARGET
#endif
