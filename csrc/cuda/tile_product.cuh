// Products of matrices by tiles: a block of 256 threads computes 128 x 128 numbers of C = A B^T, each a sum over the depth
// that rows of A and of B share.
//
// Step by step, 64 bytes of the depth of every row go through shared memory, two steps in turn: while one is multiplied,
// the next is on its way, without passing through registers where it may lie as it does in global memory. A thread keeps
// 8 x 8 numbers of C, rows row(r) and columns column(c), and whoever uses them takes them from there. A number's terms are
// added in the order of the depth wherever it lies in a tile: equal rows have bit-equal products.
//
// How rows become products is a `Kind`:
//
//     Element            what shared memory holds
//     Number             what sums are kept in
//     Reads<T>           whether it takes features stored as T
//     blocks             of a multiprocessor at a time: registers permitting, one multiplies while another waits for memory
//     multiply           8 x 8 += one step of A times one of B: on tensor cores, or by the threads themselves
#pragma once
#include <type_traits>

#include "cuda/chunk.cuh"
#include "cuda/launch.h"
#include "cuda/simt_tiles.cuh"
#include "elements.h"

namespace kd {
namespace {

constexpr int tile_rows = similarity_tile;  // and columns
constexpr int tile_threads = 256;
constexpr int own_rows = 8;        // of a thread, and columns
constexpr int step_bytes = 64;     // of the depth, per row
// In shared memory rows lie 80 bytes apart: 8 rows begin at 8 different multiples of 16 bytes modulo 128, so that neither
// the words of a fragment nor 16-byte reads of neighbouring rows meet in a bank.
constexpr int pitch_bytes = 80;
constexpr int tile_bytes = tile_rows * pitch_bytes;

// One operand: element (row, k) of A or B, k along the depth.
struct TileOperand {
  const void* data;
  Dtype dtype;
  int64_t rows;
  int64_t depth;
  int64_t stride;               // between rows; if `transposed`, between positions of the depth
  const bool* mask = nullptr;   // [depth], if `transposed`: false positions count as zeros
};

template <class Kind>
constexpr int tile_step = step_bytes / sizeof(typename Kind::Element);

using TileNumbers16 = simt::Bytes16[4 * tile_bytes / 16];

// --- Kinds -------------------------------------------------------------------------------------------------------------

// 2 x 4 warps with 64 x 32 numbers each, as 4 x 4 fragments.
template <simt::Fragment fragment, class E>
struct TensorCores {
  using Element = E;
  using Number = float;
  static constexpr int blocks = 2;
  static constexpr int warp_sharers = 4;  // lanes of a warp with the same rows: neighbours
  static constexpr int warps_across = 4;  // warps with the same rows

  static KD_DEVICE int warp_across() { return simt::warp_index() % 4; }
  static KD_DEVICE int row(int r) { return simt::warp_index() / 4 * 64 + r * 8 + simt::lane_index() / 4; }
  static KD_DEVICE int column(int c) { return warp_across() * 32 + c / 2 * 8 + simt::lane_index() % 4 * 2 + c % 2; }

  struct Sums {
    float fragments[4][4][4] = {};
    KD_DEVICE float& at(int r, int c) { return fragments[r / 2][c / 2][r % 2 * 2 + c % 2]; }
  };

  static KD_DEVICE void multiply(const unsigned char* a_tile, const unsigned char* b_tile, Sums& sums) {
    // Of A 16 rows by 32 bytes at a time, which is one fragment; of B as much, which is two.
    const int lane = simt::lane_index();
    const int a_row = simt::warp_index() / 4 * 64 + lane % 16, a_at = lane / 16 * 16;
    const int b_row = warp_across() * 32 + lane / 16 * 8 + lane % 8, b_at = lane / 8 % 2 * 16;
    KD_UNROLL for (int k = 0; k < step_bytes; k += 32) {
      uint32_t a[4][4], b[4][2];
      KD_UNROLL for (int i = 0; i < 4; ++i) read(a_tile + (a_row + i * 16) * pitch_bytes + a_at + k, a[i]);
      KD_UNROLL for (int j = 0; j < 4; j += 2) {
        uint32_t both[4];
        read(b_tile + (b_row + j * 8) * pitch_bytes + b_at + k, both);
        memcpy(b[j], both, sizeof both);
      }
      simt::multiply_fragments<fragment>(sums.fragments, a, b);
    }
  }

 private:
  static KD_DEVICE void read(const unsigned char* row, uint32_t (&words)[4]) {
    const simt::Bytes16 bytes = simt::load_matrices(row);
    KD_UNROLL for (int w = 0; w < 4; ++w)
      words[w] = fragment == simt::Fragment::tf32 ? simt::to_tf32(float_from_bits(bytes.word[w])) : bytes.word[w];
  }
};

struct HalfTiles : TensorCores<simt::Fragment::half, Half> {
  template <class T>
  using Reads = std::is_same<T, Half>;
};
struct BFloat16Tiles : TensorCores<simt::Fragment::bfloat16, BFloat16> {
  template <class T>
  using Reads = std::is_same<T, BFloat16>;
};
struct TF32Tiles : TensorCores<simt::Fragment::tf32, float> {
  template <class T>
  using Reads = std::bool_constant<!std::is_same_v<T, double>>;
};

// 16 x 16 threads; exact in the precision of its numbers.
template <class A>
struct ThreadTiles {
  using Element = A;
  using Number = A;
  template <class T>
  using Reads = std::bool_constant<(sizeof(T) <= sizeof(A))>;
  static constexpr int blocks = 1;
  static constexpr int warp_sharers = 16;
  static constexpr int warps_across = 1;

  static KD_DEVICE int warp_across() { return 0; }
  static KD_DEVICE int row(int r) { return simt::thread_index() / 16 * own_rows + r; }
  static KD_DEVICE int column(int c) { return simt::thread_index() % 16 + c * 16; }

  struct Sums {
    A numbers[own_rows][own_rows] = {};
    KD_DEVICE A& at(int r, int c) { return numbers[r][c]; }
  };

  static KD_DEVICE void multiply(const unsigned char* a_tile, const unsigned char* b_tile, Sums& sums) {
    constexpr int count = 16 / sizeof(A);
    const auto read = [](const unsigned char* tile, int row, int part, A(&to)[count]) {
      const simt::Bytes16 bytes = simt::load16(tile + row * pitch_bytes + part * 16);
      memcpy(to, &bytes, sizeof to);
    };
    KD_UNROLL for (int part = 0; part < step_bytes / 16; ++part) {
      A a[own_rows][count], b[count];
      KD_UNROLL for (int r = 0; r < own_rows; ++r) read(a_tile, row(r), part, a[r]);
      KD_UNROLL for (int c = 0; c < own_rows; ++c) {
        read(b_tile, column(c), part, b);
        KD_UNROLL for (int r = 0; r < own_rows; ++r)
          KD_UNROLL for (int e = 0; e < count; ++e) sums.numbers[r][c] += a[r][e] * b[e];
      }
    }
  }
};
using FloatTiles = ThreadTiles<float>;
using DoubleTiles = ThreadTiles<double>;

// --- From global to shared memory --------------------------------------------------------------------------------------

template <class E, class T>
KD_DEVICE E to_element(T x) {
  if constexpr (std::is_same_v<E, T>) {
    return x;
  } else {
    E element;
    from_arithmetic(to_arithmetic(x), &element);
    return element;
  }
}

// Brings one operand, not transposed, that lies in shared memory as in global memory: 16 bytes of two rows per thread, which
// pass through no register. What is no multiple of 16 bytes, or of another dtype, comes number by number.
template <class Kind>
class TileCopier {
  using E = typename Kind::Element;
  static constexpr int positions = 16 / sizeof(E);

 public:
  KD_DEVICE void load(const TileOperand& from, int64_t first_row, int64_t first, int64_t end, unsigned char* tile) const {
    with_dtype(from.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if constexpr (Kind::template Reads<T>::value) {
        const int thread = simt::opaque(simt::thread_index()), part = thread % 4;
        KD_UNROLL for (int half = 0; half < 2; ++half) {
          const int row = half * (tile_rows / 2) + thread / 4;
          const bool exists = first_row + row < from.rows;
          const int64_t k = first + part * positions;
          load_part(static_cast<const T*>(from.data) + (first_row + row) * from.stride + k, exists ? end - k : 0,
                    reinterpret_cast<E*>(tile + row * pitch_bytes + part * 16));
        }
      }
    });
  }

  KD_DEVICE void store(unsigned char*) const {}  // it is on its way

 private:
  template <class T>
  static KD_DEVICE void load_part(const T* data, int64_t count, E* to) {
    if constexpr (std::is_same_v<T, E>) {
      const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
      if (count <= 0) return simt::store16(to, simt::Bytes16{});
      if (count >= positions && aligned) return simt::copy16(to, data);
    }
    for (int e = 0; e < positions; ++e) to[e] = e < count ? to_element<E>(data[e]) : E{};
  }
};

// Brings one transposed operand by way of registers: of each thread a patch of 32 bytes, neighbouring rows by as many
// positions as make a 32-bit word, at least one.
template <class Kind>
class TileCarrier {
  using E = typename Kind::Element;
  static constexpr int carried = 2 * 16 / sizeof(E);
  static constexpr int positions = sizeof(E) < 4 ? 4 / sizeof(E) : 1;
  static constexpr int lines = carried / positions;
  static constexpr int across = tile_step<Kind> / positions;  // threads with the same rows

 public:
  KD_DEVICE void load(const TileOperand& from, int64_t first_row, int64_t first, int64_t end, unsigned char*) {
    with_dtype(from.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if constexpr (Kind::template Reads<T>::value) load_as<T>(from, first_row, first, end);
    });
  }

  KD_DEVICE void store(unsigned char* tile) const {
    const int thread = simt::thread_index(), at = thread % across * positions * static_cast<int>(sizeof(E));
    KD_UNROLL for (int line = 0; line < lines; ++line) {
      std::conditional_t<sizeof(E) == 8, uint64_t, uint32_t> word;
      memcpy(&word, held_ + line * positions, sizeof word);
      *reinterpret_cast<decltype(word)*>(tile + (thread / across * lines + line) * pitch_bytes + at) = word;
    }
  }

 private:
  // Zeros beyond the rows and beyond the depth. Neighbours in memory, which are rows, come in 16-byte loads where they may.
  template <class T>
  KD_DEVICE void load_as(const TileOperand& from, int64_t first_row, int64_t first, int64_t end) {
    const int thread = simt::opaque(simt::thread_index());
    KD_UNROLL for (int p = 0; p < positions; ++p) {
      const int64_t line = first_row + thread / across * lines, k = first + thread % across * positions + p;
      const bool exists = k < end && (!from.mask || from.mask[k]);
      const T* data = static_cast<const T*>(from.data) + k * from.stride + line;
      T numbers[lines];
      constexpr bool fits = sizeof numbers % 16 == 0;
      if (fits && exists && line + lines <= from.rows && reinterpret_cast<uintptr_t>(data) % 16 == 0) {
        KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof numbers / 16); ++i) {
          const simt::Bytes16 bytes = simt::load16(reinterpret_cast<const char*>(data) + 16 * i);
          memcpy(reinterpret_cast<char*>(numbers) + 16 * i, &bytes, sizeof bytes);
        }
      } else {
        KD_UNROLL for (int e = 0; e < lines; ++e) {
          numbers[e] = T{};
          if (exists && line + e < from.rows) numbers[e] = data[e];
        }
      }
      KD_UNROLL for (int e = 0; e < lines; ++e) held_[e * positions + p] = to_element<E>(numbers[e]);
    }
  }

  E held_[carried];
};

template <class Kind, bool transposed>
using TileBringer = std::conditional_t<transposed, TileCarrier<Kind>, TileCopier<Kind>>;

// --- The product -------------------------------------------------------------------------------------------------------

// sums += rows `a_row` on of A times rows `b_row` on of B, over the depth from `begin` to `end`. All threads of the block take
// part; `shared` may be used for something else as soon as they have all returned.
template <class Kind, bool a_transposed, bool b_transposed>
KD_DEVICE void multiply_tiles(const TileOperand& a, int64_t a_row, const TileOperand& b, int64_t b_row, int64_t begin,
                              int64_t end, TileNumbers16& shared, typename Kind::Sums& sums) {
  TileBringer<Kind, a_transposed> a_bringer;
  TileBringer<Kind, b_transposed> b_bringer;
  unsigned char* tiles = reinterpret_cast<unsigned char*>(shared);
  const auto bring = [&](int64_t k, int stage) {
    a_bringer.load(a, a_row, k, end, tiles + stage * 2 * tile_bytes);
    b_bringer.load(b, b_row, k, end, tiles + stage * 2 * tile_bytes + tile_bytes);
  };
  const auto put = [&](int stage) {
    a_bringer.store(tiles + stage * 2 * tile_bytes);
    b_bringer.store(tiles + stage * 2 * tile_bytes + tile_bytes);
    simt::wait_copies();
  };
  constexpr int step = tile_step<Kind>;
  bring(begin, 0);
  put(0);
  simt::sync_threads();
  int stage = 0;
  for (int64_t k = begin; k < end; k += step, stage ^= 1) {
    const bool more = k + step < end;
    if (more) bring(k + step, stage ^ 1);
    Kind::multiply(tiles + stage * 2 * tile_bytes, tiles + stage * 2 * tile_bytes + tile_bytes, sums);
    if (more) put(stage ^ 1);
    simt::sync_threads();
  }
}

// Writes a thread's 8 numbers of a row of a tile, `columns` of which exist, or with `more` adds them to what is there. A full
// warp: on tensor cores the four lanes of a row exchange theirs, pairs of neighbours, so that each has 8 neighbours.
template <class Kind, class H>
KD_DEVICE void store_row(H* to, int columns, H (&numbers)[own_rows], bool more = false) {
  if constexpr (Kind::warp_sharers == 4) {
    constexpr int words = 2 * sizeof(H) / 4;
    uint32_t pairs[4][words];
    memcpy(pairs, numbers, sizeof pairs);
    KD_UNROLL for (int mask = 1; mask < 4; mask *= 2) {
      const bool upper = simt::lane_index() & mask;
      KD_UNROLL for (int i = 0; i < 4; ++i)
        KD_UNROLL for (int w = 0; w < words; ++w) {
          if (i & mask) continue;
          const uint32_t theirs = simt::shuffle_xor(upper ? pairs[i][w] : pairs[i | mask][w], mask);
          pairs[i][w] = upper ? theirs : pairs[i][w];
          pairs[i | mask][w] = upper ? pairs[i | mask][w] : theirs;
        }
    }
    memcpy(numbers, pairs, sizeof pairs);
    const int first = Kind::column(0) / 8 * 8 + simt::lane_index() % 4 * 8;
    if constexpr (std::is_arithmetic_v<H>) {
      if (more) {
        H old[own_rows];
        load_neighbours(to + first, columns - first, old);
        KD_UNROLL for (int c = 0; c < own_rows; ++c) numbers[c] += old[c];
      }
    }
    store_neighbours(to + first, columns - first, numbers);
  } else {
    KD_UNROLL for (int c = 0; c < own_rows; ++c)
      if (const int column = Kind::column(c); column < columns) to[column] = more ? to[column] + numbers[c] : numbers[c];
  }
}

}  // namespace
}  // namespace kd
