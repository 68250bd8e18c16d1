// The engine behind simt_host.h: one fiber per thread of a cluster, switched where a thread has to wait.
//
// `ready` is a stack. Who completes a warp's, a block's or a cluster's meeting puts the others on it, warp by warp in random
// order, and runs on. So a warp runs far ahead of the rest, up to the next block barrier, and it is a different one
// each time: what one thread of a warp reads too late, all its threads do, which is the surest way to see it. Fibers
// survive from cluster to cluster and launch to launch; a launch that fails abandons them all, since they stand in the
// middle of a kernel.
#include "cuda/simt.cuh"

#include <algorithm>
#include <array>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulated/fiber.h"
#include "emulated/guarded.h"

namespace kd::simt {

const Self* self = nullptr;

namespace {

using emulated::Guarded;

constexpr size_t stack_bytes = 256 * 1024;  // reserved, not touched: sanitizer reports are printed on these stacks
constexpr size_t max_static_shared = 48 * 1024;

enum class Doing { running, returned, starting, sync_cluster, sync_threads, sync_warp, shuffle, vote };

const char* text(Doing doing) {
  constexpr const char* names[] = {"run", "have returned", "start", "wait at sync_cluster", "wait at sync_threads",
                                   "wait at sync_warp", "wait at shuffle", "wait at vote_any"};
  return names[static_cast<int>(doing)];
}

bool operator==(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string text(const Place& place) {
  const std::string file = place.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line);
}

void run_thread();

struct Block;

struct Copy {
  void* to;
  const void* from;
};

struct Thread : Self {
  Fiber fiber{run_thread, stack_bytes};
  Doing doing = Doing::running;
  Place place;  // where it waits
  Block* home = nullptr;
  std::vector<Copy> copies;  // that have not arrived
};

// Where threads meet: all that have not returned must come, and at the same place.
struct Meeting {
  int waiting = 0;
  int returned = 0;
  Doing doing = Doing::running;
  Place place;
};

// Values of a meeting are kept until the next one is complete, when every lane has read them: two sets in turn.
struct Warp {
  Meeting meeting;
  int turn = 0;
  std::array<std::array<uint64_t, warp_threads>, 2> values;
  std::array<bool, 2> any{};
};

struct StaticShared {
  const void* key;
  Guarded memory;
};

struct Block {
  int64_t number = 0;
  int rank = 0;  // in its cluster
  std::vector<Warp> warps;
  Meeting barrier;
  std::deque<StaticShared> static_shared;
  std::unique_ptr<Guarded> dynamic_shared;
};

// Small and repeatable: xorshift64*.
class Random {
 public:
  void seed(uint64_t seed) { state_ = seed; }
  bool enabled() const { return state_ != 0; }
  uint32_t below(uint32_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1dull >> 32) * bound >> 32);
  }

  template <class Iterator>
  void shuffle(Iterator begin, Iterator end) {
    for (auto left = static_cast<uint32_t>(end - begin); left > 1; --left) {
      std::swap(begin[left - 1], begin[below(left)]);
    }
  }

 private:
  uint64_t state_ = 0;
};

struct Engine {
  const std::function<void()>* kernel = nullptr;  // null: no launch in progress
  std::deque<Thread> pool;                        // those of the cluster, block by block
  int threads = 0;                                // of a block
  size_t allowed_shared = 0;                      // of a block, static and dynamic
  std::deque<Block> cluster;
  std::vector<int> warp_order;  // of the cluster
  Meeting cluster_barrier;
  std::vector<Thread*> ready;
  Thread* running = nullptr;
  Fiber main;
  std::exception_ptr failure;
  Random random;
  int64_t launches = 0;
  int64_t barriers = 0;
};

Engine engine;

Warp& warp_of(const Thread& thread) { return thread.home->warps[thread.thread / warp_threads]; }

// "threads 0-15 wait at sync_threads (planted.cpp:40), threads 16-31 have returned"
std::string describe_threads(const Block& block) {
  std::string list;
  const int before = block.rank * engine.threads;
  for (int first = 0, next; first < engine.threads; first = next) {
    const Thread& thread = engine.pool[before + first];
    const bool waits = thread.doing > Doing::starting;
    const auto like = [&](const Thread& other) {
      return other.doing == thread.doing && (!waits || other.place == thread.place);
    };
    for (next = first + 1; next < engine.threads && like(engine.pool[before + next]);) ++next;
    list += (list.empty() ? "" : ", ") + (next - first == 1 ? "thread " + std::to_string(first)
                                                            : "threads " + std::to_string(first) + "-" +
                                                                  std::to_string(next - 1));
    list += std::string(" ") + text(thread.doing) + (waits ? " (" + text(thread.place) + ")" : "");
  }
  return list;
}

[[noreturn]] void fail(const std::string& what, const Block& block) {
  throw std::runtime_error("emulated: " + what + " in block " + std::to_string(block.number) + ": " +
                           describe_threads(block));
}

// Runs the next thread that can, or ends the cluster's run. Returns when this thread is ready and its turn has come.
void run_others(Thread& me) {
  Fiber* next = &engine.main;
  if (!engine.failure && !engine.ready.empty()) {
    engine.running = engine.ready.back();
    engine.ready.pop_back();
    self = engine.running;
    next = &engine.running->fiber;
  }
  if (next != &me.fiber) me.fiber.switch_to(*next);
}

// Makes the threads of a warp of the cluster ready that are not, and have not returned.
void wake_warp(int warp) {
  const size_t before = engine.ready.size();
  for (int lane = warp_threads - 1; lane >= 0; --lane) {
    Thread& thread = engine.pool[warp * warp_threads + lane];
    if (thread.doing <= Doing::returned) continue;
    thread.doing = Doing::running;
    engine.ready.push_back(&thread);
  }
  if (engine.random.enabled()) engine.random.shuffle(engine.ready.begin() + before, engine.ready.end());
}

void wake_cluster() {
  if (engine.random.enabled()) engine.random.shuffle(engine.warp_order.begin(), engine.warp_order.end());
  for (const int warp : engine.warp_order) wake_warp(warp);
}

void end_cluster_meeting() {
  engine.cluster_barrier.waiting = 0;
  wake_cluster();
}

void end_block_meeting(Block& block) {
  block.barrier.waiting = 0;
  if (engine.random.enabled()) engine.random.shuffle(engine.warp_order.begin(), engine.warp_order.end());
  const int warps = static_cast<int>(block.warps.size());
  for (const int warp : engine.warp_order)
    if (warp / warps == block.rank) wake_warp(warp);
}

void end_warp_meeting(Block& block, int index) {
  Warp& warp = block.warps[index];
  const int in_cluster = block.rank * static_cast<int>(block.warps.size()) + index;
  if (warp.meeting.returned > 0) {  // what is shuffled from them must show
    for (int lane = 0; lane < warp_threads; ++lane) {
      const Thread& thread = engine.pool[in_cluster * warp_threads + lane];
      if (thread.doing == Doing::returned) warp.values[warp.turn][lane] = ~uint64_t{0};
    }
  }
  warp.meeting.waiting = 0;
  wake_warp(in_cluster);
  warp.turn ^= 1;
  warp.any[warp.turn] = false;
}

// Comes to a meeting of `count` threads; true if it is complete now. Otherwise the caller must let others run.
bool come(Meeting& meeting, int count, Doing doing, Place place) {
  Thread& me = *engine.running;
  if (meeting.waiting == 0) {
    meeting.doing = doing;
    meeting.place = place;
  }
  const bool together = meeting.doing == doing && meeting.place == place;
  if (together && meeting.waiting + 1 + meeting.returned == count) return true;
  me.doing = doing;
  me.place = place;
  if (!together) fail("divergent threads", *me.home);
  ++meeting.waiting;
  return false;
}

void meet_warp(Doing doing, Place place) {
  Thread& me = *engine.running;
  if (come(warp_of(me).meeting, warp_threads, doing, place)) {
    end_warp_meeting(*me.home, me.thread / warp_threads);
  } else {
    run_others(me);
  }
}

// A thread that has returned is missed by nobody: its meetings may be complete now.
void leave(Thread& me) {
  me.doing = Doing::returned;
  const auto completes = [](Meeting& meeting, int count) {
    return ++meeting.returned + meeting.waiting == count && meeting.waiting > 0;
  };
  if (completes(warp_of(me).meeting, warp_threads)) end_warp_meeting(*me.home, me.thread / warp_threads);
  if (completes(me.home->barrier, engine.threads)) end_block_meeting(*me.home);
  if (completes(engine.cluster_barrier, engine.threads * me.cluster_blocks)) end_cluster_meeting();
}

// The life of a fiber: the same thread of one cluster after another.
void run_thread() {
  Fiber::arrive_first();
  for (;;) {
    try {
      (*engine.kernel)();
    } catch (...) {
      engine.failure = std::current_exception();
    }
    Thread& me = *engine.running;
    leave(me);
    run_others(me);
  }
}

void run_cluster(int64_t first_block, int64_t blocks) {
  engine.cluster_barrier = Meeting{};
  engine.ready.clear();
  int next = 0;
  for (Block& block : engine.cluster) {
    block.number = first_block + block.rank;
    block.warps.assign(engine.threads / warp_threads, Warp{});
    block.barrier = Meeting{};
    for (StaticShared& shared : block.static_shared) shared.memory.poison();
    block.dynamic_shared->poison();
    for (int index = 0; index < engine.threads; ++index) {
      Thread& thread = engine.pool[next++];
      static_cast<Self&>(thread) = {index,      engine.threads, block.number,
                                    blocks,     block.rank,     static_cast<int>(engine.cluster.size())};
      thread.doing = Doing::starting;
      thread.home = &block;
      thread.copies.clear();
    }
  }
  wake_cluster();
  engine.running = engine.ready.back();
  engine.ready.pop_back();
  self = engine.running;
  engine.main.switch_to(engine.running->fiber);

  if (engine.failure) std::rethrow_exception(engine.failure);
  for (const Block& block : engine.cluster) {
    if (block.barrier.returned < engine.threads) fail("deadlock", block);
    const std::string where = " of block " + std::to_string(block.number);
    for (const StaticShared& shared : block.static_shared) shared.memory.check("the static shared memory" + where);
    block.dynamic_shared->check("the dynamic shared memory" + where);
  }
}

// Ends a launch; a failed one leaves threads in the middle of the kernel, whose fibers are of no further use.
struct LaunchEnd {
  bool failed = true;
  ~LaunchEnd() {
    if (failed) engine.pool.clear();
    engine.failure = nullptr;
    engine.cluster.clear();
    engine.kernel = nullptr;
    self = nullptr;
  }
};

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error("emulated: " + why); }

Guarded& static_shared_of(Block& block, const void* key, size_t bytes) {
  size_t total = bytes;
  for (StaticShared& shared : block.static_shared) {
    if (shared.key == key) return shared.memory;
    total += shared.memory.bytes();
  }
  if (total > max_static_shared) {
    refuse("a block has 48 KiB of static shared memory, asked for " + std::to_string(total));
  }
  if (const size_t all = total + block.dynamic_shared->bytes(); all > engine.allowed_shared) {
    refuse("a block of this launch has " + std::to_string(engine.allowed_shared) +
           " bytes of static and dynamic shared memory, needs " + std::to_string(all));
  }
  return block.static_shared.emplace_back(StaticShared{key, Guarded(bytes)}).memory;
}

// The address in `there` that is as far from its beginning as `address` from that of `here`; null if it is not inside.
const void* same_place(Guarded& here, Guarded& there, const void* address) {
  const auto offset = static_cast<size_t>(static_cast<const char*>(address) - static_cast<const char*>(here.data()));
  return offset < here.bytes() ? static_cast<const char*>(there.data()) + offset : nullptr;
}

}  // namespace

void sync_cluster(Place place) {
  Thread& me = *engine.running;
  if (come(engine.cluster_barrier, engine.threads * me.cluster_blocks, Doing::sync_cluster, place)) {
    end_cluster_meeting();
  } else {
    run_others(me);
  }
}

void sync_threads(Place place) {
  Thread& me = *engine.running;
  if (come(me.home->barrier, engine.threads, Doing::sync_threads, place)) {
    ++engine.barriers;
    end_block_meeting(*me.home);
  } else {
    run_others(me);
  }
}

void sync_warp(Place place) { meet_warp(Doing::sync_warp, place); }

bool vote_any(bool value, Place place) {
  Warp& warp = warp_of(*engine.running);
  const int turn = warp.turn;
  warp.any[turn] |= value;
  meet_warp(Doing::vote, place);
  return warp.any[turn];
}

const uint64_t* exchange_all(uint64_t bits, Place place) {
  Warp& warp = warp_of(*engine.running);
  const int turn = warp.turn;
  warp.values[turn][lane_index()] = bits;
  meet_warp(Doing::shuffle, place);
  return warp.values[turn].data();
}

uint64_t exchange(uint64_t bits, int source_lane, Place place) { return exchange_all(bits, place)[source_lane]; }

void* static_shared(const void* key, size_t bytes) {
  return static_shared_of(*engine.running->home, key, bytes).data();
}

void* dynamic_shared_bytes() { return engine.running->home->dynamic_shared->data(); }

const void* in_cluster(const void* address, int rank, Place place) {
  Block& here = *engine.running->home;
  if (rank < 0 || rank >= static_cast<int>(engine.cluster.size())) {
    refuse("read_cluster at " + text(place) + " asks for block " + std::to_string(rank) + " of a cluster of " +
           std::to_string(engine.cluster.size()));
  }
  Block& there = engine.cluster[rank];
  if (there.barrier.returned == engine.threads) {
    refuse("read_cluster at " + text(place) + " reads the shared memory of block " + std::to_string(there.number) +
           ", which has ended: block " + std::to_string(here.number) + ", thread " + std::to_string(thread_index()));
  }
  const void* found = same_place(*here.dynamic_shared, *there.dynamic_shared, address);
  for (StaticShared& shared : here.static_shared)
    if (!found) found = same_place(shared.memory, static_shared_of(there, shared.key, shared.memory.bytes()), address);
  if (!found) refuse("read_cluster at " + text(place) + " needs an address in shared memory");
  return found;
}

void copy16(void* shared, const void* global, Place place) {
  check_aligned16(shared, "copy16", place);
  check_aligned16(global, "copy16", place);
  engine.running->copies.push_back({shared, global});
}

void wait_copies() {
  for (const Copy& copy : engine.running->copies) std::memcpy(copy.to, copy.from, sizeof(Bytes16));
  engine.running->copies.clear();
}

void check_aligned16(const void* address, const char* access, Place place) {
  if (reinterpret_cast<uintptr_t>(address) % 16 == 0) return;
  refuse(std::string(access) + " at " + text(place) + " needs a multiple of 16, got one of remainder " +
         std::to_string(reinterpret_cast<uintptr_t>(address) % 16) + ": block " + std::to_string(block_index()) +
         ", thread " + std::to_string(thread_index()));
}

void run_grid(const std::function<void()>& kernel, int64_t blocks, int cluster, int threads, size_t shared_bytes,
              size_t allowed_shared) {
  if (engine.kernel) refuse("a kernel cannot launch a kernel");
  if (threads % warp_threads != 0) refuse("a block of these kernels has whole warps, got " + std::to_string(threads) + " threads");
  ++engine.launches;

  LaunchEnd end;
  engine.kernel = &kernel;
  engine.threads = threads;
  engine.allowed_shared = allowed_shared;
  engine.warp_order.resize(cluster * threads / warp_threads);
  std::iota(engine.warp_order.rbegin(), engine.warp_order.rend(), 0);
  for (int rank = 0; rank < cluster; ++rank) {
    Block& block = engine.cluster.emplace_back();
    block.rank = rank;
    block.dynamic_shared = std::make_unique<Guarded>(shared_bytes);
  }
  while (static_cast<int>(engine.pool.size()) < cluster * threads) engine.pool.emplace_back();

  std::vector<int64_t> order(blocks / cluster);
  std::iota(order.begin(), order.end(), int64_t{0});
  if (engine.random.enabled()) engine.random.shuffle(order.begin(), order.end());
  for (const int64_t number : order) run_cluster(number * cluster, blocks);
  end.failed = false;
}

void set_seed(uint64_t seed) { engine.random.seed(seed); }

int64_t launch_count() { return engine.launches; }

int64_t barrier_count() { return engine.barriers; }

}  // namespace kd::simt
