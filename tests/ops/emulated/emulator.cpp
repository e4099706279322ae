// Blocks of fibers: see emulator.h.
#include "emulator.h"

#include <string.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// Saves the registers that a call keeps and the stack pointer, and continues on another stack. swapcontext does the
// same with two system calls.
extern "C" void emulated_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
  .text
  .hidden emulated_switch
  .globl emulated_switch
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int kSavedWords = 8, kReturnWord = 6;  // the last one keeps the stack aligned as after a call
#elif defined(__aarch64__)
asm(R"(
  .text
  .hidden emulated_switch
  .globl emulated_switch
emulated_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int kSavedWords = 20, kReturnWord = 11;
#else
#error "the emulation switches stacks on x86-64 and aarch64"
#endif

namespace emulated {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned kAll = 0xffffffffu;
constexpr char kMark[] = "the end of a stack";

enum class State { ready, at_warp, at_block, ended };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* stack_pointer;
  State state;
  dim3 index;
  // Of the meeting that the lane waits for, and what it found in the last one.
  unsigned mask;
  Meeting kind;
  uint64_t word;
  int source;
  uint64_t found;
};

std::vector<Fiber> fibers;
void* scheduler;
int current = -1, thread_count;
const Launch* running;
const char* failure;
bool last_block_first;

void leave(State state) {
  fibers[current].state = state;
  emulated_switch(&fibers[current].stack_pointer, scheduler);
}

void start() {
  running->body(running->arguments);
  leave(State::ended);
}

void prepare(Fiber& fiber) {
  memcpy(fiber.stack.get(), kMark, sizeof(kMark));
  const uintptr_t top = (reinterpret_cast<uintptr_t>(fiber.stack.get()) + kStackBytes) / 16 * 16;
  void** frame = reinterpret_cast<void**>(top) - kSavedWords;
  memset(frame, 0, kSavedWords * sizeof(void*));
  frame[kReturnWord] = reinterpret_cast<void*>(&start);
  fiber.stack_pointer = frame;
  fiber.state = State::ready;
}

void resume(int thread) {
  current = thread;
  threadIdx = fibers[thread].index;
  emulated_switch(&scheduler, fibers[thread].stack_pointer);
  current = -1;
  if (failure) throw std::runtime_error(std::string("emulated CUDA: ") + failure);
}

unsigned lanes_in(int first, int last, State state) {
  unsigned lanes = 0;
  for (int i = first; i < last; ++i) lanes |= unsigned(fibers[i].state == state) << (i - first);
  return lanes;
}

// Lets the lanes go on that wait for each other, and says whether there are any.
bool release(int first, int last) {
  unsigned waiting = lanes_in(first, last, State::at_warp);
  const unsigned alive = waiting | lanes_in(first, last, State::at_block);
  bool any = false, different = false;
  for (int i = first; i < last; ++i) {
    if (!(waiting >> (i - first) & 1)) continue;
    const Fiber& one = fibers[i];
    const unsigned wanted = one.mask & alive;
    unsigned ready = 0, calling = 0;
    uint64_t votes = 0;
    for (int k = first; k < last; ++k) {
      const unsigned bit = 1u << (k - first);
      if (!(waiting & bit) || fibers[k].mask != one.mask) continue;
      calling |= bit;
      if (fibers[k].kind != one.kind) continue;
      ready |= bit;
      if (fibers[k].word & 1) votes |= bit;
    }
    different |= calling != ready;
    if (ready != wanted) continue;
    count_until_here(first, ready);
    for (int k = first; k < last; ++k) {
      if (!(ready >> (k - first) & 1)) continue;
      Fiber& fiber = fibers[k];
      if (fiber.kind == Meeting::shuffle && !(ready >> fiber.source & 1))
        throw std::runtime_error("emulated CUDA: a shuffle reads a lane that takes no part in it");
      fiber.found = fiber.kind == Meeting::vote ? votes : fibers[first + fiber.source].word;
      fiber.state = State::ready;
    }
    waiting &= ~ready;
    any = true;
  }
  if (different) throw std::runtime_error("emulated CUDA: lanes of a warp meet in different calls");
  if (waiting && !any) throw std::runtime_error("emulated CUDA: some lanes of a warp meet and others do not");
  return any;
}

// Until all threads of the warp wait for the block or have ended.
void run_warp(int first, bool backwards) {
  const int last = first + kWarp < thread_count ? first + kWarp : thread_count;
  do {
    for (int k = first; k < last; ++k) {
      const int i = backwards ? first + last - 1 - k : k;
      if (fibers[i].state == State::ready) resume(i);
    }
  } while (release(first, last));
  count_until_here(first, kAll);
}

// backwards: later threads run first; what a missing barrier leaves unwritten then differs.
void run_block(bool backwards) {
  for (int i = 0; i < thread_count; ++i) prepare(fibers[i]);
  const int warps = (thread_count + kWarp - 1) / kWarp;
  for (bool any = true; any;) {
    block_met();
    for (int k = 0; k < warps; ++k) run_warp(kWarp * (backwards ? warps - 1 - k : k), backwards);
    any = false;
    for (int i = 0; i < thread_count; ++i)
      if (fibers[i].state == State::at_block) fibers[i].state = State::ready, any = true;
  }
  for (int i = 0; i < thread_count; ++i)
    if (memcmp(fibers[i].stack.get(), kMark, sizeof(kMark))) throw std::runtime_error("emulated CUDA: stack overflow");
}

}  // namespace

void run(const Launch& launch) {
  running = &launch;
  failure = nullptr;
  blockDim = launch.block, gridDim = launch.grid;
  thread_count = int(blockDim.x * blockDim.y * blockDim.z);
  if (int(fibers.size()) < thread_count) fibers.resize(thread_count);
  for (int i = 0; i < thread_count; ++i)
    fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
  count_kernel(launch.kernel);
  memset(launch.shared, 0xff, kSharedBytes);  // numbers that are none
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t block = last_block_first ? blocks - 1 - i : i;
    blockIdx = {unsigned(block % gridDim.x), unsigned(block / gridDim.x % gridDim.y),
                unsigned(block / gridDim.x / gridDim.y)};
    memset(launch.shared, 0xff, launch.shared_bytes);
    run_block(block % 2 != unsigned(last_block_first));
  }
  for (size_t i = launch.shared_bytes; i < kSharedBytes; ++i)
    if (launch.shared[i] != 0xff) throw std::runtime_error("emulated CUDA: a block wrote behind its shared memory");
}

void fail(const char* what) {
  if (current < 0) throw std::runtime_error(std::string("emulated CUDA: ") + what);
  failure = what;
  for (;;) leave(State::ended);
}

void wait_for_block() { leave(State::at_block); }

uint64_t meet(unsigned mask, Meeting kind, uint64_t word, int source) {
  Fiber& fiber = fibers[current];
  if (!(mask >> lane() & 1)) fail("a lane calls with a mask that it is not in");
  fiber.mask = mask, fiber.kind = kind, fiber.word = word, fiber.source = source;
  leave(State::at_warp);
  return fiber.found;
}

unsigned ballot(unsigned mask, bool predicate) { return unsigned(meet(mask, Meeting::vote, predicate, 0)); }

int lane() { return current % kWarp; }

int current_thread() { return current; }

}  // namespace emulated

// Whether blocks run in the opposite order, and their threads too.
extern "C" __attribute__((visibility("default"))) void emulated_reverse(bool reversed) {
  emulated::last_block_first = reversed;
}
