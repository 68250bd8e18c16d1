// Online distillation among peers on the GPU: a block per sample computes the loss and all its gradients, then one block adds
// the samples. Tiles of classes of all rows lie in shared memory; a sample that fits is read once, a larger one in each of
// three sweeps:
//
//     measure   largest logit and sums of exponentials of every row, and of every mixture of logits (online softmax)
//     compare   the divergences, and the sums over classes that the gradients need
//     derive    the gradients of logits and weights; from those of the weights follow queries, keys, gate
//
// A warp has a row, as a student and as what it is taught by; mixtures and what flows back through them go across the rows of
// a tile. Logits are taken relative to the largest of their row before they are mixed, a shift that no softmax notices: logits
// of 1e4 keep their digits. While the largest is not known yet what was summed is moved along (`raised`). No atomics: every
// sum has a fixed order. A device cannot raise: a label out of range makes its sample NaN.
#pragma once
#include "cuda/chunk.cuh"
#include "cuda/peer_sample.cuh"
#include "gradient_list.h"

namespace kd {
namespace {

// What a part of a team keeps of a row in the second sweep.
enum PeerPartTerm : int { value_term, mean_term };

template <class A, PeerMix mix>
class PeerBlock : PeerTiles<A> {
 public:
  KD_DEVICE PeerBlock(const PeerEnsemble& problem, const PeerPlan& plan)
      : PeerTiles<A>(problem.peer_logits, problem.leader, problem.peers, problem.rows(), problem.classes,
                     problem.temperature, plan),
        problem_(problem), label_(problem.target[sample_]), eps_(static_cast<A>(problem.target_eps)),
        hard_scale_(static_cast<A>(has_label() ? problem.sample_share() : double{NAN})),
        soft_scale_(static_cast<A>(problem.kl_weight * problem.temperature * problem.sample_share())) {
    probs_ = logits_ + students_ * plan.tile;
    mixed_ = probs_ + (mix == PeerMix::logits ? 0 : peers_ * plan.tile);
    weights_ = mixed_ + rows_ * plan.tile;
    by_weight_ = weights_ + rows_ * peers_;
    part_numbers_ = by_weight_ + plan.parts * rows_ * peers_;
    row_numbers_ = part_numbers_ + plan.parts * rows_ * peer_part_numbers;
  }

  KD_DEVICE void solve() const {
    weigh();
    measure();
    if (problem_.has_targets()) compare();
    if (simt::thread_index() == 0) write_parts();
    if (problem_.grad_peer_logits.data || problem_.grad_leader.data || problem_.wants_features() || problem_.grad_gate.data)
      derive();
  }

 private:
  using Tiles = PeerTiles<A>;
  using Tiles::above, Tiles::each_tile, Tiles::log_soft, Tiles::own_number, Tiles::part_number,
      Tiles::raise_maxima, Tiles::reset_numbers, Tiles::row_number;
  using Tiles::classes_, Tiles::inverse_temperature_, Tiles::logits_, Tiles::part_numbers_, Tiles::peers_, Tiles::plan_,
      Tiles::row_numbers_, Tiles::rows_, Tiles::sample_, Tiles::students_, Tiles::warp_;

  KD_DEVICE A& weight(int64_t row, int64_t peer) const { return weights_[row * peers_ + peer]; }
  KD_DEVICE A& by_weight(int part, int64_t row, int64_t peer) const {
    return by_weight_[(part * rows_ + row) * peers_ + peer];
  }
  KD_DEVICE bool has_label() const { return label_ >= 0 && label_ < classes_; }
  KD_DEVICE bool is_ensemble(int64_t row) const { return row >= students_; }
  KD_DEVICE bool is_mixed(int64_t row) const { return problem_.is_taught(row) || is_ensemble(row); }
  // Whether anything flows back through the mixture of a row.
  KD_DEVICE bool flows_back(int64_t row) const {
    return is_ensemble(row) || (problem_.kl_weight != 0 && !problem_.detach_targets && problem_.is_taught(row));
  }

  // --- Tiles ---

  KD_DEVICE A& mixed(int64_t row, int64_t c) const { return mixed_[row * plan_.tile + c]; }
  KD_DEVICE A& prob(int64_t row, int64_t c) const { return probs_[row * plan_.tile + c]; }

  // What a peer rules out, a mixture does, whatever the sign of its weight.
  KD_DEVICE static A part_of_mixture(A weight, A logit) {
    return is_lacking(logit) && weight != A(0) ? logit : weighted(weight, logit);
  }
  KD_DEVICE A mixed_logit(int64_t row, int64_t c) const {
    A sum = 0;
    for (int64_t b = 0; b < peers_; ++b) sum += part_of_mixture(weight(row, b), above(b, c));
    return sum;
  }
  KD_DEVICE A mixed_prob(int64_t row, int64_t c) const {
    A sum = 0;
    for (int64_t b = 0; b < peers_; ++b) sum += weight(row, b) * prob(b, c);
    return sum;
  }
  // What flows to a peer from the mixtures it is part of.
  KD_DEVICE A flowing_back(int64_t peer, int64_t c) const {
    A sum = 0;
    for (int64_t r = 0; r < rows_; ++r)
      if (flows_back(r)) sum += weighted(weight(r, peer), mixed(r, c));
    return sum;
  }

  KD_DEVICE void fill_probs(int64_t count) const {
    if constexpr (mix != PeerMix::logits) {
      warp_.each_row(peers_, [&](int64_t row) {
        warp_.each_class(count, [&](int64_t c) { prob(row, c) = exp(log_soft(row, c)); });
      });
      simt::sync_threads();
    }
  }

  // The target of a row at a class: t, and log t' where that is asked for.
  KD_DEVICE A target(int64_t row, int64_t c, A* log_smoothed) const {
    A log_target = 0, t;
    if constexpr (mix == PeerMix::logits) {
      log_target = (mixed_logit(row, c) - row_number(row, mix_shift)) * inverse_temperature_ - row_number(row, mix_log);
      t = exp(log_target);
    } else {
      t = mixed_prob(row, c);
    }
    if (log_smoothed) *log_smoothed = mix == PeerMix::logits && eps_ == A(0) ? log_target : log(t + eps_);
    return t;
  }

  // --- Weights ---

  KD_DEVICE void weigh() const {
    const bool attends = problem_.weights == PeerWeights::attention;
    for (int64_t i = simt::thread_index(); i < rows_ * peers_; i += simt::block_threads()) {
      const int64_t row = i / peers_, peer = i % peers_;
      if (problem_.weights == PeerWeights::gate) weights_[i] = read_number<A>(problem_.gate, sample_, peer, 0);
      else if (!attends || row == peers_) weights_[i] = static_cast<A>(problem_.constant_weight(row, peer));
    }
    if (attends) attend(problem_.query, problem_.key, sample_, peers_, problem_.width, weights_);
    for (int64_t i = simt::thread_index(); i < plan_.parts * rows_ * peers_; i += simt::block_threads())
      by_weight_[i] = 0;
  }

  // --- First sweep ---

  KD_DEVICE void measure() const {
    reset_numbers();
    each_tile(true, [&](int64_t, int64_t count) {
      raise_maxima(count);
      warp_.each_row(rows_, [&](int64_t row) {
        if (row < students_) Tiles::template add_exponentials<true>(row, count);
        if (mix == PeerMix::logits && is_mixed(row)) add_mixed_exponentials(row, count);
      });
    });
    if (simt::thread_index() < rows_) {
      Tiles::template finish_row<true>(simt::thread_index());
      if (mix == PeerMix::logits) finish_mixture(simt::thread_index());
    }
    simt::sync_threads();
  }

  KD_DEVICE void add_mixed_exponentials(int64_t row, int64_t count) const {
    A lowered = 0;
    for (int64_t b = 0; b < peers_; ++b) lowered += weighted(weight(row, b), row_number(b, row_raised));
    const A old = own_number(row, mix_max) - lowered;
    A most[1] = {old};
    warp_.each_class(count, [&](int64_t c) {
      mixed(row, c) = mixed_logit(row, c);
      most[0] = highest(most[0], mixed(row, c));
    });
    PeerWarp::max(most);
    const A shift = shift_of(most[0]);
    A sums[2] = {0, 0};
    warp_.each_class(count, [&](int64_t c) {
      const A x = mixed(row, c) - shift;
      sums[0] += exp(x * inverse_temperature_);
      if (is_ensemble(row)) sums[1] += exp(x);
    });
    PeerWarp::sum(sums);
    simt::sync_warp();  // all lanes have read what lane 0 now writes
    if (simt::lane_index() != 0) return;
    const A fallen = old - shift;  // -inf where there was nothing
    own_number(row, mix_sum) = weighted(own_number(row, mix_sum), exp(fallen * inverse_temperature_)) + sums[0];
    own_number(row, mix_hard_sum) = weighted(own_number(row, mix_hard_sum), exp(fallen)) + sums[1];
    own_number(row, mix_max) = most[0];
  }

  // One thread adds the parts.
  KD_DEVICE void finish_mixture(int64_t row) const {
    A most = -static_cast<A>(HUGE_VALF), soft = 0, hard = 0;
    for (int part = 0; part < plan_.parts; ++part) most = highest(most, part_number(part, row, mix_max));
    const A shift = shift_of(most);
    for (int part = 0; part < plan_.parts; ++part) {
      const A fallen = part_number(part, row, mix_max) - shift;
      soft += weighted(part_number(part, row, mix_sum), exp(fallen * inverse_temperature_));
      hard += weighted(part_number(part, row, mix_hard_sum), exp(fallen));
    }
    row_number(row, mix_shift) = shift;
    row_number(row, mix_log) = log(soft);
    row_number(row, mix_hard_log) = log(hard);
  }

  // --- Second sweep ---

  KD_DEVICE void compare() const {
    const int lane = simt::lane_index();
    warp_.each_row(rows_, [&](int64_t row) {
      if (lane == 0) own_number(row, value_term) = own_number(row, mean_term) = 0;
    });
    each_tile(false, [&](int64_t, int64_t count) {
      fill_probs(count);
      warp_.each_row(students_, [&](int64_t row) {
        A sums[2] = {0, 0};
        warp_.each_class(count, [&](int64_t c) { compare_class(row, c, sums); });
        PeerWarp::sum(sums);
        if (lane == 0) {
          own_number(row, value_term) += sums[0];
          own_number(row, mean_term) += sums[1];
        }
        if (mix != PeerMix::logits) add_by_weight(row, count, [&](int64_t b, int64_t c) { return prob(b, c); });
      });
    });
    add_parts();
    if (simt::thread_index() < students_) finish_comparison(simt::thread_index());
    simt::sync_threads();
  }

  // sums: of the divergence, and of what is taken from every class's gradient. For probabilities the derivative of the
  // divergence by t goes to `mixed`.
  KD_DEVICE void compare_class(int64_t row, int64_t c, A (&sums)[2]) const {
    const A log_q = log_soft(row, c);
    A log_smoothed;
    const A t = target(row, c, &log_smoothed), smoothed = t + eps_;
    if constexpr (mix == PeerMix::logits) {
      const A ratio = log_smoothed - log_q;
      sums[0] += weighted(smoothed, ratio);
      sums[1] += weighted(t, ratio);
    } else if constexpr (mix == PeerMix::probs) {
      const A ratio = smoothed == A(0) ? A(0) : log_smoothed - log_q;
      sums[0] += weighted(smoothed, ratio);
      mixed(row, c) = ratio;
    } else {
      const A own = prob(row, c), log_own = own_log(row, c);
      sums[0] += weighted(smoothed, -log_q) + weighted(own + eps_, log_own);
      sums[1] += weighted(own, log_own);
      mixed(row, c) = -log_q;
    }
  }

  // log p' of a row that is a target of its own; the weights of a peer among the targets of the others add up to 1.
  KD_DEVICE A own_log(int64_t row, int64_t c) const { return eps_ == A(0) ? log_soft(row, c) : log(prob(row, c) + eps_); }

  // Adds sum_c mixed_rc of(b, c) to by_weight_rb, over the classes of this warp.
  template <class Of>
  KD_DEVICE void add_by_weight(int64_t row, int64_t count, const Of& of) const {
    for (int64_t b = 0; b < peers_; ++b) {
      A sum[1] = {0};
      warp_.each_class(count, [&](int64_t c) {
        const A number = of(b, c);
        if (number != A(0) && !is_lacking(number)) sum[0] += weighted(mixed(row, c), number);
      });
      PeerWarp::sum(sum);
      if (simt::lane_index() == 0) by_weight(warp_.part, row, b) += sum[0];
    }
  }

  KD_DEVICE void add_parts() const {
    for (int64_t i = simt::thread_index(); i < rows_ * peers_; i += simt::block_threads())
      for (int part = 1; part < plan_.parts; ++part) by_weight_[i] += by_weight_[part * rows_ * peers_ + i];
    simt::sync_threads();
  }

  KD_DEVICE void finish_comparison(int64_t row) const {
    A value = 0, mean = 0;
    for (int part = 0; part < plan_.parts; ++part) {
      value += part_number(part, row, value_term);
      mean += part_number(part, row, mean_term);
    }
    if (mix != PeerMix::logits && row < peers_)
      for (int64_t r = 0; r < students_; ++r) mean += weighted(weight(r, row), by_weight(0, r, row));
    row_number(row, row_value) = value;
    row_number(row, row_mean) = mean;
  }

  KD_DEVICE void write_parts() const {
    double* parts = problem_.sample_parts + sample_ * peer_parts;
    const double squared = problem_.temperature * problem_.temperature;
    double hard = 0, soft = 0;
    for (int64_t row = 0; row < peers_; ++row) {
      hard += static_cast<double>(cross_entropy(row));
      if (problem_.is_taught(row)) soft += static_cast<double>(row_number(row, row_value));
    }
    parts[ce_peers] = hard;
    parts[kl_peers] = squared * soft;
    parts[ce_leader] = rows_ > peers_ ? static_cast<double>(cross_entropy(peers_)) : 0.0;
    parts[kl_leader] = students_ > peers_ ? squared * static_cast<double>(row_number(peers_, row_value)) : 0.0;
  }

  KD_DEVICE A cross_entropy(int64_t row) const {
    if (!has_label()) return static_cast<A>(NAN);
    if (!is_ensemble(row)) return row_number(row, hard_log) - (label_logit(row) - row_number(row, row_shift));
    return row_number(row, mix_hard_log) - (mixed_label_logit(row) - row_number(row, mix_shift));
  }
  KD_DEVICE A label_logit(int64_t row) const {
    return row < peers_ ? read_number<A>(problem_.peer_logits, sample_, row, label_)
                                : read_number<A>(problem_.leader, sample_, 0, label_);
  }
  KD_DEVICE A mixed_label_logit(int64_t row) const {
    A sum = 0;
    for (int64_t b = 0; b < peers_; ++b) sum += part_of_mixture(weight(row, b), label_logit(b) - row_number(b, row_shift));
    return sum;
  }

  // --- Third sweep ---

  KD_DEVICE void derive() const {
    each_tile(false, [&](int64_t first, int64_t count) {
      fill_probs(count);
      warp_.each_row(rows_, [&](int64_t row) {
        if (!flows_back(row)) return;
        warp_.each_class(count, [&](int64_t c) { mixed(row, c) = gradient_of_mixture(row, c, first); });
        if (mix == PeerMix::logits && (problem_.wants_features() || problem_.grad_gate.data))
          add_by_weight(row, count, [&](int64_t b, int64_t c) { return above(b, c); });
      });
      simt::sync_threads();
      warp_.each_row(students_, [&](int64_t row) {
        const bool is_peer = row < peers_;
        const PeerRows& gradient = is_peer ? problem_.grad_peer_logits : problem_.grad_leader;
        if (!gradient.data) return;
        warp_.each_class(count, [&](int64_t c) {
          write_number(gradient, sample_, is_peer ? row : 0, first + c, gradient_of_logit(row, c, first));
        });
      });
    });
    if (problem_.wants_features()) {
      finish_weights();
      attend_backward(problem_.query, problem_.key, problem_.grad_query, problem_.grad_key, sample_, peers_,
                      problem_.width, weights_, by_weight_);
    }
    if (problem_.grad_gate.data) {
      add_parts();
      for (int64_t b = simt::thread_index(); b < peers_; b += simt::block_threads()) {
        A sum = 0;
        for (int64_t row = 0; row < rows_; ++row) sum += by_weight(0, row, b);
        write_number(problem_.grad_gate, sample_, b, 0, sum);
      }
    }
  }

  // By the weights, from the sums of the sweep that took them.
  KD_DEVICE void finish_weights() const {
    if (mix == PeerMix::logits) return add_parts();
    const bool flows = flows_back(0);
    const A scale = soft_scale_ * static_cast<A>(problem_.temperature);
    for (int64_t i = simt::thread_index(); i < rows_ * peers_; i += simt::block_threads())
      by_weight_[i] = flows ? by_weight_[i] * scale : A(0);
    simt::sync_threads();
  }

  // By the mixed logit, or the derivative of the divergence by the mixed probability.
  KD_DEVICE A gradient_of_mixture(int64_t row, int64_t c, int64_t first) const {
    if constexpr (mix == PeerMix::divergences) {
      return -log_soft(row, c);
    } else if constexpr (mix == PeerMix::probs) {
      A log_smoothed;
      const A t = target(row, c, &log_smoothed);
      return t + eps_ == A(0) ? A(0) : log_smoothed - log_soft(row, c);
    } else {
      if (is_ensemble(row)) {
        const A q = exp(mixed_logit(row, c) - row_number(row, mix_shift) - row_number(row, mix_hard_log));
        return hard_scale_ * (q - (first + c == label_ ? A(1) : A(0)));
      }
      A log_smoothed;
      const A t = target(row, c, &log_smoothed);
      return weighted(t, soft_scale_ * (log_smoothed - log_soft(row, c) - row_number(row, row_mean)));
    }
  }

  KD_DEVICE A gradient_of_logit(int64_t row, int64_t c, int64_t first) const {
    const A hard = exp(above(row, c) - row_number(row, hard_log));
    A gradient = hard_scale_ * (hard - (first + c == label_ ? A(1) : A(0)));
    const bool is_peer = row < peers_;
    if (problem_.kl_weight != 0 && problem_.is_taught(row)) {
      const A q = exp(log_soft(row, c)), t = target(row, c, nullptr);
      gradient += soft_scale_ * ((q - t) + eps_ * (static_cast<A>(classes_) * q - A(1)));
      if (mix != PeerMix::logits && is_peer && !problem_.detach_targets) {
        A flow = flowing_back(row, c) - row_number(row, row_mean);
        if (mix == PeerMix::divergences) flow += own_log(row, c);
        gradient += weighted(q, soft_scale_ * flow);
      }
    }
    if (mix == PeerMix::logits && is_peer) gradient += flowing_back(row, c);
    return gradient;
  }

  const PeerEnsemble& problem_;
  const int64_t label_;
  const A eps_, hard_scale_, soft_scale_;
  A *probs_, *mixed_;        // [peers, tile], [rows, tile]
  A *weights_, *by_weight_;  // [rows, peers], [parts, rows, peers]
};

template <class A, PeerMix mix>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block) peer_ensemble_kernel(PeerEnsemble problem, PeerPlan plan) {
  PeerBlock<A, mix>(problem, plan).solve();
}

// The samples, in a fixed order. One block.
template <class A>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) peer_loss_kernel(PeerEnsemble problem) {
  const BlockTeam<double> team;
  double sums[peer_parts] = {0, 0, 0, 0};
  for (int64_t sample = team.rank(); sample < problem.samples; sample += team.size())
    KD_UNROLL for (int i = 0; i < peer_parts; ++i) sums[i] += problem.sample_parts[sample * peer_parts + i];
  team.sum(sums);
  if (team.rank() != 0) return;
  KD_UNROLL for (int i = 0; i < peer_parts; ++i) {
    sums[i] *= problem.sample_share();
    static_cast<A*>(problem.parts)[i] = static_cast<A>(sums[i]);
  }
  double loss = sums[ce_peers] + sums[ce_leader];
  if (problem.kl_weight != 0) loss += problem.kl_weight * (sums[kl_peers] + sums[kl_leader]);
  *static_cast<A*>(problem.loss) = static_cast<A>(loss);
}

// All gradients of a loss times its upstream gradient, in place; leaves at once where that is 1.
template <class U>
KD_KERNEL void KD_LAUNCH_BOUNDS(reduce_threads) scale_gradients_kernel(GradientList list, const U* upstream) {
  if (upstream[0] == U(1)) return;
  const int64_t step = simt::grid_blocks() * simt::block_threads() * chunk_classes;
  const int64_t begin = (simt::block_index() * simt::block_threads() + simt::thread_index()) * chunk_classes;
  KD_UNROLL for (int i = 0; i < most_gradients; ++i)
    with_dtype(list.dtype[i], [&](auto* type) {
      std::remove_pointer_t<decltype(type)> numbers[chunk_classes];
      auto* gradient = static_cast<decltype(type)>(list.data[i]);
      for (int64_t j = begin; j < list.count[i]; j += step) {
        load_neighbours(gradient + j, list.count[i] - j, numbers);
        KD_UNROLL for (int e = 0; e < chunk_classes; ++e)
          from_arithmetic(to_arithmetic(numbers[e]) * upstream[0], numbers + e);
        store_neighbours(gradient + j, list.count[i] - j, numbers);
      }
    });
}

// --- Launchers ---------------------------------------------------------------------------------------------------------

template <class A>
PeerPlan plan_problem(const PeerEnsemble& problem, int sm) {
  const int64_t students = problem.peers + (problem.leader.data ? 1 : 0), rows = problem.rows();
  const int64_t tiles = students + rows + (problem.mix == PeerMix::logits ? 0 : problem.peers);
  return plan_peers(rows, problem.peers, problem.classes, tiles, sizeof(A), sm);
}

template <class A>
void launch_peer_ensemble(const PeerEnsemble& problem, const PeerPlan& plan, void* stream) {
  const auto kernel = problem.mix == PeerMix::logits  ? peer_ensemble_kernel<A, PeerMix::logits>
                      : problem.mix == PeerMix::probs ? peer_ensemble_kernel<A, PeerMix::probs>
                                                      : peer_ensemble_kernel<A, PeerMix::divergences>;
  simt::launch(kernel, problem.samples, plan.threads(), plan.shared_bytes, stream, problem, plan);
  simt::launch(peer_loss_kernel<A>, 1, reduce_threads, 0, stream, problem);
}

inline PeerPlan plan_problem(const PeerEnsemble& problem, int sm) {
  return problem.is_double() ? plan_problem<double>(problem, sm) : plan_problem<float>(problem, sm);
}

inline void peer_ensemble_cuda(const PeerEnsemble& problem, const PeerPlan& plan, void* stream) {
  if (problem.is_double()) launch_peer_ensemble<double>(problem, plan, stream);
  else launch_peer_ensemble<float>(problem, plan, stream);
}

inline void scale_gradients_cuda(const GradientList& list, const void* upstream, Dtype upstream_dtype, void* stream) {
  int64_t count = 0;
  for (int64_t numbers : list.count) count = numbers > count ? numbers : count;
  const int64_t all = parts_of(count, reduce_threads * chunk_classes);
  const int64_t blocks = all < scale_blocks_limit ? all : scale_blocks_limit;
  if (upstream_dtype == Dtype::float64)
    simt::launch(scale_gradients_kernel<double>, blocks, reduce_threads, 0, stream, list, static_cast<const double*>(upstream));
  else
    simt::launch(scale_gradients_kernel<float>, blocks, reduce_threads, 0, stream, list, static_cast<const float*>(upstream));
}

}  // namespace
}  // namespace kd
