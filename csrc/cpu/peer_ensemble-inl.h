// Losses of peers on the CPU, for one instruction set: a range of samples, loss and all gradients in one visit to each.
//
// A sample's rows lie in scratch memory, which stays in the L1 or L2 cache, and are swept class by class:
//
//     1  every student    shifted logits y, e^(y / T) and e^y with their sums
//     2  every target     the mixture x of logits with e^(x / T), or that of probabilities
//     3  every student    divergence, gradient by its own logits, and log t' - log q, of which its target's is made
//     4  every target     gradients by the mixed logits and by the weights
//     5  every peer       what comes back from the targets it has part in; its gradient is written
//
// Logits are shifted by their row's maximum before they are mixed, which no softmax notices: logits of 1e4 keep their
// digits. The gradient of the weights is right for the same reason: that of a mixture's logits adds up to 0.
// Sums are taken in blocks (cpu/row_sweeps-inl.h). Behind the last class y is -inf, and what is made of it 0.
#if defined(KD_CPU_PEER_ENSEMBLE_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_PEER_ENSEMBLE_INL_H
#undef KD_CPU_PEER_ENSEMBLE_INL_H
#else
#define KD_CPU_PEER_ENSEMBLE_INL_H
#endif

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/peer_mixture-inl.h"
#include "cpu/peer_sample-inl.h"
#include "peer_ensemble.h"

KD_BEGIN_TARGET

// How log t' is known: from the mixed logits, from t' itself; or each peer is a target of its own.
enum class LogTarget { of_logits, of_sum, of_each };

// One thread's samples, one after another.
template <class A>
class PeerSamples {
 public:
  PeerSamples(const PeerEnsemble& problem, Scratch<A> scratch)
      : problem_(problem),
        classes_(problem.classes),
        peers_(problem.peers),
        students_(problem.peers + (problem.leader.data ? 1 : 0)),
        targets_(!problem.has_targets() ? 0 : problem.gate.data ? 1 : students_),
        inverse_temperature_(static_cast<A>(1 / problem.temperature)),
        eps_(static_cast<A>(problem.target_eps)),
        ce_scale_(static_cast<A>(problem.sample_share())),
        kl_scale_(static_cast<A>(problem.kl_weight * problem.temperature * problem.sample_share())),
        weighs_(targets_ > 0 && problem.kl_weight != 0),
        through_targets_(weighs_ && !problem.detach_targets),
        peer_logits_(access(problem.peer_logits, peers_, scratch)),
        grad_peers_(access(problem.grad_peer_logits, peers_, scratch)),
        leader_(access(problem.leader, 1, scratch)),
        grad_leader_(access(problem.grad_leader, 1, scratch)),
        attention_(problem, scratch),
        y_(scratch, students_, classes_),
        soft_(scratch, students_, classes_),
        gradient_(scratch, students_, classes_),
        mixed_(scratch, targets_, classes_),
        target_(scratch, targets_, classes_),
        ratio_(scratch, targets_, classes_),
        weights_(scratch, targets_, peers_),
        by_weights_(scratch, targets_, peers_) {
    for (int64_t r = 0; r < targets_; ++r)
      for (int64_t b = 0; b < weights_.pitch; ++b) {
        weights_.row(r)[b] = b < peers_ ? static_cast<A>(problem.constant_weight(r, b)) : A(0);
        by_weights_.row(r)[b] = A(0);
      }
    // Logarithms are taken of whole vectors.
    for (A* sums : {soft_sum_, sharp_sum_, mixed_sum_}) std::fill_n(sums, most_rows, A(1));
  }

  static int64_t scratch_numbers(const PeerEnsemble& problem) {
    const int64_t rows = problem.peers + 1;
    return rows * (8 * padded_classes(problem.classes) + 2 * padded_classes(problem.peers)) +
           PeerAttention<A>::scratch_numbers(problem.peers, problem.width);
  }

  void solve(int64_t sample) {
    double* parts = problem_.sample_parts + sample * peer_parts;
    for (int i = 0; i < peer_parts; ++i) parts[i] = 0;
    first_ = sample * peers_;
    label_ = problem_.target[sample];
    peer_logits_.load(first_, peers_);
    leader_.load(sample, 1);

    for (int64_t r = 0; r < students_; ++r)
      take_softmaxes(r, r < peers_ ? peer_logits_.row(first_, r) : leader_.row(sample, 0));
    take_logarithms(soft_sum_, log_soft_sum_, students_);
    take_logarithms(sharp_sum_, log_sharp_sum_, students_);
    for (int64_t r = 0; r < students_; ++r)
      parts[r < peers_ ? ce_peers : ce_leader] += static_cast<double>(log_sharp_sum_[r] - y_.row(r)[label_]);

    if (targets_ > 0) {
      read_weights(sample);
      if (problem_.mix == PeerMix::logits) mix_logits();
      else mix_probabilities();
      const double square = problem_.temperature * problem_.temperature;
      for (int64_t r = 0; r < students_; ++r)
        parts[r < peers_ ? kl_peers : kl_leader] += square * static_cast<double>(compare(r));
      if (problem_.mix == PeerMix::logits) differentiate_mixed();
    } else {
      for (int64_t r = 0; r < students_; ++r) leave_to_itself(r);
    }
    if (problem_.gate.data) parts[ce_leader] = static_cast<double>(add_ensemble());
    if (problem_.wants_features()) write_features();
    if (problem_.grad_gate.data) write_gate(sample);
    if (problem_.grad_peer_logits.data) write_peers();
    if (problem_.grad_leader.data) {
      const Line<A> gradient = grad_leader_.row(sample, 0);
      write_logits(gradient, peers_, [](int64_t, auto) { return Vec<A>{}; });
      grad_leader_.store(sample, 1);
    }
  }

 private:
  static constexpr int most_rows = padded_classes(most_peers + 1);

  RowAccess<A> access(const PeerRows& rows, int64_t inner, Scratch<A>& scratch) const {
    return {rows_of(rows), classes_, inner, -std::numeric_limits<A>::infinity(), scratch.take(inner, classes_)};
  }

  // Which target student r is compared with: a gate has one for all.
  int64_t target_of(int64_t r) const { return targets_ == 1 ? 0 : r; }

  static void take_logarithms(const A* numbers, A* logarithms, int64_t count) {
    each_vector<A>(count, [&](int64_t i, auto) { store(logarithms + i, log(load(numbers + i))); });
  }

  void take_softmaxes(int64_t r, const Line<A>& logits) {
    const A max = max_classes(logits, classes_), inverse_temperature = inverse_temperature_;
    A *const y = y_.row(r), *const soft = soft_.row(r), *const sharp = gradient_.row(r);
    A sums[2];
    const auto sweep = [&](auto at_one) {
      sum_classes(classes_, sums, [&](int64_t i, auto place, Vec<A>* part) {
        const Vec<A> above = load(logits.in(place) + i) - max;
        const Vec<A> sharp_weight = exp_product(above, A(1));
        const Vec<A> soft_weight = at_one ? sharp_weight : exp_product(above, inverse_temperature);
        store(y + i, above);
        store(sharp + i, sharp_weight);
        store(soft + i, soft_weight);
        part[0] += sharp_weight;
        part[1] += soft_weight;
      });
    };
    if (inverse_temperature == A(1)) sweep(std::true_type{});
    else sweep(std::false_type{});
    sharp_sum_[r] = sums[0];
    soft_sum_[r] = sums[1];
  }

  void read_weights(int64_t sample) {
    if (problem_.weights == PeerWeights::attention) {
      attention_.read(sample);
      attention_.weigh(weights_);
    } else if (problem_.weights == PeerWeights::gate) {
      with_dtype(problem_.gate.dtype, [&](auto* type) {
        const auto* gate = static_cast<decltype(type)>(problem_.gate.data) + sample * problem_.gate.sample_stride;
        for (int64_t b = 0; b < peers_; ++b)
          weights_.row(0)[b] = static_cast<A>(to_arithmetic(gate[b * problem_.gate.peer_stride]));
      });
    }
  }

  void mix_logits() {
    for (int64_t j = 0; j < targets_; ++j) {
      WeightedRows<A> mixture;
      for (int64_t b = 0; b < peers_; ++b) mixture.add(weights_.row(j)[b], y_.line(b));
      A *const x = mixed_.row(j), *const weight = target_.row(j);
      const A absent = -std::numeric_limits<A>::infinity(), inverse_temperature = inverse_temperature_;
      const int64_t classes = classes_;
      mixture.summed([&](const auto& at) {
        each_vector<A>(classes, [&](int64_t i, auto place) {
          store(x + i, place ? up_to(classes, i, at(i, place), absent) : at(i, place));
        });
      });
      for (int64_t b = 0; b < peers_; ++b) {  // what a peer rules out, the mixture does, whatever the sign of its weight
        if (!(weights_.row(j)[b] < A(0))) continue;
        const A* const y = y_.row(b);
        each_vector<A>(classes, [&](int64_t i, auto) {
          store(x + i, select(load(y + i) == absent, splat(absent), load(x + i)));
        });
      }
      const A max = max_classes(mixed_.line(j), classes);
      A sums[1];
      sum_classes(classes, sums, [&](int64_t i, auto, Vec<A>* part) {
        const Vec<A> e = exp_product(load(x + i) - max, inverse_temperature);
        store(weight + i, e);
        part[0] += e;
      });
      mixed_max_[j] = max;
      mixed_sum_[j] = sums[0];
    }
    take_logarithms(mixed_sum_, log_mixed_sum_, targets_);
  }

  void mix_probabilities() {
    for (int64_t j = 0; j < targets_; ++j) {
      WeightedRows<A> mixture;
      for (int64_t b = 0; b < peers_; ++b) mixture.add(weights_.row(j)[b] / soft_sum_[b], soft_.line(b));
      A* const weight = target_.row(j);
      mixture.summed([&](const auto& at) {
        each_vector<A>(classes_, [&](int64_t i, auto place) { store(weight + i, at(i, place)); });
      });
      mixed_sum_[j] = A(1);
    }
    if (problem_.mix == PeerMix::divergences)
      for (int64_t b = 0; b < peers_; ++b) take_entropy(b);
  }

  // log t' of peer b as a target, stored in place of a mixture, and sum t' log t'.
  void take_entropy(int64_t b) {
    const int64_t classes = classes_;
    const A inverse_temperature = inverse_temperature_, inverse_sum = A(1) / soft_sum_[b], log_sum = log_soft_sum_[b];
    const A eps = eps_, *const y = y_.row(b), *const weight = soft_.row(b);
    A* const log_target = mixed_.row(b);
    A sums[1];
    sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
      Vec<A> target = load(weight + i) * inverse_sum + eps;
      if (place) target = up_to(classes, i, target, A(0));
      const Vec<A> logarithm = eps > A(0) ? log(target) : load(y + i) * inverse_temperature - log_sum;
      store(log_target + i, logarithm);
      part[0] += select(target == A(0), Vec<A>{}, target * logarithm);
    });
    negative_entropy_[b] = sums[0];
  }

  A compare(int64_t r) {
    if (problem_.mix == PeerMix::divergences) {
      A entropy = 0;
      for (int64_t b = 0; b < peers_; ++b) entropy += weights_.row(r)[b] * negative_entropy_[b];
      return compare_with<LogTarget::of_each>(r) + entropy;
    }
    if (problem_.mix == PeerMix::logits && problem_.target_eps == 0) return compare_with<LogTarget::of_logits>(r);
    return compare_with<LogTarget::of_sum>(r);
  }

  // The gradient of a student without a target: that of its cross entropy.
  void leave_to_itself(int64_t r) {
    A *const gradient = gradient_.row(r), share = ce_scale_ / sharp_sum_[r];
    each_vector<A>(classes_, [&](int64_t i, auto) { store(gradient + i, load(gradient + i) * share); });
  }

  // sum t' (log t' - log q) of student r, or with targets of their own -sum t' log q.
  template <LogTarget known>
  A compare_with(int64_t r) {
    const int64_t classes = classes_, j = target_of(r);
    const A inverse_temperature = inverse_temperature_, inverse_target_sum = A(1) / mixed_sum_[j], eps = eps_;
    const A log_sum = log_soft_sum_[r], max = mixed_max_[j], log_sums = log_mixed_sum_[j] - log_sum;
    const A own_share = ce_scale_ / sharp_sum_[r], kl_scale = kl_scale_;
    const A mass = (A(1) + eps * static_cast<A>(classes)) / soft_sum_[r];
    const A *const x = mixed_.row(j), *const weight = target_.row(j), *const y = y_.row(r), *const soft = soft_.row(r);
    A *const gradient = gradient_.row(r), *const ratios = ratio_.row(j);
    const bool weighs = weighs_, add = r != j;
    A sums[2];
    sum_classes(classes, sums, [&](int64_t i, auto place, Vec<A>* part) {
      const Vec<A> p = load(weight + i) * inverse_target_sum;
      Vec<A> target = p + eps;
      if (place) target = up_to(classes, i, target, A(0));
      Vec<A> ratio = load(y + i);
      if (known == LogTarget::of_logits) ratio = ((load(x + i) - max) - ratio) * inverse_temperature - log_sums;
      else if (known == LogTarget::of_sum) ratio = log(target) - (ratio * inverse_temperature - log_sum);
      else ratio = log_sum - ratio * inverse_temperature;
      ratio = select(target == A(0), Vec<A>{}, ratio);
      part[0] += target * ratio;
      part[1] += p * ratio;
      const Vec<A> own = load(gradient + i) * own_share;
      store(gradient + i, weighs ? own + (load(soft + i) * mass - target) * kl_scale : own);
      store(ratios + i, add ? load(ratios + i) + ratio : ratio);
    });
    mean_ratio_[j] = add ? mean_ratio_[j] + sums[1] : sums[1];
    return sums[0];
  }

  // Replaces the ratios by the gradients of the targets' logits.
  void differentiate_mixed() {
    for (int64_t j = 0; j < targets_; ++j) {
      if (!through_targets_) {
        fill_zero(ratio_.line(j), classes_);
        continue;
      }
      const A *const weight = target_.row(j), inverse_sum = A(1) / mixed_sum_[j], mean = mean_ratio_[j], scale = kl_scale_;
      A* const ratios = ratio_.row(j);
      each_vector<A>(classes_, [&](int64_t i, auto) {
        store(ratios + i, load(weight + i) * inverse_sum * (load(ratios + i) - mean) * scale);
      });
    }
  }

  // The cross entropy of a gate's ensemble; its gradient is added to that of the one target.
  A add_ensemble() {
    A *const x = mixed_.row(0), *const by_x = ratio_.row(0);
    const A max = mixed_max_[0], own = x[label_] - max;
    A sums[1];
    sum_classes(classes_, sums, [&](int64_t i, auto, Vec<A>* part) {
      const Vec<A> weight = exp_product(load(x + i) - max, A(1));
      store(x + i, weight);
      part[0] += weight;
    });
    const A share = ce_scale_ / sums[0];
    each_vector<A>(classes_, [&](int64_t i, auto) { store(by_x + i, load(by_x + i) + load(x + i) * share); });
    by_x[label_] -= ce_scale_;
    return std::log(sums[0]) - own;
  }

  // d loss / d W_jb = <ratios_j, mixed_b>, before the scale of probabilities.
  void differentiate_weights(int64_t j) {
    const Shelf<A>& mixed = problem_.mix == PeerMix::logits ? y_ : soft_;
    inner_products(ratio_.line(j), [&](int64_t b) { return mixed.line(b); }, peers_, classes_, by_weights_.row(j));
  }

  void write_features() {
    if (!through_targets_) return attention_.write_zeros();
    for (int64_t a = 0; a < peers_; ++a) {
      differentiate_weights(a);
      for (int64_t b = 0; b < peers_ && problem_.mix == PeerMix::probs; ++b)
        by_weights_.row(a)[b] *= kl_scale_ / inverse_temperature_ / soft_sum_[b];
    }
    attention_.write_gradients(weights_, by_weights_);
  }

  void write_gate(int64_t sample) {
    const PeerRows& rows = problem_.grad_gate;
    differentiate_weights(0);
    with_dtype(rows.dtype, [&](auto* type) {
      auto* gradient = static_cast<decltype(type)>(rows.data) + sample * rows.sample_stride;
      for (int64_t b = 0; b < peers_; ++b) from_arithmetic(by_weights_.row(0)[b], gradient + b * rows.peer_stride);
    });
  }

  // The gradient of a student's own terms, plus `more`.
  template <class More>
  void write_logits(const Line<A>& to, int64_t r, const More& more) {
    const Line<A> own = gradient_.line(r);
    each_vector<A>(classes_, [&](int64_t i, auto place) { store(to.in(place) + i, load(own.body + i) + more(i, place)); });
    *class_at(to, label_, classes_) -= ce_scale_;
  }

  void write_peers() {
    for (int64_t b = 0; b < peers_; ++b) {
      const Line<A> to = grad_peers_.row(first_, b);
      WeightedRows<A> from_targets;
      if (through_targets_ || problem_.gate.data)
        for (int64_t j = 0; j < targets_; ++j) from_targets.add(weights_.row(j)[b], ratio_.line(j));
      if (problem_.mix == PeerMix::logits)
        from_targets.summed([&](const auto& at) { write_logits(to, b, at); });
      else if (!through_targets_)
        write_logits(to, b, [](int64_t, auto) { return Vec<A>{}; });
      else
        write_logits(to, b, through_softmax(b, from_targets));
    }
    grad_peers_.store(first_, peers_);
  }

  // The gradient of peer b's logits, from that of its probabilities.
  auto through_softmax(int64_t b, const WeightedRows<A>& from_targets) {
    const bool of_each = problem_.mix == PeerMix::divergences;
    const A *const soft = soft_.row(b), inverse_sum = A(1) / soft_sum_[b], scale = kl_scale_;
    A* const by_q = mixed_.row(b);
    A mean[1];
    from_targets.summed([&](const auto& at) {
      sum_classes(classes_, mean, [&](int64_t i, auto place, Vec<A>* part) {
        const Vec<A> q = load(soft + i) * inverse_sum, by = of_each ? at(i, place) + load(by_q + i) : at(i, place);
        const Vec<A> counted = select(q == A(0), Vec<A>{}, by);
        store(by_q + i, counted);
        part[0] += q * counted;
      });
    });
    const A average = mean[0];
    return [=](int64_t i, auto) { return load(soft + i) * inverse_sum * (load(by_q + i) - average) * scale; };
  }

  const PeerEnsemble& problem_;
  const int64_t classes_, peers_, students_, targets_;
  const A inverse_temperature_, eps_;
  const A ce_scale_, kl_scale_;  // of gradients by softmaxes at temperature 1 and T
  const bool weighs_;            // whether any gradient comes of the divergences, and
  const bool through_targets_;   // whether it passes through the targets

  const RowAccess<A> peer_logits_, grad_peers_, leader_, grad_leader_;
  PeerAttention<A> attention_;
  const Shelf<A> y_;
  const Shelf<A> soft_;      // e^(y / T)
  const Shelf<A> gradient_;  // e^y, later what a student's own terms make
  const Shelf<A> mixed_;     // x; or log t' of each peer, and later the gradients of probabilities
  const Shelf<A> target_;    // e^((x - max) / T), or the mixture of probabilities
  const Shelf<A> ratio_;     // log t' - log q, later the gradients of x
  const Shelf<A> weights_, by_weights_;  // W_rb

  A soft_sum_[most_rows], log_soft_sum_[most_rows];    // of students
  A sharp_sum_[most_rows], log_sharp_sum_[most_rows];
  A mixed_max_[most_rows], mixed_sum_[most_rows], log_mixed_sum_[most_rows], mean_ratio_[most_rows];  // of targets
  A negative_entropy_[most_rows];
  int64_t first_ = 0, label_ = 0;  // of the sample at hand
};

template <class A>
void solve_samples(const PeerEnsemble& problem, int64_t begin, int64_t end, A* scratch) {
  PeerSamples<A> samples(problem, Scratch<A>(scratch));
  for (int64_t sample = begin; sample < end; ++sample) samples.solve(sample);
}

void solve_samples_float(const PeerEnsemble& problem, int64_t begin, int64_t end, void* scratch) {
  solve_samples(problem, begin, end, static_cast<float*>(scratch));
}

void solve_samples_double(const PeerEnsemble& problem, int64_t begin, int64_t end, void* scratch) {
  solve_samples(problem, begin, end, static_cast<double*>(scratch));
}

inline int64_t peer_scratch_numbers(const PeerEnsemble& problem) { return PeerSamples<float>::scratch_numbers(problem); }

#include "cpu/peer_mixture-inl.h"

KD_END_TARGET
#endif
