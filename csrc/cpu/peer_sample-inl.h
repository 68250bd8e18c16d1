// What the peer kernels share: rows of one sample in scratch memory, mixtures of them, the attention.
#if defined(KD_CPU_PEER_SAMPLE_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_PEER_SAMPLE_INL_H
#undef KD_CPU_PEER_SAMPLE_INL_H
#else
#define KD_CPU_PEER_SAMPLE_INL_H
#endif

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/row_io-inl.h"
#include "cpu/row_sweeps-inl.h"
#include "peer_ensemble.h"

KD_BEGIN_TARGET

// [B, P, n] as rows b P + p.
inline Rows rows_of(const PeerRows& rows) {
  return {rows.data, rows.dtype, rows.sample_stride, rows.stride, rows.peer_stride};
}

// Lends out parts of a thread's memory, each a number of whole vectors.
template <class A>
class Scratch {
 public:
  explicit Scratch(A* memory) : next_(memory) {}

  A* take(int64_t rows, int64_t numbers) {
    A* const part = next_;
    next_ += rows * padded_classes(numbers);
    return part;
  }

 private:
  A* next_;
};

// Rows of scratch memory, one after another. What stands behind the last class is for each user to say.
template <class A>
struct Shelf {
  A* numbers;
  int64_t pitch;

  Shelf(Scratch<A>& scratch, int64_t rows, int64_t classes)
      : numbers(scratch.take(rows, classes)), pitch(padded_classes(classes)) {}
  KD_INLINE A* row(int64_t r) const { return numbers + r * pitch; }
  KD_INLINE Line<A> line(int64_t r) const { return {row(r), row(r)}; }
};

// `number` in the lanes of a row's last vectors that are classes, `absent` behind them.
template <class A>
KD_INLINE Vec<A> up_to(int64_t classes, int64_t i, Vec<A> number, A absent) {
  typename Simd<A>::I lane;
  for (int j = 0; j < Simd<A>::lanes; ++j) lane[j] = j;
  return select(lane < static_cast<std::remove_reference_t<decltype(lane[0])>>(classes - i), number, splat(absent));
}

// A weighted sum of rows. Those of weight 0 add nothing, not even NaN.
template <class A>
class WeightedRows {
 public:
  KD_INLINE void add(A weight, const Line<A>& row) {
    if (weight == A(0)) return;
    weights_[count_] = weight;
    bodies_[count_] = row.body;
    tails_[count_++] = row.tail;
  }

  // body(at), where at(i, place) is the sum for the vector of classes at i. The commonest numbers of rows have loops of
  // their own, without a count.
  template <class Body>
  KD_INLINE void summed(const Body& body) const {
    if (count_ == 2) body([this](int64_t i, auto place) { return sum<2>(i, place); });
    else if (count_ == 3) body([this](int64_t i, auto place) { return sum<3>(i, place); });
    else if (count_ == 4) body([this](int64_t i, auto place) { return sum<4>(i, place); });
    else body([this](int64_t i, auto place) { return sum<0>(i, place); });
  }

 private:
  template <int few, class Place>
  KD_INLINE Vec<A> sum(int64_t i, Place place) const {
    Vec<A> sum{};
    for (int64_t j = 0; j < (few > 0 ? few : count_); ++j) sum += load((place ? tails_ : bodies_)[j] + i) * weights_[j];
    return sum;
  }

  int64_t count_ = 0;
  A weights_[most_peers + 1];  // a leader's target too
  const A *bodies_[most_peers + 1], *tails_[most_peers + 1];
};

// products[b] = <row, rows(b)>, b < count. Four at a time: the row is loaded once for all of them, and no addition waits for
// the last. Where either is nothing, the row 0 or the other a class that its peer rules out (-inf), nothing is added.
template <class A, class RowsAt>
KD_INLINE void inner_products(const Line<A>& row, const RowsAt& rows, int64_t count, int64_t classes, A* products) {
  for (int64_t first = 0; first < count; first += 4) {
    Line<A> four[4];
    for (int j = 0; j < 4; ++j) four[j] = rows(first + j < count ? first + j : first);
    A sums[4];
    sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
      const Vec<A> x = load(row.in(place) + i);
      for (int j = 0; j < 4; ++j) {
        const Vec<A> y = load(four[j].in(place) + i);
        part[j] += select((x == A(0)) | (y == -std::numeric_limits<A>::infinity()), Vec<A>{}, x * y);
      }
    });
    for (int j = 0; j < 4 && first + j < count; ++j) products[first + j] = sums[j];
  }
}

// softmax_b(Q_a . K_b) of one sample, and the way back. Matrices [P, P] are shelves of P rows, with zeros behind the
// last peer of the last vector.
template <class A>
class PeerAttention {
 public:
  template <class Problem>
  PeerAttention(const Problem& problem, Scratch<A>& scratch)
      : peers_(problem.peers),
        width_(problem.width),
        query_(access(problem.query, scratch)),
        key_(access(problem.key, scratch)),
        grad_query_(access(problem.grad_query, scratch)),
        grad_key_(access(problem.grad_key, scratch)) {}

  static int64_t scratch_numbers(int64_t peers, int64_t width) { return 4 * peers * padded_classes(width); }

  // The features that the others work on.
  void read(int64_t sample) {
    first_ = sample * peers_;
    query_.load(first_, peers_);
    key_.load(first_, peers_);
  }

  void weigh(const Shelf<A>& weights) const {
    for (int64_t a = 0; a < peers_; ++a) {
      const auto keys = [&](int64_t b) { return key_.row(first_, b); };
      std::fill_n(weights.row(a), weights.pitch, -std::numeric_limits<A>::infinity());
      inner_products(query_.row(first_, a), keys, peers_, width_, weights.row(a));
    }
    // In a loop of its own: numbers written one by one are long on their way to be read as a vector.
    for (int64_t a = 0; a < peers_; ++a) {
      const Line<A> row = weights.line(a);
      const A max = max_classes(row, peers_);
      A sums[1];
      sum_classes(peers_, sums, [&](int64_t i, auto, Vec<A>* part) {
        const Vec<A> weight = exp_product(load(row.body + i) - max, A(1));
        store(row.body + i, weight);
        part[0] += weight;
      });
      each_vector<A>(peers_, [&](int64_t i, auto) { store(row.body + i, load(row.body + i) / sums[0]); });
    }
  }

  // From the gradient of the weights, which becomes that of the products.
  void write_gradients(const Shelf<A>& weights, const Shelf<A>& by_weights) const {
    for (int64_t a = 0; a < peers_; ++a) {
      A *const weight = weights.row(a), *const by = by_weights.row(a);
      A mean[1];
      sum_classes(peers_, mean, [&](int64_t i, auto, Vec<A>* part) { part[0] += load(weight + i) * load(by + i); });
      each_vector<A>(peers_, [&](int64_t i, auto) { store(by + i, load(weight + i) * (load(by + i) - mean[0])); });
    }
    write(grad_query_, key_, [&](int64_t a, int64_t b) { return by_weights.row(a)[b]; });
    write(grad_key_, query_, [&](int64_t b, int64_t a) { return by_weights.row(a)[b]; });
  }

  void write_zeros() const {
    write(grad_query_, key_, [](int64_t, int64_t) { return A(0); });
    write(grad_key_, query_, [](int64_t, int64_t) { return A(0); });
  }

 private:
  RowAccess<A> access(const PeerRows& rows, Scratch<A>& scratch) const {
    return {rows_of(rows), width_, peers_, A(0), scratch.take(peers_, width_)};
  }

  // gradient[a] = sum_b factor(a, b) features[b].
  template <class Factor>
  void write(const RowAccess<A>& gradient, const RowAccess<A>& features, const Factor& factor) const {
    if (!gradient.row(first_, 0)) return;
    for (int64_t a = 0; a < peers_; ++a) {
      WeightedRows<A> sum;
      for (int64_t b = 0; b < peers_; ++b) sum.add(factor(a, b), features.row(first_, b));
      const Line<A> to = gradient.row(first_, a);
      sum.summed([&](const auto& at) {
        each_vector<A>(width_, [&](int64_t i, auto place) { store(to.in(place) + i, at(i, place)); });
      });
    }
    gradient.store(first_, peers_);
  }

  const int64_t peers_, width_;
  const RowAccess<A> query_, key_, grad_query_, grad_key_;
  int64_t first_ = 0;  // row of the sample
};

KD_END_TARGET
#endif
