// The first pass on the CPU: the statistic of each row (row_statistics.h).
#if defined(KD_CPU_ROW_STATISTICS_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_ROW_STATISTICS_INL_H
#undef KD_CPU_ROW_STATISTICS_INL_H
#else
#define KD_CPU_ROW_STATISTICS_INL_H
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/pseudo_labels-inl.h"
#include "cpu/row_io-inl.h"
#include "cpu/row_lines-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "row_loss.h"
#include "row_statistics.h"

KD_BEGIN_TARGET

// sum exp(x - largest).
template <class A>
KD_INLINE A sum_of_exp(const Line<A>& row, A largest, const Upcoming& next, int64_t classes) {
  A sums[1];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    next.prefetch(i);
    part[0] += exp_product(load(row.in(place) + i) - largest, A(1));
  });
  return sums[0];
}

template <class A>
KD_INLINE A cosine_of_rows(const RowLoss& problem, int64_t number, const Line<A>& student, const Line<A>& teacher,
                           const Upcoming& next_student, const Upcoming& next_teacher) {
  const int64_t classes = problem.classes;
  A sums[3];
  sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
    if (place) return;  // the padding of the tail is -inf
    next_student.prefetch(i);
    next_teacher.prefetch(i);
    const Vec<A> z = load(student.in(place) + i), t = load(teacher.in(place) + i);
    part[0] += z * t;
    part[1] += z * z;
    part[2] += t * t;
  });
  for (int64_t c = body_classes(classes); c < classes; ++c) {
    const A z = student.tail[c], t = teacher.tail[c];
    sums[0] += z * t;
    sums[1] += z * z;
    sums[2] += t * t;
  }
  if (problem.adjustment == Adjustment::exchange && problem.has_label(number)) {
    const int64_t largest = largest_class(teacher, classes), label = problem.label_of(number);
    if (largest != label)
      sums[0] -= (*class_at(student, largest, classes) - *class_at(student, label, classes)) *
                 (*class_at(teacher, largest, classes) - *class_at(teacher, label, classes));
  }
  return cosine_statistic(problem, sums[0], sums[1], sums[2]);
}

// Whole vectors before and after the one that holds the label; the others class by class, since the tail is padded.
template <class A>
KD_INLINE A rank_of_label(const RowLoss& problem, int64_t number, const Line<A>& row) {
  if (!problem.has_label(number)) return A(no_rank);
  constexpr int64_t lanes = Simd<A>::lanes;
  const int64_t classes = problem.classes, label = problem.label_of(number);
  const A own = *class_at(row, label, classes);
  const int64_t split = body_classes(classes), begin = std::min(label / lanes * lanes, split);
  const int64_t end = std::min(begin + lanes, split);
  typename Simd<A>::I behind{};  // in each lane, minus the number of classes that are not ahead
  for (int64_t i = 0; i < begin; i += lanes) behind += load(row.body + i) < own;
  for (int64_t i = end; i < split; i += lanes) behind += load(row.body + i) <= own;
  int64_t rank = begin + split - end;
  for (int lane = 0; lane < lanes; ++lane) rank += behind[lane];
  const auto count = [&](int64_t c) { rank += c != label && is_ahead(*class_at(row, c, classes), own, c < label); };
  for (int64_t c = begin; c < end; ++c) count(c);
  for (int64_t c = split; c < classes; ++c) count(c);
  return static_cast<A>(rank);
}

// Rows [begin, end) to problem.first.numbers; 0 where a row does not count. `scratch` as for solve_rows.
template <class A>
void row_statistics(const RowLoss& problem, int64_t begin, int64_t end, A* scratch) {
  if (problem.first.statistic == RowStatistic::pseudo_label) return pseudo_labels(problem, begin, end, scratch);
  const int64_t classes = problem.classes, tile = tile_rows(problem);
  const RowStatistic kind = problem.first.statistic;
  const bool of_student = kind != RowStatistic::confidence;
  const bool of_teacher = kind == RowStatistic::confidence || kind == RowStatistic::cosine;
  const bool exponentials = kind == RowStatistic::confidence || kind == RowStatistic::doubt;
  const A absent = -std::numeric_limits<A>::infinity();
  const RowAccess<A> student(of_student ? problem.student : Rows{}, classes, problem.inner, absent, scratch,
                             problem.middle);
  const RowAccess<A> teacher(of_teacher ? problem.teacher : Rows{}, classes, problem.inner, absent,
                             scratch + tile * padded_row(problem), problem.middle);
  const RowAccess<A>& softmaxed = of_student ? student : teacher;
  A* statistic = static_cast<A*>(problem.first.numbers);
  for (int64_t first = begin, count; first < end; first += count) {
    count = tile == 1 ? 1 : std::min({tile, end - first, problem.inner - first % problem.inner});
    const int64_t next = std::min(first + count, end - 1);
    A largest = 0;
    if (tile == 1 && exponentials) {
      largest = load_largest(softmaxed, first, classes);
    } else {
      student.load(first, count);
      teacher.load(first, count);
    }
    for (int64_t r = 0; r < count; ++r) {
      A& result = statistic[first + r];
      if (!problem.counts_row(first + r)) {
        result = 0;
      } else if (exponentials) {
        const Line<A> row = softmaxed.row(first, r);
        if (tile > 1) largest = max_classes(row, classes);
        const A sum = sum_of_exp(row, largest, softmaxed.upcoming(next), classes);
        result = kind == RowStatistic::confidence ? A(1) / sum : doubt_statistic(sum);
      } else if (kind == RowStatistic::rank) {
        result = rank_of_label(problem, first + r, student.row(first, r));
      } else {
        result = cosine_of_rows(problem, first + r, student.row(first, r), teacher.row(first, r), student.upcoming(next),
                                teacher.upcoming(next));
      }
    }
  }
}

void row_statistics_float(const RowLoss& problem, int64_t begin, int64_t end, void* scratch) {
  row_statistics(problem, begin, end, static_cast<float*>(scratch));
}

void row_statistics_double(const RowLoss& problem, int64_t begin, int64_t end, void* scratch) {
  row_statistics(problem, begin, end, static_cast<double*>(scratch));
}

KD_END_TARGET
#endif
