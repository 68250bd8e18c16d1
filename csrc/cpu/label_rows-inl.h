// Terms whose target knows nothing but the label: the hard label of every loss, virtual teachers, smoothed labels.
//
// With `on` on the label and `off` on each of the others, sum p = 1, the cross entropy of softmax(z / T) needs three numbers
// of a row: log sum exp(z / T), z_label and the sum of the other z. No target is built. Included by cpu/softened_kl-inl.h.

// A target of that kind and what its gradient is multiplied by; !weighs: nothing, not even NaN, comes of it.
template <class A>
struct LabelTerm {
  A on, off;
  A gradient;
  bool weighs;
};

// The cross entropy of each term at one temperature; the gradients go to row.grad_student, added to it where `add`.
template <class A, int count>
KD_INLINE void label_row(const SoftenedKL& problem, int64_t label, const Lines<A>& row, A max, A inverse_temperature,
                         const LabelTerm<A> (&terms)[count], bool add, A (&cross_entropy)[count]) {
  const int64_t classes = problem.classes;
  const Line<A> student_weight = row.student_weight(add);
  A sums[2];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    const Vec<A> above = load(row.student.in(place) + i) - max;
    const Vec<A> weight = exp_product(above, inverse_temperature);
    store(student_weight.in(place) + i, weight);
    part[0] += weight;
    if (!place) part[1] += above;
  });
  // The padding of the tail is no class.
  for (int64_t c = body_classes(classes); c < classes; ++c) sums[1] += row.student.tail[c] - max;

  const A log_sum = std::log(sums[0]);
  const A label_logit = *class_at(row.student, label, classes) - max;
  A others = sums[1] - label_logit;
  if (label_logit == -std::numeric_limits<A>::infinity()) {  // which nothing can be taken from
    others = 0;
    for (int64_t c = 0; c < classes; ++c)
      if (c != label) others += *class_at(row.student, c, classes) - max;
  }
  A scale = 0, off = 0, excess = 0;
  bool weighs = false;
  for (int j = 0; j < count; ++j) {
    const LabelTerm<A>& term = terms[j];
    cross_entropy[j] = log_sum;
    // A class of target 0 adds nothing, even where its logit is -inf.
    if (term.on != A(0)) cross_entropy[j] -= term.on * inverse_temperature * label_logit;
    if (term.off != A(0)) cross_entropy[j] -= term.off * inverse_temperature * others;
    if (!term.weighs) continue;
    weighs = true;
    scale += term.gradient;
    off += term.gradient * term.off;
    excess += term.gradient * (term.on - term.off);
  }
  if (!row.grad_student) return;
  if (!weighs) {
    if (!add) fill_zero(row.grad_student, classes);
    return;
  }
  const A share = scale * inverse_temperature / sums[0];
  off *= inverse_temperature;
  each_vector<A>(classes, [&](int64_t i, auto place) {
    const Vec<A> gradient = load(student_weight.in(place) + i) * share - off;
    A* to = row.grad_student.in(place) + i;
    store(to, add ? gradient + load(to) : gradient);
  });
  *class_at(row.grad_student, label, classes) -= excess * inverse_temperature;
}

// The label of the data, at temperature 1, smoothed as in torch.nn.functional.cross_entropy.
template <class A>
KD_INLINE LabelTerm<A> hard_term(const SoftenedKL& problem, const RowScales<A>& scales) {
  const A off = static_cast<A>(problem.label_smoothing / static_cast<double>(problem.classes));
  return {A(1) - static_cast<A>(problem.label_smoothing) + off, off, scales.hard_gradient, problem.ce_weight != 0};
}

// Source label, and rows of source adjusted that are replaced by it.
template <class A>
KD_INLINE LabelTerm<A> soft_term(const SoftenedKL& problem, const RowScales<A>& scales) {
  return {static_cast<A>(problem.label_on), static_cast<A>(problem.label_off), scales.soft_gradient, problem.kl_weight != 0};
}
