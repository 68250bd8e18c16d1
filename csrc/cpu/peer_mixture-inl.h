// The mixture of peers on the CPU, for one instruction set: a range of samples, of logits as they are or of probabilities,
// and the gradients for whatever comes from above.
#if defined(KD_CPU_PEER_MIXTURE_INL_H) == defined(KD_TARGET_TOGGLE)
#ifdef KD_CPU_PEER_MIXTURE_INL_H
#undef KD_CPU_PEER_MIXTURE_INL_H
#else
#define KD_CPU_PEER_MIXTURE_INL_H
#endif

#include <cstring>
#include <limits>

#include "cpu/peer_sample-inl.h"
#include "peer_ensemble.h"

KD_BEGIN_TARGET

// One thread's samples, one after another.
template <class A>
class PeerMixtures {
 public:
  PeerMixtures(const PeerMixture& problem, Scratch<A> scratch)
      : problem_(problem),
        classes_(problem.classes),
        peers_(problem.peers),
        rows_(problem.rows()),
        of_logits_(problem.mix == PeerMix::logits),
        inverse_temperature_(static_cast<A>(1 / problem.temperature)),
        peer_logits_(access(problem.peer_logits, peers_, -std::numeric_limits<A>::infinity(), scratch)),
        grad_peers_(access(problem.grad_peer_logits, peers_, A(0), scratch)),
        mixture_(access(problem.mixture, rows_, A(0), scratch)),
        grad_mixture_(access(problem.grad_mixture, rows_, A(0), scratch)),
        attention_(problem, scratch),
        q_(scratch, peers_, classes_),
        by_q_(scratch, 1, classes_),
        weights_(scratch, rows_, peers_),
        by_weights_(scratch, rows_, peers_) {
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t b = 0; b < weights_.pitch; ++b) {
        weights_.row(r)[b] = b < peers_ ? static_cast<A>(1 / static_cast<double>(peers_)) : A(0);
        by_weights_.row(r)[b] = A(0);
      }
  }

  static int64_t scratch_numbers(const PeerMixture& problem) {
    return (5 * problem.peers + 1) * padded_classes(problem.classes) + 2 * problem.peers * padded_classes(problem.peers) +
           PeerAttention<A>::scratch_numbers(problem.peers, problem.width);
  }

  void mix(int64_t sample) {
    read_peers(sample);
    if (problem_.attends) {
      attention_.read(sample);
      attention_.weigh(weights_);
      A* const to = static_cast<A*>(problem_.attention) + sample * peers_ * peers_;
      for (int64_t a = 0; a < peers_; ++a) std::memcpy(to + a * peers_, weights_.row(a), peers_ * sizeof(A));
    }
    for (int64_t r = 0; r < rows_; ++r) {
      WeightedRows<A> mixture;
      for (int64_t b = 0; b < peers_; ++b) mixture.add(weights_.row(r)[b], mixed(sample, b));
      const Line<A> to = mixture_.row(sample * rows_, r);
      write_sum(mixture, to);
    }
    mixture_.store(sample * rows_, rows_);
  }

  void differentiate(int64_t sample) {
    read_peers(sample);
    grad_mixture_.load(sample * rows_, rows_);
    if (problem_.attends) {
      const A* const from = static_cast<const A*>(problem_.attention) + sample * peers_ * peers_;
      for (int64_t a = 0; a < peers_; ++a) std::memcpy(weights_.row(a), from + a * peers_, peers_ * sizeof(A));
    }
    if (problem_.wants_features()) write_features(sample);
    if (problem_.grad_peer_logits.data) write_peers(sample);
  }

 private:
  RowAccess<A> access(const PeerRows& rows, int64_t inner, A absent, Scratch<A>& scratch) const {
    return {rows_of(rows), classes_, inner, absent, scratch.take(inner, classes_)};
  }

  // What is mixed: the logits of peer b, or its probabilities.
  Line<A> mixed(int64_t sample, int64_t b) const {
    return of_logits_ ? peer_logits_.row(sample * peers_, b) : q_.line(b);
  }

  void read_peers(int64_t sample) {
    peer_logits_.load(sample * peers_, peers_);
    for (int64_t b = 0; b < peers_ && !of_logits_; ++b) take_softmax(peer_logits_.row(sample * peers_, b), q_.row(b));
  }

  void take_softmax(const Line<A>& logits, A* q) const {
    const A max = max_classes(logits, classes_), inverse_temperature = inverse_temperature_;
    A sums[1];
    sum_classes(classes_, sums, [&](int64_t i, auto place, Vec<A>* part) {
      const Vec<A> weight = exp_product(load(logits.in(place) + i) - max, inverse_temperature);
      store(q + i, weight);
      part[0] += weight;
    });
    const A inverse_sum = A(1) / sums[0];
    each_vector<A>(classes_, [&](int64_t i, auto) { store(q + i, load(q + i) * inverse_sum); });
  }

  void write_sum(const WeightedRows<A>& rows, const Line<A>& to) const {
    rows.summed([&](const auto& at) {
      each_vector<A>(classes_, [&](int64_t i, auto place) { store(to.in(place) + i, at(i, place)); });
    });
  }

  void write_features(int64_t sample) {
    const A* above = static_cast<const A*>(problem_.grad_attention);
    if (above) above += sample * peers_ * peers_;
    for (int64_t a = 0; a < peers_; ++a) {
      const auto peers = [&](int64_t b) { return mixed(sample, b); };
      inner_products(grad_mixture_.row(sample * rows_, a), peers, peers_, classes_, by_weights_.row(a));
      for (int64_t b = 0; b < peers_ && above; ++b) by_weights_.row(a)[b] += above[a * peers_ + b];
    }
    attention_.read(sample);
    attention_.write_gradients(weights_, by_weights_);
  }

  void write_peers(int64_t sample) {
    for (int64_t b = 0; b < peers_; ++b) {
      WeightedRows<A> from_above;
      for (int64_t r = 0; r < rows_; ++r) from_above.add(weights_.row(r)[b], grad_mixture_.row(sample * rows_, r));
      const Line<A> to = grad_peers_.row(sample * peers_, b);
      if (!of_logits_) through_softmax(to, q_.row(b), from_above);
      else write_sum(from_above, to);
    }
    grad_peers_.store(sample * peers_, peers_);
  }

  void through_softmax(const Line<A>& to, const A* q, const WeightedRows<A>& by_probabilities) {
    A* const by_q = by_q_.row(0);
    A mean[1];
    by_probabilities.summed([&](const auto& at) {
      sum_classes(classes_, mean, [&](int64_t i, auto place, Vec<A>* part) {
        const Vec<A> by = at(i, place);
        store(by_q + i, by);
        part[0] += load(q + i) * by;
      });
    });
    const A scale = inverse_temperature_;
    each_vector<A>(classes_, [&](int64_t i, auto place) {
      store(to.in(place) + i, load(q + i) * (load(by_q + i) - mean[0]) * scale);
    });
  }

  const PeerMixture& problem_;
  const int64_t classes_, peers_, rows_;
  const bool of_logits_;
  const A inverse_temperature_;

  const RowAccess<A> peer_logits_, grad_peers_, mixture_, grad_mixture_;
  PeerAttention<A> attention_;
  const Shelf<A> q_;     // probabilities of peers
  const Shelf<A> by_q_;  // a gradient by them
  const Shelf<A> weights_, by_weights_;
};

template <class A>
void mix_samples(const PeerMixture& problem, bool backward, int64_t begin, int64_t end, A* scratch) {
  PeerMixtures<A> samples(problem, Scratch<A>(scratch));
  for (int64_t sample = begin; sample < end; ++sample) {
    if (backward) samples.differentiate(sample);
    else samples.mix(sample);
  }
}

void mix_samples_float(const PeerMixture& problem, bool backward, int64_t begin, int64_t end, void* scratch) {
  mix_samples(problem, backward, begin, end, static_cast<float*>(scratch));
}

void mix_samples_double(const PeerMixture& problem, bool backward, int64_t begin, int64_t end, void* scratch) {
  mix_samples(problem, backward, begin, end, static_cast<double*>(scratch));
}

inline int64_t mixture_scratch_numbers(const PeerMixture& problem) { return PeerMixtures<float>::scratch_numbers(problem); }

KD_END_TARGET
#endif
