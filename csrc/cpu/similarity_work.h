// What the CPU kernels of the similarity family keep between their phases, and the table of these phases, one for each
// instruction set (cpu/similarity-inl.h). A is the arithmetic type, float or double.
//
// Queries are taken in bands of 64, as many as a panel of the matrix product has columns. Several bands are under way
// together, each in a slot of its own.
#pragma once
#include <cstdint>
#include <type_traits>

#include "similarity.h"

namespace kd {

constexpr int64_t band_queries = 64;

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Keys divided by their norms, padded with zeros.
template <class A>
struct UnitKeys {
  A* rows = nullptr;           // [padded keys, stride]; null: there is no teacher
  int64_t stride = 0;
  A* inverse_norms = nullptr;  // [keys]
};

// A band while it is under way. Panels are [blocks of 64 features, 64, 64].
template <class A>
struct BandSlot {
  int64_t band;      // its number
  A* logits;         // [padded keys, 64]: similarities, then weights of a softmax, then H = d loss / d similarity
  A* others;         // [padded keys, 64]: the same of the teacher, or weights of the columns' softmax; null: not needed
  A* rows;           // panels, one query per row: unit queries
  A* columns;        // panels, one query per column: the same
  A* products;       // panels, one query per column: the teacher's queries, then M = H V
  A* inverse_norms;  // [64]
  A* max;            // [64], of the logits
  A* other_max;      // [64], of the teacher's
};

template <class A>
struct SimilarityWork {
  using Label = std::conditional_t<sizeof(A) == sizeof(float), int32_t, int64_t>;  // as many to a vector as A

  const Similarity* problem = nullptr;
  A inverse_temperature = 1;
  UnitKeys<A> key, teacher_key;
  const BandSlot<A>* slots = nullptr;

  // Per query, padded with zeros to whole bands.
  A* counted = nullptr;            // 1 or 0
  A* loss_scales = nullptr;        // of a query's divergence in its loss,
  A* gradient_scales = nullptr;    // and in the derivative of the reduced loss by its similarities
  A* row_losses = nullptr;
  A* temperature_terms = nullptr;  // <u, M>
  Label* labels = nullptr;         // small numbers; -1: no key has the query's label
  A* positives = nullptr;          // how many keys have it

  // Per key.
  Label* key_labels = nullptr;
  A* column_max = nullptr;      // symmetric: of the softmax over the queries,
  A* column_sum = nullptr;
  A* column_weights = nullptr;  // half the gradient scales of the queries with that positive,
  bool* column_wanted = nullptr;  // and whether there is one
  A* key_products = nullptr;    // [keys, key_product_stride]: H^T U; in the gradient's own place, if it has the type A
  int64_t key_product_stride = 0;
};

template <class A>
struct SimilarityPhases {
  using Work = SimilarityWork<A>;

  // The keys [begin, end) and the teacher's to unit rows.
  void (*read_keys)(const Work&, int64_t begin, int64_t end);
  // The queries of a slot's band, their similarities and the largest of these.
  void (*compare)(const Work&, int64_t slot);
  // symmetric: the first `slots` slots to the softmaxes of the columns [begin, end).
  void (*add_columns)(const Work&, int64_t slots, int64_t begin, int64_t end);
  // A band's losses, H and the gradient of its queries.
  void (*solve)(const Work&, int64_t slot);
  // H^T U of the keys [begin, end) and the first `slots` slots; `more`: added to what is there.
  void (*add_key_products)(const Work&, int64_t slots, bool more, int64_t begin, int64_t end);
  // The gradient of the keys [begin, end) from their products.
  void (*finish_keys)(const Work&, int64_t begin, int64_t end);
  // How many keys come before each query's positive.
  void (*rank)(const Work&, int64_t slot, int64_t* ranks);
};

}  // namespace kd
