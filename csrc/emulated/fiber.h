// A fiber: a stack of its own and the point where it stopped. Switching costs a few instructions.
//
// makecontext gives a fiber its stack; after that swapcontext would do, were it not for two system calls per switch
// (it saves the signal mask). The compiler's own setjmp and longjmp save the stack pointer and the place, nothing
// else, which is all a switch needs. They are also invisible to AddressSanitizer, which would otherwise take a
// longjmp for the end of all frames above; it is told of every switch instead.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace kd::simt {

class Fiber {
 public:
  // The code that runs already, on the stack it has.
  Fiber() = default;

  // `entry` must never return. The lowest page of the stack is a guard page.
  Fiber(void (*entry)(), size_t stack_bytes) : bottom_(nullptr), bytes_(stack_bytes), owned_(true), entry_(entry) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
    bottom_ = memory;
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  ~Fiber() {
    if (!owned_) return;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(bottom_, bytes_);  // frames left behind by a failed launch
#endif
    munmap(const_cast<void*>(bottom_), bytes_);
  }

  // Goes from this fiber, which runs, to `next`. Returns when some fiber switches back to this one.
  __attribute__((noinline, no_sanitize("address"))) void switch_to(Fiber& next) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.bytes_);
#endif
    left_ = this;
    if (__builtin_setjmp(resume_) == 0) next.leap();
    arrive(fake_stack_);
  }

  // The first thing an entry function calls.
  static void arrive_first() { arrive(nullptr); }

 private:
  [[noreturn]] __attribute__((noinline, no_sanitize("address"))) void leap() {
    if (entry_ == nullptr) __builtin_longjmp(resume_, 1);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = const_cast<void*>(bottom_);
    context.uc_stack.ss_size = bytes_;
    context.uc_link = nullptr;
    makecontext(&context, entry_, 0);
    entry_ = nullptr;  // from now on it is resumed
    setcontext(&context);
    __builtin_unreachable();
  }

  // Tells the sanitizer that the switch is done, and notes the stack that was left: the only way to learn the main
  // stack's.
  __attribute__((no_sanitize("address"))) static void arrive([[maybe_unused]] void* fake_stack) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, &left_->bottom_, &left_->bytes_);
#endif
  }

  static inline Fiber* left_ = nullptr;  // by the switch in progress

  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  bool owned_ = false;
  void (*entry_)() = nullptr;  // null once started
  void* resume_[5] = {};       // what __builtin_setjmp keeps
  void* fake_stack_ = nullptr;
};

}  // namespace kd::simt
