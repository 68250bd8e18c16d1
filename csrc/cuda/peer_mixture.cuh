// Mixtures of peers on the GPU, and their gradients: a block per sample. Probabilities take a sweep over the classes that
// finds their sums; their gradients one more, for the inner products with what comes from above.
#pragma once
#include "cuda/peer_sample.cuh"

namespace kd {
namespace {

template <class A, PeerMix mix>
class MixtureBlock : PeerTiles<A> {
 public:
  KD_DEVICE MixtureBlock(const PeerMixture& problem, const PeerPlan& plan)
      : PeerTiles<A>(problem.peer_logits, {}, problem.peers, problem.peers, problem.classes, problem.temperature, plan),
        problem_(problem), outputs_(problem.rows()) {
    from_above_ = logits_ + peers_ * plan.tile;
    weights_ = from_above_ + outputs_ * plan.tile;
    by_weight_ = weights_ + outputs_ * peers_;
    part_numbers_ = by_weight_ + plan.parts * outputs_ * peers_;
    row_numbers_ = part_numbers_ + plan.parts * peers_ * peer_part_numbers;
  }

  KD_DEVICE void mix_peers() const {
    if (problem_.attends) attend(problem_.query, problem_.key, sample_, peers_, problem_.width, weights_);
    else weigh_alike();
    if (mix == PeerMix::probs) measure();
    simt::sync_threads();
    if (A* attention = static_cast<A*>(problem_.attention); problem_.attends)
      for (int64_t i = simt::thread_index(); i < peers_ * peers_; i += simt::block_threads())
        attention[sample_ * peers_ * peers_ + i] = weights_[i];
    each_tile(mix == PeerMix::logits, [&](int64_t first, int64_t count) {
      make_parts(count, true);
      warp_.each_row(outputs_, [&](int64_t row) {
        warp_.each_class(count, [&](int64_t c) {
          A sum = 0;
          for (int64_t b = 0; b < peers_; ++b) sum += weighted(weight(row, b), logit(b, c));
          write_number(problem_.mixture, sample_, row, first + c, sum);
        });
      });
    });
  }

  KD_DEVICE void derive() const {
    if (const A* attention = static_cast<const A*>(problem_.attention); problem_.attends)
      for (int64_t i = simt::thread_index(); i < peers_ * peers_; i += simt::block_threads())
        weights_[i] = attention[sample_ * peers_ * peers_ + i];
    else weigh_alike();
    for (int64_t i = simt::thread_index(); i < plan_.parts * outputs_ * peers_; i += simt::block_threads()) by_weight_[i] = 0;
    if (mix == PeerMix::probs) measure();
    each_tile(mix == PeerMix::logits, [&](int64_t first, int64_t count) {
      make_parts(count, true);
      read_tile(problem_.grad_mixture, sample_, outputs_, first, count, plan_.tile, from_above_);
      simt::sync_threads();
      if (mix == PeerMix::probs || problem_.wants_features())
        warp_.each_row(outputs_, [&](int64_t row) { add_by_weight(row, count); });
      if (mix == PeerMix::logits) write_gradients(first, count);
    });
    for (int64_t i = simt::thread_index(); i < outputs_ * peers_; i += simt::block_threads())
      for (int part = 1; part < plan_.parts; ++part) by_weight_[i] += by_weight_[part * outputs_ * peers_ + i];
    simt::sync_threads();
    if (mix == PeerMix::probs && problem_.grad_peer_logits.data) correct_gradients();
    if (!problem_.wants_features()) return;
    if (const A* from_above = static_cast<const A*>(problem_.grad_attention)) {
      for (int64_t i = simt::thread_index(); i < peers_ * peers_; i += simt::block_threads())
        by_weight_[i] += from_above[sample_ * peers_ * peers_ + i];
      simt::sync_threads();
    }
    attend_backward(problem_.query, problem_.key, problem_.grad_query, problem_.grad_key, sample_, peers_, problem_.width,
                    weights_, by_weight_);
  }

 private:
  using Tiles = PeerTiles<A>;
  using Tiles::each_tile, Tiles::log_soft, Tiles::logit, Tiles::row_number;
  using Tiles::classes_, Tiles::inverse_temperature_, Tiles::logits_, Tiles::part_numbers_, Tiles::peers_, Tiles::plan_,
      Tiles::row_numbers_, Tiles::sample_, Tiles::warp_;

  KD_DEVICE A weight(int64_t row, int64_t peer) const { return weights_[row * peers_ + peer]; }
  KD_DEVICE A above_at(int64_t row, int64_t c) const { return from_above_[row * plan_.tile + c]; }

  KD_DEVICE void weigh_alike() const {
    for (int64_t b = simt::thread_index(); b < peers_; b += simt::block_threads()) weights_[b] = A(1) / static_cast<A>(peers_);
  }

  KD_DEVICE void measure() const {
    Tiles::reset_numbers();
    each_tile(true, [&](int64_t, int64_t count) {
      Tiles::raise_maxima(count);
      warp_.each_row(peers_, [&](int64_t row) { Tiles::template add_exponentials<false>(row, count); });
    });
    if (simt::thread_index() < peers_) Tiles::template finish_row<false>(simt::thread_index());
    simt::sync_threads();
  }

  // What is mixed, in place of the tile's logits. A sample of one tile has it from the second sweep on.
  KD_DEVICE void make_parts(int64_t count, bool first_time) const {
    if (mix == PeerMix::logits || !(first_time || plan_.tile < classes_)) return;
    warp_.each_row(peers_, [&](int64_t row) {
      warp_.each_class(count, [&](int64_t c) { logits_[row * plan_.tile + c] = exp(log_soft(row, c)); });
    });
    simt::sync_threads();
  }

  KD_DEVICE void add_by_weight(int64_t row, int64_t count) const {
    for (int64_t b = 0; b < peers_; ++b) {
      A sum[1] = {0};
      warp_.each_class(count, [&](int64_t c) {
        const A number = logit(b, c);
        if (!is_lacking(number)) sum[0] += above_at(row, c) * number;
      });
      PeerWarp::sum(sum);
      if (simt::lane_index() == 0) by_weight_[(warp_.part * outputs_ + row) * peers_ + b] += sum[0];
    }
  }

  KD_DEVICE A flowing_back(int64_t peer, int64_t c) const {
    A sum = 0;
    for (int64_t row = 0; row < outputs_; ++row) sum += weight(row, peer) * above_at(row, c);
    return sum;
  }

  KD_DEVICE void write_gradients(int64_t first, int64_t count) const {
    if (!problem_.grad_peer_logits.data) return;
    warp_.each_row(peers_, [&](int64_t b) {
      warp_.each_class(count, [&](int64_t c) {
        A gradient = flowing_back(b, c);
        if (mix == PeerMix::probs) gradient = logit(b, c) * inverse_temperature_ * (gradient - row_number(b, row_mean));
        write_number(problem_.grad_peer_logits, sample_, b, first + c, gradient);
      });
    });
  }

  KD_DEVICE void correct_gradients() const {
    if (const int64_t b = simt::thread_index(); b < peers_) {
      A mean = 0;
      for (int64_t row = 0; row < outputs_; ++row) mean += weight(row, b) * by_weight_[row * peers_ + b];
      row_number(b, row_mean) = mean;
    }
    simt::sync_threads();
    each_tile(false, [&](int64_t first, int64_t count) {
      make_parts(count, false);
      if (plan_.tile < classes_) {
        read_tile(problem_.grad_mixture, sample_, outputs_, first, count, plan_.tile, from_above_);
        simt::sync_threads();
      }
      write_gradients(first, count);
    });
  }

  const PeerMixture& problem_;
  const int64_t outputs_;
  A *from_above_, *weights_, *by_weight_;  // [outputs, tile], [outputs, peers], [parts, outputs, peers]
};

template <class A, PeerMix mix>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) peer_mixture_kernel(PeerMixture problem, PeerPlan plan) {
  MixtureBlock<A, mix>(problem, plan).mix_peers();
}

template <class A, PeerMix mix>
KD_KERNEL void KD_LAUNCH_BOUNDS(largest_block, 1) peer_mixture_backward_kernel(PeerMixture problem, PeerPlan plan) {
  MixtureBlock<A, mix>(problem, plan).derive();
}

// --- Launchers ---------------------------------------------------------------------------------------------------------

template <class A>
void launch_peer_mixture(const PeerMixture& problem, const PeerPlan& plan, void* stream) {
  const auto kernel = problem.mix == PeerMix::logits ? peer_mixture_kernel<A, PeerMix::logits>
                                                     : peer_mixture_kernel<A, PeerMix::probs>;
  simt::launch(kernel, problem.samples, plan.threads(), plan.shared_bytes, stream, problem, plan);
}

template <class A>
void launch_peer_mixture_backward(const PeerMixture& problem, const PeerPlan& plan, void* stream) {
  const auto kernel = problem.mix == PeerMix::logits ? peer_mixture_backward_kernel<A, PeerMix::logits>
                                                     : peer_mixture_backward_kernel<A, PeerMix::probs>;
  simt::launch(kernel, problem.samples, plan.threads(), plan.shared_bytes, stream, problem, plan);
}

inline PeerPlan plan_problem(const PeerMixture& problem, int sm) {
  const int size = problem.is_double() ? sizeof(double) : sizeof(float);
  return plan_peers(problem.peers, problem.peers, problem.classes, problem.peers + problem.rows(), size, sm);
}

inline void peer_mixture_cuda(const PeerMixture& problem, const PeerPlan& plan, void* stream) {
  if (problem.is_double()) launch_peer_mixture<double>(problem, plan, stream);
  else launch_peer_mixture<float>(problem, plan, stream);
}

inline void peer_mixture_backward_cuda(const PeerMixture& problem, const PeerPlan& plan, void* stream) {
  if (problem.is_double()) launch_peer_mixture_backward<double>(problem, plan, stream);
  else launch_peer_mixture_backward<float>(problem, plan, stream);
}

}  // namespace
}  // namespace kd
