// Products of matrices by tiles: a block of 256 threads computes 128 x 128 numbers of C = A B^T, each a sum over the depth
// that rows of A and of B share.
//
// Step by step, 64 bytes of the depth of every row go through shared memory, two steps in turn: while one is multiplied,
// the next is on its way to registers. A thread keeps 8 x 8 numbers of C, rows row(r) and columns column(c), and whoever
// uses them takes them from there. A number's terms are added in the order of the depth wherever it lies in a tile: equal
// rows have bit-equal products.
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

#include "cuda/launch.h"
#include "cuda/simt.cuh"
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
    const int g = simt::lane_index() / 4, t = simt::lane_index() % 4;
    const auto word = [](const unsigned char* tile, int row, int number) {
      return *reinterpret_cast<const uint32_t*>(tile + row * pitch_bytes + number * 4);
    };
    KD_UNROLL for (int k = 0; k < step_bytes / 4; k += 8) {
      uint32_t a[4][4], b[4][2];
      KD_UNROLL for (int i = 0; i < 4; ++i)
        KD_UNROLL for (int w = 0; w < 4; ++w)
          a[i][w] = word(a_tile, simt::warp_index() / 4 * 64 + i * 16 + w % 2 * 8 + g, k + w / 2 * 4 + t);
      KD_UNROLL for (int j = 0; j < 4; ++j)
        KD_UNROLL for (int w = 0; w < 2; ++w) b[j][w] = word(b_tile, warp_across() * 32 + j * 8 + g, k + w * 4 + t);
      simt::multiply_fragments<fragment>(sums.fragments, a, b);
    }
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

// What one thread carries of one operand's step: of a row, 16 bytes twice; of a transposed operand, a patch of neighbouring
// rows by as many positions as make a 32-bit word, at least one.
template <class Kind, bool transposed>
class TileCarrier {
  using E = typename Kind::Element;
  static constexpr int depth = step_bytes / sizeof(E);
  static constexpr int carried = 2 * 16 / sizeof(E);
  static constexpr int positions = !transposed ? carried / 2 : sizeof(E) < 4 ? 4 / sizeof(E) : 1;
  static constexpr int lines = carried / positions;  // rows; 2 that lie apart, or neighbours if transposed

 public:
  static constexpr int step = depth;

  KD_DEVICE void load(const TileOperand& from, int64_t first_row, int64_t first, int64_t end) {
    with_dtype(from.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if constexpr (Kind::template Reads<T>::value) load_as<T>(from, first_row, first, end);
    });
  }

  KD_DEVICE void store(unsigned char* tile) const {
    KD_UNROLL for (int line = 0; line < lines; ++line) {
      unsigned char* at = tile + row(line) * pitch_bytes + position() * static_cast<int>(sizeof(E));
      E numbers[positions];
      KD_UNROLL for (int p = 0; p < positions; ++p) numbers[p] = finished(held_[line * positions + p]);
      if constexpr (sizeof numbers == 16) {
        simt::Bytes16 bytes;
        memcpy(&bytes, numbers, sizeof bytes);
        simt::store16(at, bytes);
      } else {
        std::conditional_t<sizeof numbers == 8, uint64_t, uint32_t> word;
        memcpy(&word, numbers, sizeof word);
        *reinterpret_cast<decltype(word)*>(at) = word;
      }
    }
  }

 private:
  // As tensor cores want it.
  static KD_DEVICE E finished(E x) {
    if constexpr (std::is_same_v<Kind, TF32Tiles>) return float_from_bits(simt::to_tf32(x));
    else return x;
  }

  static KD_DEVICE int row(int line) {
    const int thread = simt::thread_index();
    return transposed ? thread / (depth / positions) * lines + line : line * (tile_rows / 2) + thread / 4;
  }
  static KD_DEVICE int position() {
    const int thread = simt::thread_index();
    return transposed ? thread % (depth / positions) * positions : thread % 4 * positions;
  }

  // Zeros beyond the rows and beyond the depth. Neighbours in memory come in 16-byte loads where they may.
  template <class T>
  KD_DEVICE void load_as(const TileOperand& from, int64_t first_row, int64_t first, int64_t end) {
    constexpr int runs = transposed ? positions : lines, length = carried / runs;
    const int64_t in_run = transposed ? from.rows : end;  // where a run of neighbours must end
    KD_UNROLL for (int run = 0; run < runs; ++run) {
      const int64_t line = first_row + row(transposed ? 0 : run), k = first + position() + (transposed ? run : 0);
      const bool exists = transposed ? k < end && (!from.mask || from.mask[k]) : line < from.rows;
      const int64_t begin = transposed ? line : k;
      const T* data = static_cast<const T*>(from.data) + (transposed ? k : line) * from.stride + begin;
      T numbers[length];
      constexpr bool fits = sizeof numbers % 16 == 0;
      if (fits && exists && begin + length <= in_run && reinterpret_cast<uintptr_t>(data) % 16 == 0) {
        KD_UNROLL for (int i = 0; i < static_cast<int>(sizeof numbers / 16); ++i) {
          const simt::Bytes16 bytes = simt::load16(reinterpret_cast<const char*>(data) + 16 * i);
          memcpy(reinterpret_cast<char*>(numbers) + 16 * i, &bytes, sizeof bytes);
        }
      } else {
        KD_UNROLL for (int e = 0; e < length; ++e) {
          numbers[e] = T{};
          if (exists && begin + e < in_run) numbers[e] = data[e];
        }
      }
      KD_UNROLL for (int e = 0; e < length; ++e)
        held_[transposed ? e * positions + run : run * positions + e] = to_element<E>(numbers[e]);
    }
  }

  E held_[carried];
};

// --- The product -------------------------------------------------------------------------------------------------------

// sums += rows `a_row` on of A times rows `b_row` on of B, over the depth from `begin` to `end`. All threads of the block take
// part; `shared` may be used for something else as soon as they have all returned.
template <class Kind, bool a_transposed, bool b_transposed>
KD_DEVICE void multiply_tiles(const TileOperand& a, int64_t a_row, const TileOperand& b, int64_t b_row, int64_t begin,
                              int64_t end, TileNumbers16& shared, typename Kind::Sums& sums) {
  TileCarrier<Kind, a_transposed> a_carrier;
  TileCarrier<Kind, b_transposed> b_carrier;
  unsigned char* tiles = reinterpret_cast<unsigned char*>(shared);
  const auto bring = [&](int64_t k) {
    a_carrier.load(a, a_row, k, end);
    b_carrier.load(b, b_row, k, end);
  };
  const auto put = [&](int stage) {
    a_carrier.store(tiles + stage * 2 * tile_bytes);
    b_carrier.store(tiles + stage * 2 * tile_bytes + tile_bytes);
  };
  constexpr int step = TileCarrier<Kind, a_transposed>::step;
  bring(begin);
  put(0);
  simt::sync_threads();
  int stage = 0;
  for (int64_t k = begin; k < end; k += step, stage ^= 1) {
    const bool more = k + step < end;
    if (more) bring(k + step);
    Kind::multiply(tiles + stage * 2 * tile_bytes, tiles + stage * 2 * tile_bytes + tile_bytes, sums);
    if (more) put(stage ^ 1);
    simt::sync_threads();
  }
}

}  // namespace
}  // namespace kd
