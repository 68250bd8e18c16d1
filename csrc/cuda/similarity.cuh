// Losses on similarity matrices on the GPU, of which no more than a band of rows exists at a time.
//
//     inverse norms   of the rows of all features
//     sweep           a block per 128 queries and share of the keys: tiles of similarities (cuda/tile_product.cuh), of the
//                     teacher's too, and online softmaxes of their rows, each thread its own until the end
//     columns         for `symmetric`, the same with queries and keys exchanged
//     rows            shares are merged, a row's loss found; then the batch's
//     band            with the sums known, tiles again: H = d loss / d <f, g> for a band of queries, in a workspace
//     products        of H with the keys, and of its transpose with the queries, added band by band
//     finish          the part of a gradient along its row is taken out, where rows are normalized
//
// Sums have a fixed order; there are no atomics. A device cannot raise: a positive out of range makes the loss NaN. Tiles of
// 128 queries that are all masked are not multiplied.
#pragma once
#include <algorithm>
#include <array>

#include "cuda/similarity_gradients.cuh"
#include "cuda/similarity_rank.cuh"
#include "cuda/similarity_sweep.cuh"

namespace kd {
namespace {

// Hands out pieces of one allocation; with no allocation yet, only their total.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    unsigned char* piece = base_ ? base_ + bytes_ : nullptr;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

template <class A>
SimilarityWorkspace<A> lay_out(const Similarity& problem, const SimilarityPlan& plan, Pieces& pieces) {
  SimilarityWorkspace<A> work{};
  const int64_t queries = problem.queries(), keys = problem.keys(), width = problem.query.width;
  const Features* features[] = {&problem.query, &problem.key, &problem.teacher_query, &problem.teacher_key};
  if (problem.normalize)
    for (int i = 0; i < 4; ++i)
      if (features[i]->data) work.inverse_norms[i] = pieces.take<A>(features[i]->rows);
  const int64_t row_shares = queries * plan.row_shares, column_shares = problem.symmetric ? keys * plan.column_shares : 0;
  work.shares = pieces.take<RowSweep<A>>(row_shares > column_shares ? row_shares : column_shares);
  for (A** of_queries : {&work.log_sums, &work.weights, &work.row_losses}) *of_queries = pieces.take<A>(queries);
  work.divisor = pieces.take<A>(1);
  if (problem.target == KeyTarget::teacher) work.teacher_log_sums = pieces.take<A>(queries);
  if (problem.target == KeyTarget::labels) work.positives = pieces.take<A>(queries);
  if (problem.symmetric) work.column_log_sums = pieces.take<A>(keys), work.column_weights = pieces.take<A>(keys);
  if (problem.wants_gradient()) {
    work.band = pieces.take<unsigned char>(plan.band_rows * keys * plan.band_bytes);
    work.query_products = pieces.take<A>(plan.product_shares * plan.band_rows * width);
    work.key_products = pieces.take<A>(keys * width);
    work.temperature_terms = pieces.take<A>(queries);
  }
  return work;
}

template <class A>
void launch_inverse_norms(const Features& features, A* inverse_norms, void* stream) {
  if (inverse_norms)
    simt::launch(inverse_norms_kernel<A>, parts_of(features.rows, reduce_threads / simt::warp_threads), reduce_threads, 0,
                 stream, features, inverse_norms);
}

template <class Kind, bool teacher>
void launch_sweeps(const SimilarityOnDevice<typename Kind::Number>& problem, void* stream) {
  using A = typename Kind::Number;
  const int64_t row_tiles = parts_of(problem.queries(), tile_rows), column_tiles = parts_of(problem.keys(), tile_rows);
  const auto sweep = [&](bool by_column, int64_t tiles, int shares) {
    simt::launch(sweep_kernel<Kind, teacher>, tiles * shares, tile_threads, 0, stream, problem,
                 logits_of(problem, false, by_column), logits_of(problem, teacher, by_column), by_column, shares);
  };
  if (problem.symmetric) {
    const int shares = problem.plan.column_shares;
    sweep(true, column_tiles, shares);
    simt::launch(column_sums_kernel<A>, parts_of(problem.keys(), reduce_threads), reduce_threads, 0, stream, problem, shares);
  }
  sweep(false, row_tiles, problem.plan.row_shares);
  simt::launch(rows_kernel<A>, parts_of(problem.queries(), reduce_threads), reduce_threads, 0, stream, problem);
  simt::launch(batch_kernel<A>, 1, reduce_threads, 0, stream, problem);
  if (problem.symmetric)
    simt::launch(column_weights_kernel<A>, parts_of(problem.keys(), reduce_threads), reduce_threads, 0, stream, problem);
}

// `Products`: the kind that multiplies the band, in the dtype `band_dtype`.
template <class Kind, class Products, bool teacher>
void launch_gradients(const SimilarityOnDevice<typename Kind::Number>& problem, Dtype band_dtype, void* stream) {
  using A = typename Kind::Number;
  const SimilarityWorkspace<A>& work = problem.work;
  const int64_t queries = problem.queries(), keys = problem.keys(), width = problem.query.width;
  const int64_t key_tiles = parts_of(keys, tile_rows), width_tiles = parts_of(width, tile_rows);
  const int warps = reduce_threads / simt::warp_threads;
  for (int64_t first = 0; first < queries; first += problem.plan.band_rows) {
    const int64_t rows = queries - first < problem.plan.band_rows ? queries - first : problem.plan.band_rows;
    simt::launch(band_kernel<Kind, typename Products::Element, teacher>, parts_of(rows, tile_rows) * key_tiles, tile_threads, 0,
                 stream, problem, logits_of(problem, false, false), logits_of(problem, teacher, false), first);
    const TileOperand band{work.band, band_dtype, rows, keys, keys}, transposed_band{work.band, band_dtype, keys, rows, keys};
    const bool* mask = problem.mask ? problem.mask + first : nullptr;
    if (problem.grad_query.data || problem.grad_temperature) {
      const int shares = problem.plan.product_shares;
      const TileOperand key{problem.key.data, problem.key.dtype, width, keys, problem.key.stride};
      simt::launch(products_kernel<Products, false>, parts_of(rows, tile_rows) * width_tiles * shares, tile_threads, 0, stream,
                   band, key, work.query_products, shares, false, mask);
      simt::launch(finish_kernel<A>, parts_of(rows, warps), reduce_threads, 0, stream, problem.query, problem.grad_query, first,
                   rows, work.query_products, shares, work.inverse_norms[0], problem.mask, work.temperature_terms);
    }
    if (problem.grad_key.data) {
      const auto size = element_size(problem.query.dtype);
      const void* start = static_cast<const unsigned char*>(problem.query.data) + first * problem.query.stride * size;
      const TileOperand query{start, problem.query.dtype, width, rows, problem.query.stride, mask};
      simt::launch(products_kernel<Products, true>, key_tiles * width_tiles, tile_threads, 0, stream, transposed_band, query,
                   work.key_products, 1, first > 0, mask);
    }
  }
  if (problem.grad_key.data)
    simt::launch(finish_kernel<A>, parts_of(keys, warps), reduce_threads, 0, stream, problem.key, problem.grad_key, int64_t{0},
                 keys, work.key_products, queries > 0 ? 1 : 0, work.inverse_norms[1], static_cast<const bool*>(nullptr),
                 static_cast<A*>(nullptr));
  if (problem.grad_temperature) simt::launch(temperature_kernel<A>, 1, reduce_threads, 0, stream, problem);
}

template <class Kind, class Products>
void launch_similarity(const Similarity& problem, const SimilarityPlan& plan, void* workspace, void* stream) {
  using A = typename Kind::Number;
  Pieces pieces(workspace);
  SimilarityOnDevice<A> on_device{problem, plan, lay_out<A>(problem, plan, pieces)};
  const Features* features[] = {&problem.query, &problem.key, &problem.teacher_query, &problem.teacher_key};
  for (int i = 0; i < 4; ++i) launch_inverse_norms(*features[i], on_device.work.inverse_norms[i], stream);
  constexpr Dtype band = std::is_same_v<typename Products::Element, BFloat16> ? Dtype::bfloat16
                         : std::is_same_v<A, double>                          ? Dtype::float64
                                                                              : Dtype::float32;
  const auto launch = [&](auto teacher) {
    launch_sweeps<Kind, teacher>(on_device, stream);
    if (problem.wants_gradient()) launch_gradients<Kind, Products, teacher>(on_device, band, stream);
  };
  if (problem.target == KeyTarget::teacher) launch(std::true_type{});
  else launch(std::false_type{});
}

// Calls body(kind, products) with the kinds for features of these dtypes: those of the similarities and of the gradients.
template <class Body>
void with_kinds(const std::array<Dtype, 4>& dtypes, bool allow_tf32, int sm, const Body& body) {
  const auto all = [&](Dtype dtype) {
    return std::all_of(dtypes.begin(), dtypes.end(), [&](Dtype each) { return each == dtype; });
  };
  if (std::count(dtypes.begin(), dtypes.end(), Dtype::float64)) return body(DoubleTiles{}, DoubleTiles{});
  const bool fragments = sm >= 80;
  if (fragments && all(Dtype::bfloat16)) return body(BFloat16Tiles{}, BFloat16Tiles{});
  // float16 has no room for gradients; TF32 has its digits and the range of float32.
  if (fragments && all(Dtype::float16)) return body(HalfTiles{}, TF32Tiles{});
  if (fragments && allow_tf32) return body(TF32Tiles{}, TF32Tiles{});
  return body(FloatTiles{}, FloatTiles{});
}

// Of all features of a problem.
inline std::array<Dtype, 4> dtypes_of(const Similarity& problem) {
  const bool has_teacher = problem.target == KeyTarget::teacher;
  const Features &query = problem.query, &key = problem.key;
  return {query.dtype, key.dtype, (has_teacher ? problem.teacher_query : query).dtype,
          (has_teacher ? problem.teacher_key : key).dtype};
}

inline std::array<Dtype, 4> dtypes_of(const SimilarityRank& problem) {
  return {problem.query.dtype, problem.key.dtype, problem.query.dtype, problem.key.dtype};
}

inline SimilarityPlan plan_problem(const Similarity& problem, int sm) {
  int band_bytes = 4;
  with_kinds(dtypes_of(problem), problem.allow_tf32, sm,
             [&](auto, auto products) { band_bytes = sizeof(typename decltype(products)::Element); });
  return plan_similarity(problem.queries(), problem.keys(), problem.query.width, band_bytes);
}

inline size_t workspace_bytes(const Similarity& problem, const SimilarityPlan& plan) {
  Pieces pieces(nullptr);
  if (problem.is_double()) lay_out<double>(problem, plan, pieces);
  else lay_out<float>(problem, plan, pieces);
  return pieces.bytes();
}

inline void similarity_cuda(const Similarity& problem, const SimilarityPlan& plan, void* workspace, int sm, void* stream) {
  with_kinds(dtypes_of(problem), problem.allow_tf32, sm, [&](auto kind, auto products) {
    launch_similarity<decltype(kind), decltype(products)>(problem, plan, workspace, stream);
  });
}

inline size_t workspace_bytes(const SimilarityRank& problem) {
  return problem.normalize ? (problem.query.rows + problem.key.rows) * sizeof(double) : 0;
}

inline void similarity_rank_cuda(const SimilarityRank& problem, void* workspace, int sm, void* stream) {
  with_kinds(dtypes_of(problem), problem.allow_tf32, sm, [&](auto kind, auto) {
    using Kind = decltype(kind);
    using A = typename Kind::Number;
    A* const query_norms = problem.normalize ? static_cast<A*>(workspace) : nullptr;
    A* const key_norms = problem.normalize ? query_norms + problem.query.rows : nullptr;
    launch_inverse_norms(problem.query, query_norms, stream);
    launch_inverse_norms(problem.key, key_norms, stream);
    const LogitTile<A> tile{as_operand(problem.query), as_operand(problem.key), query_norms, key_norms};
    simt::launch(rank_kernel<Kind>, parts_of(problem.query.rows, tile_rows), tile_threads, 0, stream, problem, tile);
  });
}

}  // namespace
}  // namespace kd
