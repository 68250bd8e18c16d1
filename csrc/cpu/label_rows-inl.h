// Terms whose target knows nothing but the label: the hard label of every loss, virtual teachers, smoothed labels.
//
// With `on` on the label and `off` on each of the others, sum p = 1, the cross entropy of softmax(z / T) needs three numbers
// of a row: log sum exp(z / T), z_label and the sum of the other z. No target is built. Included by cpu/row_loss-inl.h.

// A target of that kind and what its gradient is multiplied by; !weighs: nothing, not even NaN, comes of it.
template <class A>
struct LabelTerm {
  A on, off;
  A gradient;
  bool weighs;
};

// T d loss / d z of a class, from its weight exp(z / T): weight * share - off, less `excess` on the label.
template <class A>
struct LabelGradient {
  A share = 0, off = 0, excess = 0;
  bool weighs = false;
};

// What follows from a row's sums: of its weights, and of its logits less the largest (the padding of the tail left out).
template <class A, int count>
KD_INLINE LabelGradient<A> solve_label(const LabelTerm<A> (&terms)[count], const RowScales<A>& scales, const Lines<A>& row,
                                       int64_t classes, A inverse_temperature, A sum_weights, A sum_above,
                                       A (&cross_entropy)[count]) {
  for (int64_t c = body_classes(classes); c < classes; ++c) sum_above += row.student.tail[c] - row.student_max;
  const int64_t label = scales.label;
  const A log_sum = std::log(sum_weights);
  const A label_logit = *class_at(row.student, label, classes) - row.student_max;
  A others = sum_above - label_logit;
  if (label_logit == -std::numeric_limits<A>::infinity()) {  // which nothing can be taken from
    others = 0;
    for (int64_t c = 0; c < classes; ++c)
      if (c != label) others += *class_at(row.student, c, classes) - row.student_max;
  }
  LabelGradient<A> gradient;
  for (int j = 0; j < count; ++j) {
    const LabelTerm<A>& term = terms[j];
    cross_entropy[j] = log_sum;
    // A class of target 0 adds nothing, even where its logit is -inf.
    if (term.on != A(0)) cross_entropy[j] -= term.on * inverse_temperature * label_logit;
    if (term.off != A(0)) cross_entropy[j] -= term.off * inverse_temperature * others;
    if (!term.weighs) continue;
    gradient.weighs = true;
    gradient.share += term.gradient;
    gradient.off += term.gradient * term.off;
    gradient.excess += term.gradient * (term.on - term.off);
  }
  gradient.share *= inverse_temperature / sum_weights;
  gradient.off *= inverse_temperature;
  gradient.excess *= inverse_temperature;
  return gradient;
}

// The cross entropy of each term at one temperature; the gradients go to row.grad_student, added to it where `add`.
template <class A, int count>
KD_INLINE void label_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row,
                         A inverse_temperature, const LabelTerm<A> (&terms)[count], bool add, A (&cross_entropy)[count]) {
  const int64_t classes = problem.classes;
  const Line<A> student_weight = row.student_weight(add);
  A sums[2];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    const Vec<A> above = load(row.student.in(place) + i) - row.student_max;
    const Vec<A> weight = exp_product(above, inverse_temperature);
    store(student_weight.in(place) + i, weight);
    part[0] += weight;
    if (!place) part[1] += above;
  });
  const LabelGradient<A> label =
      solve_label(terms, scales, row, classes, inverse_temperature, sums[0], sums[1], cross_entropy);
  if (!row.grad_student) return;
  if (!label.weighs) {
    if (!add) fill_zero(row.grad_student, classes);
    return;
  }
  each_vector<A>(classes, [&](int64_t i, auto place) {
    const Vec<A> gradient = load(student_weight.in(place) + i) * label.share - label.off;
    A* to = row.grad_student.in(place) + i;
    store(to, add ? gradient + load(to) : gradient);
  });
  *class_at(row.grad_student, scales.label, classes) -= label.excess;
}

// The label of the data, at temperature 1, smoothed as in torch.nn.functional.cross_entropy.
template <class A>
KD_INLINE LabelTerm<A> hard_term(const RowLoss& problem, const RowScales<A>& scales) {
  const A off = static_cast<A>(problem.hard.smoothing / static_cast<double>(problem.classes));
  return {A(1) - static_cast<A>(problem.hard.smoothing) + off, off, scales.hard_gradient, problem.hard.weight != 0};
}

// Source label, and rows of source adjusted that are replaced by it.
template <class A>
KD_INLINE LabelTerm<A> soft_term(const RowLoss& problem, const RowScales<A>& scales) {
  return {static_cast<A>(problem.label.on), static_cast<A>(problem.label.off), scales.soft_gradient, problem.soft.weight != 0};
}
