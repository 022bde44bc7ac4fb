// State shared by the parts of the runtime. One launch runs at a time; GPU threads are fibers of one host
// thread.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "operations.h"

#define MSL_EXPORT extern "C" __attribute__((visibility("default")))

constexpr uint32_t kLanes = 32;

struct Options {
  uint32_t check, traffic, order, seed, threadgroup_limit, most_findings;
};

enum class Kind : uint32_t {
  kReadOutside,
  kWriteOutside,
  kThreadgroupRace,
  kDeviceRace,
  kGroupRace,
  kUnwrittenThreadgroup,
  kUnwrittenDevice,
  kBarrierDivergence,
  kBarrierMissed,
  kCollectiveDivergence,
  kInactiveLane,
  kThreadgroupLimit,
  kMisaligned,
  kConstantWrite,
};

struct Finding {
  uint32_t kind, site;
  int32_t slot;
  uint32_t size;
  int64_t offset;
  uint32_t group, thread, other, unused;
  uint64_t count;
};

// Order of the counters; Python reads them by name.
enum Counter {
  kDeviceReadBytes,
  kDeviceWriteBytes,
  kDeviceReads,
  kDeviceWrites,
  kThreadgroupReadBytes,
  kThreadgroupWriteBytes,
  kThreadgroupReads,
  kThreadgroupWrites,
  kConstantReadBytes,
  kConstantReads,
  kBarriers,
  kSimdBarriers,
  kShuffles,
  kReductions,
  kMatrixMultiplies32,
  kMatrixMultiplies16,
  kDeviceAtomics,
  kThreadgroupAtomics,
  kThreadgroupMemory,
  kReadLines,
  kWriteLines,
  kReadSectors,
  kWriteSectors,
  kBankCycles,
  kDeviceInstructions,
  kThreadgroupInstructions,
  kThreads,
  kGroups,
  kSimdgroups,
  kCounters,
};

enum class Waiting : uint8_t { kNot, kSimdgroup, kBarrier, kDone };

struct Collective {
  uint32_t operation, type, size, operand;
  void* value;
  uint32_t site;
  uint64_t caller;  // tells inlined copies of one source position apart
};

struct Fiber {
  void* stack_pointer;
  uint8_t* stack;
  Waiting waiting;
  uint32_t thread, lane, simdgroup, place[3];
  Collective collective;
  uint32_t barrier_fences, barrier_site;
  uint64_t barrier_caller;
};

struct Shape {
  uint32_t grid[3], group[3], groups[3];
};

struct Group {
  uint32_t place[3], extent[3];
  uint32_t number, threads, simdgroups;
  // Fences passed so far: an access of an earlier epoch is ordered before the present one.
  uint32_t threadgroup_epoch, device_epoch;
  std::vector<uint16_t> simd_threadgroup_epoch, simd_device_epoch;
};

extern Options options;
extern uint64_t counters[kCounters];
extern Shape shape;
extern Group group;
extern Fiber* current;

void report(Kind kind, uint32_t site, int slot, int64_t offset, uint32_t size, uint32_t other);

// memory.cpp
struct Buffer {
  void* host;
  uint64_t length;
  uint32_t space, element, written_back, starts_unwritten;
  const char* name;
};
void bind_buffers(const Buffer* buffers, uint32_t count);
void copy_back(const Buffer* buffers, uint32_t count, uint64_t* footprints);
void forget_threadgroup_values();
void release_memory();

// traffic.cpp
void note_access(uint32_t site, uint64_t address, uint32_t size, uint32_t space, bool store);
void settle_traffic();

// collectives.cpp
void run_collective(Fiber** lanes, int count);

// fibers.cpp
void run_group(void (*entry)());
void suspend();
uint32_t random_number();
void seed_random(uint32_t seed);
