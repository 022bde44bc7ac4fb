// Runs the threads of one threadgroup as fibers: each until it waits for its SIMD-group or at a barrier.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "checker.h"

extern "C" void msl_switch(void** save, void* load);
asm(R"(
.text
.globl msl_switch
.type msl_switch,@function
msl_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size msl_switch,.-msl_switch
)");

Fiber* current;
Group group;

namespace {

constexpr size_t kStack = 256 * 1024;
enum Schedule : uint32_t { kForward, kReverse, kRandom };

std::vector<Fiber> fibers;
void* scheduler;
void (*entry_point)();
uint32_t random_state;

void fiber_main() {
  entry_point();
  current->waiting = Waiting::kDone;
  suspend();
  __builtin_trap();
}

void prepare(Fiber& fiber) {
  if (!fiber.stack)
    fiber.stack = (uint8_t*)mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  uint64_t* top = (uint64_t*)(((uint64_t)fiber.stack + kStack - 64) & ~15ull);
  *--top = 0;
  *--top = (uint64_t)fiber_main;
  for (int i = 0; i < 6; i++) *--top = 0;
  fiber.stack_pointer = top;
  fiber.waiting = Waiting::kNot;
}

void prepare_group() {
  group.threads = group.extent[0] * group.extent[1] * group.extent[2];
  group.simdgroups = (group.threads + kLanes - 1) / kLanes;
  group.threadgroup_epoch++;
  group.device_epoch++;
  group.simd_threadgroup_epoch.assign(group.simdgroups, 0);
  group.simd_device_epoch.assign(group.simdgroups, 0);
  if (fibers.size() < group.threads) fibers.resize(group.threads);
  for (uint32_t t = 0; t < group.threads; t++) {
    Fiber& fiber = fibers[t];
    fiber.thread = t;
    fiber.lane = t % kLanes;
    fiber.simdgroup = t / kLanes;
    fiber.place[0] = t % group.extent[0];
    fiber.place[1] = t / group.extent[0] % group.extent[1];
    fiber.place[2] = t / (group.extent[0] * group.extent[1]);
    prepare(fiber);
  }
  forget_threadgroup_values();
  counters[kThreads] += group.threads;
  counters[kGroups]++;
  counters[kSimdgroups] += group.simdgroups;
}

void shuffle_order(std::vector<uint32_t>& order, uint32_t count) {
  order.resize(count);
  for (uint32_t i = 0; i < count; i++) order[i] = options.order == kReverse ? count - 1 - i : i;
  if (options.order != kRandom) return;
  for (uint32_t i = count; i > 1; i--) std::swap(order[i - 1], order[random_number() % i]);
}

// Lanes that reconverge meet at the lowest of the places where they wait.
bool meet(uint32_t first, uint32_t last) {
  Fiber* lanes[kLanes];
  int count = 0;
  uint32_t elsewhere = 0;
  uint64_t lowest = ~0ull;
  for (uint32_t t = first; t < last; t++)
    if (fibers[t].waiting == Waiting::kSimdgroup) lowest = std::min(lowest, fibers[t].collective.caller);
  for (uint32_t t = first; t < last; t++) {
    Fiber& fiber = fibers[t];
    bool here = fiber.waiting == Waiting::kSimdgroup && fiber.collective.caller == lowest;
    if (here) lanes[count++] = &fiber;
    elsewhere += !here && fiber.waiting != Waiting::kDone;
  }
  if (!count) return false;
  if (elsewhere) {
    current = lanes[0];
    report(Kind::kCollectiveDivergence, lanes[0]->collective.site, -1, count, 0, elsewhere);
  }
  run_collective(lanes, count);
  for (int i = 0; i < count; i++) lanes[i]->waiting = Waiting::kNot;
  return true;
}

void run_simdgroup(uint32_t number) {
  static std::vector<uint32_t> order;
  uint32_t first = number * kLanes, last = std::min(group.threads, first + kLanes);
  do {
    shuffle_order(order, last - first);
    for (uint32_t i : order) {
      if (fibers[first + i].waiting != Waiting::kNot) continue;
      current = &fibers[first + i];
      msl_switch(&scheduler, current->stack_pointer);
    }
    if (options.traffic) settle_traffic();
  } while (meet(first, last));
}

bool pass_barrier() {
  const Fiber *held = nullptr, *other = nullptr;
  uint32_t waiting = 0, fences = 0;
  for (uint32_t t = 0; t < group.threads; t++) {
    Fiber& fiber = fibers[t];
    if (fiber.waiting != Waiting::kBarrier) continue;
    if (held && fiber.barrier_caller != held->barrier_caller) other = &fiber;
    held = &fiber;
    fences |= fiber.barrier_fences;
    waiting++;
    fiber.waiting = Waiting::kNot;
  }
  if (!held) return false;
  current = const_cast<Fiber*>(held);
  if (other) report(Kind::kBarrierDivergence, other->barrier_site, -1, waiting, 0, other->thread);
  if (waiting != group.threads)
    report(Kind::kBarrierMissed, held->barrier_site, -1, group.threads - waiting, 0, 0);
  counters[kBarriers]++;
  if (fences & MSL_FENCE_THREADGROUP) group.threadgroup_epoch++;
  if (fences & MSL_FENCE_DEVICE) group.device_epoch++;
  return true;
}

}  // namespace

void suspend() { msl_switch(&current->stack_pointer, scheduler); }

uint32_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state;
}

void seed_random(uint32_t seed) { random_state = seed * 2654435761u + 12345; }

void run_group(void (*entry)()) {
  static std::vector<uint32_t> order;
  entry_point = entry;
  prepare_group();
  do {
    shuffle_order(order, group.simdgroups);
    for (uint32_t number : std::vector<uint32_t>(order)) run_simdgroup(number);
  } while (pass_barrier());
}

MSL_EXPORT void __attribute__((noinline)) __msl_simd(uint32_t operation, uint32_t type, uint32_t size,
                                                     uint32_t operand, void* value, uint32_t site) {
  current->collective = {operation, type, size, operand, value, site, (uint64_t)__builtin_return_address(0)};
  current->waiting = Waiting::kSimdgroup;
  suspend();
}

MSL_EXPORT void __attribute__((noinline)) __msl_barrier(uint32_t fences, uint32_t site) {
  current->barrier_fences = fences;
  current->barrier_site = site;
  current->barrier_caller = (uint64_t)__builtin_return_address(0);
  current->waiting = Waiting::kBarrier;
  suspend();
}

MSL_EXPORT uint32_t __msl_position(uint32_t which, uint32_t component) {
  const Fiber& fiber = *current;
  switch (which) {
    case MSL_THREAD_IN_GRID:
      return group.place[component] * shape.group[component] + fiber.place[component];
    case MSL_THREAD_IN_GROUP:
      return fiber.place[component];
    case MSL_THREAD_INDEX:
      return fiber.thread;
    case MSL_GROUP_IN_GRID:
      return group.place[component];
    case MSL_THREADS_PER_GROUP:
      return group.extent[component];
    case MSL_DISPATCH_THREADS_PER_GROUP:
      return shape.group[component];
    case MSL_GROUPS_PER_GRID:
      return shape.groups[component];
    case MSL_THREADS_PER_GRID:
      return shape.grid[component];
    case MSL_SIMDGROUP_INDEX:
      return fiber.simdgroup;
    case MSL_SIMDGROUPS_PER_GROUP:
      return group.simdgroups;
    case MSL_SIMD_WIDTH:
      return kLanes;
    case MSL_LANE:
      return fiber.lane;
    case MSL_QUAD_LANE:
      return fiber.thread % 4;
    case MSL_QUAD_INDEX:
      return fiber.thread / 4;
    case MSL_QUADS_PER_GROUP:
      return (group.threads + 3) / 4;
  }
  return 0;
}
