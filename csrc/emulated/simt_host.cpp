// The engine behind simt_host.h: one fiber per thread of a block, switched where a thread has to wait.
//
// `ready` is a stack. Who completes a warp's or a block's meeting puts the others on it, warp by warp in random
// order, and runs on. So a warp runs far ahead of the rest, up to the next block barrier, and it is a different one
// each time: what one thread of a warp reads too late, all its threads do, which is the surest way to see it. Fibers
// survive from block to block and launch to launch; a launch that fails abandons them all, since they stand in the
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
constexpr int max_threads = 1024;
constexpr size_t max_static_shared = 48 * 1024;
constexpr size_t max_dynamic_shared = 227 * 1024;  // the largest of any architecture

enum class Doing { running, returned, starting, sync_threads, sync_warp, shuffle, vote };

const char* text(Doing doing) {
  constexpr const char* names[] = {"run", "have returned", "start", "wait at sync_threads",
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

struct Thread : Self {
  Fiber fiber{run_thread, stack_bytes};
  Doing doing = Doing::running;
  Place place;  // where it waits
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
  std::deque<Thread> pool;
  int threads = 0;
  std::vector<Warp> warps;
  std::vector<int> warp_order;
  Meeting barrier;
  std::vector<Thread*> ready;
  Thread* running = nullptr;
  Fiber main;
  std::exception_ptr failure;
  std::deque<StaticShared> static_shared;
  std::unique_ptr<Guarded> dynamic_shared;
  Random random;
  int64_t launches = 0;
};

Engine engine;

Warp& warp_of(const Thread& thread) { return engine.warps[thread.thread / warp_threads]; }

// "threads 0-15 wait at sync_threads (planted.cpp:40), threads 16-31 have returned"
std::string describe_threads() {
  std::string list;
  for (int first = 0, next; first < engine.threads; first = next) {
    const Thread& thread = engine.pool[first];
    const bool waits = thread.doing > Doing::starting;
    const auto like = [&](const Thread& other) {
      return other.doing == thread.doing && (!waits || other.place == thread.place);
    };
    for (next = first + 1; next < engine.threads && like(engine.pool[next]);) ++next;
    list += (list.empty() ? "" : ", ") + (next - first == 1 ? "thread " + std::to_string(first)
                                                            : "threads " + std::to_string(first) + "-" +
                                                                  std::to_string(next - 1));
    list += std::string(" ") + text(thread.doing) + (waits ? " (" + text(thread.place) + ")" : "");
  }
  return list;
}

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("emulated: " + what + " in block " + std::to_string(engine.pool[0].block) + ": " +
                           describe_threads());
}

// Runs the next thread that can, or ends the block's run. Returns when this thread is ready and its turn has come.
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

// Makes the threads of a warp ready that are not, and have not returned.
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

void wake_block() {
  if (engine.random.enabled()) engine.random.shuffle(engine.warp_order.begin(), engine.warp_order.end());
  for (const int warp : engine.warp_order) wake_warp(warp);
}

void end_block_meeting() {
  engine.barrier.waiting = 0;
  wake_block();
}

void end_warp_meeting(Warp& warp, int index) {
  if (warp.meeting.returned > 0) {  // what is shuffled from them must show
    for (int lane = 0; lane < warp_threads; ++lane) {
      const Thread& thread = engine.pool[index * warp_threads + lane];
      if (thread.doing == Doing::returned) warp.values[warp.turn][lane] = ~uint64_t{0};
    }
  }
  warp.meeting.waiting = 0;
  wake_warp(index);
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
  if (!together) fail("divergent threads");
  ++meeting.waiting;
  return false;
}

void meet_warp(Warp& warp, Doing doing, Place place) {
  Thread& me = *engine.running;
  if (come(warp.meeting, warp_threads, doing, place)) {
    end_warp_meeting(warp, me.thread / warp_threads);
  } else {
    run_others(me);
  }
}

// A thread that has returned is missed by nobody: its meetings may be complete now.
void leave(Thread& me) {
  me.doing = Doing::returned;
  Warp& warp = warp_of(me);
  if (++warp.meeting.returned + warp.meeting.waiting == warp_threads && warp.meeting.waiting > 0) {
    end_warp_meeting(warp, me.thread / warp_threads);
  }
  if (++engine.barrier.returned + engine.barrier.waiting == engine.threads && engine.barrier.waiting > 0) {
    end_block_meeting();
  }
}

// The life of a fiber: the same thread of one block after another.
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

void run_block(int64_t block, int64_t blocks) {
  engine.warps.assign(engine.threads / warp_threads, Warp{});
  engine.barrier = Meeting{};
  for (StaticShared& shared : engine.static_shared) shared.memory.poison();
  engine.dynamic_shared->poison();

  engine.ready.clear();
  for (int index = 0; index < engine.threads; ++index) {
    static_cast<Self&>(engine.pool[index]) = {index, engine.threads, block, blocks};
    engine.pool[index].doing = Doing::starting;
  }
  wake_block();
  engine.running = engine.ready.back();
  engine.ready.pop_back();
  self = engine.running;
  engine.main.switch_to(engine.running->fiber);

  if (engine.failure) std::rethrow_exception(engine.failure);
  if (engine.barrier.returned < engine.threads) fail("deadlock");
  const std::string where = " of block " + std::to_string(block);
  for (const StaticShared& shared : engine.static_shared) shared.memory.check("the static shared memory" + where);
  engine.dynamic_shared->check("the dynamic shared memory" + where);
}

// Ends a launch; a failed one leaves threads in the middle of the kernel, whose fibers are of no further use.
struct LaunchEnd {
  bool failed = true;
  ~LaunchEnd() {
    if (failed) engine.pool.clear();
    engine.failure = nullptr;
    engine.static_shared.clear();
    engine.dynamic_shared.reset();
    engine.kernel = nullptr;
    self = nullptr;
  }
};

void refuse(const std::string& why) { throw std::runtime_error("emulated: " + why); }

}  // namespace

void sync_threads(Place place) {
  if (come(engine.barrier, engine.threads, Doing::sync_threads, place)) {
    end_block_meeting();
  } else {
    run_others(*engine.running);
  }
}

void sync_warp(Place place) { meet_warp(warp_of(*engine.running), Doing::sync_warp, place); }

bool vote_any(bool value, Place place) {
  Warp& warp = warp_of(*engine.running);
  const int turn = warp.turn;
  warp.any[turn] |= value;
  meet_warp(warp, Doing::vote, place);
  return warp.any[turn];
}

const uint64_t* exchange_all(uint64_t bits, Place place) {
  Warp& warp = warp_of(*engine.running);
  const int turn = warp.turn;
  warp.values[turn][lane_index()] = bits;
  meet_warp(warp, Doing::shuffle, place);
  return warp.values[turn].data();
}

uint64_t exchange(uint64_t bits, int source_lane, Place place) { return exchange_all(bits, place)[source_lane]; }

void* static_shared(const void* key, size_t bytes) {
  size_t total = bytes;
  for (StaticShared& shared : engine.static_shared) {
    if (shared.key == key) return shared.memory.data();
    total += shared.memory.bytes();
  }
  if (total > max_static_shared) {
    refuse("a block has 48 KiB of static shared memory, asked for " + std::to_string(total));
  }
  return engine.static_shared.emplace_back(StaticShared{key, Guarded(bytes)}).memory.data();
}

void* dynamic_shared_bytes() { return engine.dynamic_shared->data(); }

void check_aligned16(const void* address, const char* access, Place place) {
  if (reinterpret_cast<uintptr_t>(address) % 16 == 0) return;
  refuse(std::string(access) + " at " + text(place) + " needs a multiple of 16, got one of remainder " +
         std::to_string(reinterpret_cast<uintptr_t>(address) % 16) + ": block " + std::to_string(block_index()) +
         ", thread " + std::to_string(thread_index()));
}

void run_grid(const std::function<void()>& kernel, int64_t blocks, int threads, size_t shared_bytes) {
  if (blocks == 0) return;
  if (engine.kernel) refuse("a kernel cannot launch a kernel");
  if (blocks < 0 || blocks > INT32_MAX) refuse("a grid has 1 to 2147483647 blocks, got " + std::to_string(blocks));
  if (threads <= 0 || threads > max_threads || threads % warp_threads != 0) {
    refuse("a block has 32, 64, ... 1024 threads, got " + std::to_string(threads));
  }
  if (shared_bytes > max_dynamic_shared) {
    refuse("a block has at most 227 KiB of dynamic shared memory, asked for " + std::to_string(shared_bytes));
  }
  ++engine.launches;

  LaunchEnd end;
  engine.kernel = &kernel;
  engine.threads = threads;
  engine.warp_order.resize(threads / warp_threads);
  std::iota(engine.warp_order.rbegin(), engine.warp_order.rend(), 0);
  engine.dynamic_shared = std::make_unique<Guarded>(shared_bytes);
  while (static_cast<int>(engine.pool.size()) < threads) engine.pool.emplace_back();

  std::vector<int64_t> order(blocks);
  std::iota(order.begin(), order.end(), int64_t{0});
  if (engine.random.enabled()) engine.random.shuffle(order.begin(), order.end());
  for (const int64_t block : order) run_block(block, blocks);
  end.failed = false;
}

void set_seed(uint64_t seed) { engine.random.seed(seed); }

int64_t launch_count() { return engine.launches; }

}  // namespace kd::simt
