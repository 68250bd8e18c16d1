// Forward KL of two softmaxes to a constant teacher, the commonest of all, with the hard label's term where there is one: a
// sweep for the exponentials of all terms and one for the gradient. Included by cpu/row_loss-inl.h.
//
// The divergence follows from sums of the weights alone: sum p ((t - z) / T) less the difference of the log-sums.

// Whether the soft term of a problem is of that kind. One of weight 0 is not: it adds nothing, not even NaN, and these rows do
// not check for that.
inline bool is_forward_kl(const RowLoss& problem) {
  return problem.source == TargetSource::logits && problem.soft.divergence == Divergence::forward && problem.soft.target_eps == 0 &&
         !problem.grad_teacher.data && problem.soft.weight != 0;
}

// The sum with what a class adds to it, and the divergence; `sums`: of the weights of student and teacher, and that one.
template <class V>
KD_INLINE V plus_forward_part(V sum, V teacher_weight, V t, V z) {
  return select(teacher_weight == V{}, sum, sum + teacher_weight * (t - z));
}

template <class A>
KD_INLINE A forward_value(const A* sums, A inverse_temperature) {
  return sums[2] * inverse_temperature / sums[1] - std::log(sums[1] / sums[0]);
}

// How the teacher's weights are dealt out to the classes once they and their sum are known; its row itself stays as it is.
// `sum` is that of weight * ((t - max t) - (z - max z)).
struct AsTheyAre {
  template <class A>
  KD_INLINE void rearrange(const Lines<A>&, int64_t, A&) const {}
};

// Two classes change places, `one` being the teacher's largest. The part of the sum that has t does not notice.
struct Exchanged {
  int64_t one, other;

  template <class A>
  KD_INLINE void rearrange(const Lines<A>& row, int64_t classes, A& sum) const {
    const A excess = row.teacher_weight[one] - row.teacher_weight[other];
    const A z_one = *class_at(row.student, one, classes), z_other = *class_at(row.student, other, classes);
    std::swap(row.teacher_weight[one], row.teacher_weight[other]);
    if (z_one != -std::numeric_limits<A>::infinity()) {
      if (excess != A(0)) sum += excess * (z_one - z_other);
      return;
    }
    // It has made the sum infinite, and nothing can be taken from that.
    sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const A t = *class_at(row.teacher, c == one ? other : c == other ? one : c, classes);
      if (row.teacher_weight[c] != A(0))
        sum += row.teacher_weight[c] * ((t - row.teacher_max) - (*class_at(row.student, c, classes) - row.student_max));
    }
  }
};

// Whether the row's gradient is written past the caches. For whole vectors of rows at multiples of their size.
template <class A>
KD_INLINE bool streams(const Lines<A>& row) {
  return row.large_gradient && reinterpret_cast<uintptr_t>(row.grad_student.body) % sizeof(Vec<A>) == 0;
}

// gradient(i, place) for the vector of classes at each i, to where the row's gradient belongs. Returns whether that was not
// row.grad_student.
template <class A, class Gradient>
KD_INLINE bool write_gradient(const RowLoss& problem, const Lines<A>& row, const Gradient gradient) {
  constexpr int lanes = Simd<A>::lanes;
  const int64_t classes = problem.classes, split = body_classes(classes);
  if (!row.grad_elements.data) {
    const Line<A> to = row.grad_student;
    if (streams(row)) {
      for (int64_t i = 0; i < split; i += lanes) stream(to.body + i, gradient(i, InBody{}));
      for (int64_t i = split; i < classes; i += lanes) store(to.tail + i, gradient(i, InTail{}));
    } else {
      each_vector<A>(classes, [=](int64_t i, auto place) { store(to.in(place) + i, gradient(i, place)); });
    }
    return false;
  }
  with_dtype(row.grad_elements.dtype, [&](auto* type) {
    auto* to = static_cast<decltype(type)>(row.grad_elements.data);
    constexpr int64_t together = 32;  // so many that the compiler keeps the loop, and makes one of vectors of it
    A numbers[together];
    int64_t i = 0;
    for (; i + together <= split; i += together) {
      for (int64_t c = 0; c < together; c += lanes) store(numbers + c, gradient(i + c, InBody{}));
      for (int64_t c = 0; c < together; ++c) from_arithmetic(numbers[c], to + i + c);
    }
    const auto write = [&](Vec<A> v, int64_t c) {
      std::remove_pointer_t<decltype(to)> part[lanes];
      store(numbers, v);
      for (int lane = 0; lane < lanes; ++lane) from_arithmetic(numbers[lane], part + lane);
      write_part<lanes>(to + c, part, classes - c);
    };
    for (; i < split; i += lanes) write(gradient(i, InBody{}), i);
    for (; i < classes; i += lanes) write(gradient(i, InTail{}), i);
  });
  return true;
}

// How often e^(x / T) is squared to give e^x: the weights at temperature 1, the hard label's, come nearly free at the usual
// temperatures 1, 2 and 4, for a few roundings more. -1 at others.
template <class A>
KD_INLINE int squarings(A inverse_temperature) {
  return inverse_temperature == A(1) ? 0 : inverse_temperature == A(0.5) ? 1 : inverse_temperature == A(0.25) ? 2 : -1;
}

template <class A, bool labelled, class Order>
KD_INLINE bool forward_row_of(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& lines,
                              const Order& order, A& soft, A& hard) {
  const Lines<A> row = lines;  // a local copy, so that the compiler can assume that no store changes it
  const int64_t classes = problem.classes;
  const A inverse_temperature = scales.inverse_temperature;
  const Line<A> student_weight = row.student_weight(streams(row));
  const int squared = squarings(inverse_temperature);
  A sums[labelled ? 5 : 3];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    row.next_student.prefetch(i);
    row.next_teacher.prefetch(i);
    const Vec<A> z = load(row.student.in(place) + i) - row.student_max;
    const Vec<A> t = load(row.teacher.in(place) + i) - row.teacher_max;
    const Vec<A> student = exp_product(z, inverse_temperature), teacher = exp_product(t, inverse_temperature);
    store(student_weight.in(place) + i, student);
    store(row.teacher_weight + i, teacher);
    part[0] += student;
    part[1] += teacher;
    part[2] = plus_forward_part(part[2], teacher, t, z);
    if constexpr (labelled) {
      Vec<A> weight = student;
      for (int times = 0; times < squared; ++times) weight *= weight;
      if (squared < 0) weight = exp_product(z, A(1));
      store(row.spare + i, weight);
      part[3] += weight;
      if (!place) part[4] += z;
    }
  });
  order.rearrange(row, classes, sums[2]);
  soft = scales.soft * forward_value(sums, inverse_temperature);
  LabelGradient<A> label;
  if constexpr (labelled) {
    A value[1];
    const LabelTerm<A> term = hard_term(problem, scales);
    label = solve_label({term}, scales, row, classes, A(1), sums[3], sums[4], value);
    hard = value[0];
    // What the label's class has in excess, as a weight: the gradient's sweep need not know the label.
    row.spare[scales.label] -= (term.on - term.off) * sums[3];
  }
  if (!row.grad_student) return false;

  A soft_scale = scales.soft_gradient * inverse_temperature;
  if (row.grad_elements.data && problem.unit_student) {
    // |q - p| <= 1 in either term.
    const A factor = float16_factor(std::abs(soft_scale) + (label.weighs ? std::abs(scales.hard_gradient) : A(0)));
    static_cast<A*>(problem.unit_student)[row.number] = A(1) / factor;
    soft_scale *= factor;
    label.share *= factor;
    label.off *= factor;
  }
  // q - p = (student * ratio - teacher) / sum of the teacher's: 0 where the rows are equal.
  const A ratio = sums[1] / sums[0], scale = soft_scale / sums[1];
  const A* teacher_weight = row.teacher_weight;
  const auto soft_gradient = [=](int64_t i, auto place) {
    return (load(student_weight.in(place) + i) * ratio - load(teacher_weight + i)) * scale;
  };
  if (!label.weighs) return write_gradient(problem, row, soft_gradient);
  const A* label_weight = row.spare;
  return write_gradient(problem, row, [=](int64_t i, auto place) {
    return soft_gradient(i, place) + (load(label_weight + i) * label.share - label.off);
  });
}

// Both terms of a row, the hard one where it is wanted. Returns what write_gradient does.
template <class A, class Order>
KD_INLINE bool forward_row(const RowLoss& problem, const RowScales<A>& scales, const Lines<A>& row, const Order& order,
                           A& soft, A& hard) {
  return scales.has_hard ? forward_row_of<A, true>(problem, scales, row, order, soft, hard)
                         : forward_row_of<A, false>(problem, scales, row, order, soft, hard);
}
