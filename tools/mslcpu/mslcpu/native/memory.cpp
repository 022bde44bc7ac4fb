// Memory of a launch: every buffer and threadgroup array has address space of its own, so any overflow is
// seen, and a shadow cell per element tells whether two accesses are ordered.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "checker.h"

namespace {

constexpr uint32_t kNobody = 0xffffffffu;
constexpr int kSlots = 256, kFirstBuffer = 1, kFirstArray = 96, kSlotBits = 36;
constexpr uint64_t kBase = 1ull << 44, kMargin = 1ull << 30, kPage = 4096;

enum Mark : uint8_t {
  kAtomicWrite = 1,
  kAtomicRead = 2,
  kWritten = 4,
  kReadByLanes = 8,
  kReadBySimdgroups = 16,
  kRead = 32,
};

// The last write and the last reads of one element.
struct Cell {
  uint32_t write_group = kNobody, write_epoch = 0, read_group = kNobody, read_epoch = 0;
  uint16_t writer = 0, reader = 0, write_fence = 0, read_fence = 0;
  uint8_t marks = 0;
};

struct Slot {
  uint64_t base = 0, length = 0, page = 0, mapped = 0;
  uint32_t space = 0, element = 1;
  bool starts_unwritten = false;
  std::string name;
  // bytes read, written; distinct bytes read, written; distinct bytes per threadgroup read, written
  uint64_t footprint[6] = {};
  std::vector<Cell> cells;
};

Slot slots[kSlots];
std::unordered_map<uint32_t, int> arrays;  // threadgroup declaration -> slot
uint8_t scratch[4096];                     // where accesses outside of memory go

// `shift` bytes past an aligned address.
Slot& open_slot(int number, uint64_t length, uint32_t space, uint32_t element, const char* name,
                bool unwritten, uint64_t shift) {
  Slot& slot = slots[number];
  slot = Slot();
  slot.page = kBase + ((uint64_t)number << kSlotBits) + kMargin;
  slot.base = slot.page + shift;
  slot.mapped = std::max<uint64_t>((shift + length + kPage - 1) & ~(kPage - 1), kPage);
  void* at = mmap((void*)slot.page, slot.mapped, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == MAP_FAILED) {
    perror("mslcpu: mmap");
    abort();
  }
  slot.length = length;
  slot.space = space;
  slot.element = element;
  slot.name = name;
  slot.starts_unwritten = unwritten;
  if (options.check && space != MSL_CONSTANT) slot.cells.resize((length + element - 1) / element);
  return slot;
}

int slot_of(uint64_t address) {
  if (address < kBase) return -1;
  uint64_t number = (address - kBase) >> kSlotBits;
  return number < kSlots ? (int)number : -1;
}

void* outside(uint64_t address, uint32_t size, bool store, uint32_t site) {
  // Addresses just below a slot lie at the end of the range of the slot before it.
  int slot = slot_of(address + kMargin);
  if (slot >= 0 && !slots[slot].space) slot = -1;
  int64_t offset = (int64_t)(address - (slot >= 0 ? slots[slot].base : 0));
  report(store ? Kind::kWriteOutside : Kind::kReadOutside, site, slot, offset, size, 0);
  memset(scratch, 0xff, sizeof scratch);
  return scratch;
}

enum class Order { kOrdered, kSameGroup, kOtherGroup };

bool same_simdgroup(uint16_t thread) { return thread / kLanes == current->simdgroup; }

Order order_of_write(const Cell& cell, uint32_t group_number, uint32_t epoch, uint16_t fence) {
  if (cell.write_group == kNobody) return Order::kOrdered;
  if (cell.write_group != group_number) return Order::kOtherGroup;
  if (cell.writer == current->thread || cell.write_epoch != epoch) return Order::kOrdered;
  return same_simdgroup(cell.writer) && cell.write_fence != fence ? Order::kOrdered : Order::kSameGroup;
}

Order order_of_reads(const Cell& cell, uint32_t group_number, uint32_t epoch, uint16_t fence) {
  if (cell.read_group == kNobody) return Order::kOrdered;
  if (cell.read_group != group_number) return Order::kOtherGroup;
  if (cell.read_epoch != epoch) return Order::kOrdered;
  if ((cell.marks & kReadBySimdgroups) || !same_simdgroup(cell.reader)) return Order::kSameGroup;
  bool others = (cell.marks & kReadByLanes) || cell.reader != current->thread;
  return cell.read_fence == fence && others ? Order::kSameGroup : Order::kOrdered;
}

void remember_write(Cell& cell, uint32_t group_number, uint32_t epoch, uint16_t fence, bool atomic) {
  cell.write_group = group_number;
  cell.write_epoch = epoch;
  cell.writer = (uint16_t)current->thread;
  cell.write_fence = fence;
  cell.marks = (uint8_t)((cell.marks & ~kAtomicWrite) | kWritten | (atomic ? kAtomicWrite : 0));
}

void remember_read(Cell& cell, uint32_t group_number, uint32_t epoch, uint16_t fence, bool atomic) {
  uint8_t marks = cell.marks & ~kAtomicRead;
  if (cell.read_group != group_number || cell.read_epoch != epoch)
    marks &= ~(kReadByLanes | kReadBySimdgroups);
  else if (cell.reader != current->thread && !same_simdgroup(cell.reader))
    marks |= kReadBySimdgroups;
  else if (cell.read_fence != fence)
    marks &= ~kReadByLanes;
  else if (cell.reader != current->thread)
    marks |= kReadByLanes;
  cell.read_group = group_number;
  cell.read_epoch = epoch;
  cell.reader = (uint16_t)current->thread;
  cell.read_fence = fence;
  cell.marks = (uint8_t)(marks | kRead | (atomic ? kAtomicRead : 0));
}

void note_footprint(Slot& slot, const Cell& cell, bool store) {
  bool fresh = !(cell.marks & (store ? kWritten : kRead));
  bool fresh_in_group = (store ? cell.write_group : cell.read_group) != group.number;
  slot.footprint[store ? 3 : 2] += fresh ? slot.element : 0;
  slot.footprint[store ? 5 : 4] += fresh_in_group ? slot.element : 0;
}

void check_order(int number, uint64_t offset, uint32_t size, bool store, bool atomic, uint32_t site) {
  Slot& slot = slots[number];
  bool local = slot.space == MSL_THREADGROUP;
  uint32_t epoch = local ? group.threadgroup_epoch : group.device_epoch;
  uint16_t fence = (local ? group.simd_threadgroup_epoch : group.simd_device_epoch)[current->simdgroup];
  uint32_t group_number = local ? 0 : group.number;
  auto race = [&](Order order, uint16_t other) {
    if (order == Order::kOrdered) return;
    Kind kind = order == Order::kOtherGroup ? Kind::kGroupRace
                : local                     ? Kind::kThreadgroupRace
                                            : Kind::kDeviceRace;
    report(kind, site, number, (int64_t)offset, size, other);
  };
  for (uint64_t i = offset / slot.element; i <= (offset + size - 1) / slot.element; i++) {
    Cell& cell = slot.cells[i];
    if (!local) note_footprint(slot, cell, store);
    if (!store && slot.starts_unwritten && !(cell.marks & kWritten))
      report(local ? Kind::kUnwrittenThreadgroup : Kind::kUnwrittenDevice, site, number, (int64_t)offset,
             size, 0);
    if (!(atomic && (cell.marks & kAtomicWrite)))
      race(order_of_write(cell, group_number, epoch, fence), cell.writer);
    if (store && !(atomic && (cell.marks & kAtomicRead)))
      race(order_of_reads(cell, group_number, epoch, fence), cell.reader);
    (store ? remember_write : remember_read)(cell, group_number, epoch, fence, atomic);
  }
}

void count(const Slot& slot, uint32_t size, bool store) {
  Counter bytes = slot.space == MSL_CONSTANT      ? kConstantReadBytes
                  : slot.space == MSL_THREADGROUP ? (store ? kThreadgroupWriteBytes : kThreadgroupReadBytes)
                                                  : (store ? kDeviceWriteBytes : kDeviceReadBytes);
  counters[bytes] += size;
  counters[slot.space == MSL_CONSTANT ? kConstantReads : bytes + 2]++;
}

void* access(uint64_t address, uint32_t size, uint32_t space, bool store, bool atomic, uint32_t site) {
  int number = slot_of(address);
  bool known = number >= 0 && slots[number].space;
  // Constants of the program itself, and generic pointers to private memory, are the host's own.
  if (number < 0 && (space == MSL_CONSTANT || space == MSL_GENERIC)) return (void*)address;
  if (!known) return outside(address, size, store, site);
  Slot& slot = slots[number];
  if (address < slot.base || address - slot.base + size > slot.length)
    return outside(address, size, store, site);
  uint64_t offset = address - slot.base;
  slot.footprint[store] += size;
  count(slot, size, store);
  if (slot.space == MSL_CONSTANT && store)
    report(Kind::kConstantWrite, site, number, (int64_t)offset, size, 0);
  if (options.traffic) note_access(site, address, size, slot.space, store);
  if (!slot.cells.empty()) check_order(number, offset, size, store, atomic, site);
  return (void*)address;
}

void check_alignment(uint64_t address, uint32_t info, uint32_t site) {
  uint64_t alignment = 1ull << (info >> 4 & 15);
  if (__builtin_expect(!(address & (alignment - 1)), 1)) return;
  int slot = slot_of(address);
  int64_t offset = (int64_t)(address - (slot >= 0 ? slots[slot].base : 0));
  report(Kind::kMisaligned, site, slot, offset, (uint32_t)alignment, 0);
}

template <class T>
T combine(uint32_t operation, T old, T given) {
  switch (operation) {
    case MSL_FETCH_ADD:
      return old + given;
    case MSL_FETCH_SUB:
      return old - given;
    case MSL_FETCH_MAX:
      return std::max(old, given);
    case MSL_FETCH_MIN:
      return std::min(old, given);
  }
  return given;
}

uint32_t combine_bits(uint32_t operation, uint32_t type, uint32_t old, uint32_t given) {
  if (operation == MSL_FETCH_OR) return old | given;
  if (operation == MSL_FETCH_AND) return old & given;
  if (operation == MSL_FETCH_XOR) return old ^ given;
  if (type == MSL_INT) return (uint32_t)combine(operation, (int32_t)old, (int32_t)given);
  if (type == MSL_UINT) return combine(operation, old, given);
  float a, b;
  memcpy(&a, &old, 4);
  memcpy(&b, &given, 4);
  float result = combine(operation, a, b);
  memcpy(&old, &result, 4);
  return old;
}

}  // namespace

// `info` holds size << 8 | log2(alignment) << 4 | space << 1 | store.
MSL_EXPORT void* __msl_access(void* pointer, uint32_t info, uint32_t site) {
  check_alignment((uint64_t)pointer, info, site);
  return access((uint64_t)pointer, info >> 8, info >> 1 & 7, info & 1, false, site);
}

MSL_EXPORT void __msl_access_range(void* pointer, uint64_t size, uint32_t info, uint32_t site) {
  check_alignment((uint64_t)pointer, info, site);
  if (size) access((uint64_t)pointer, (uint32_t)size, info >> 1 & 7, info & 1, false, site);
}

MSL_EXPORT uint32_t __msl_atomic(uint64_t address, uint32_t operation, uint32_t type, uint32_t size,
                                 uint32_t space, uint32_t value, uint32_t expected, uint32_t site) {
  counters[space == MSL_THREADGROUP ? kThreadgroupAtomics : kDeviceAtomics]++;
  void* at = access(address, size, space, operation != MSL_LOAD, true, site);
  uint32_t old = 0;
  memcpy(&old, at, size);
  if (operation == MSL_LOAD || (operation == MSL_COMPARE_EXCHANGE && old != expected)) return old;
  uint32_t result = operation >= MSL_FETCH_ADD ? combine_bits(operation, type, old, value) : value;
  memcpy(at, &result, size);
  return old;
}

MSL_EXPORT uint64_t __msl_threadgroup(uint32_t id, uint64_t size, uint32_t element, const char* name,
                                      uint32_t site) {
  auto found = arrays.find(id);
  if (found != arrays.end()) return slots[found->second].base;
  int number = kFirstArray + (int)arrays.size();
  Slot& slot = open_slot(number, size, MSL_THREADGROUP, element, name, true, 0);
  memset((void*)slot.base, 0xff, slot.length);
  arrays[id] = number;
  counters[kThreadgroupMemory] += (size + 15) & ~15ull;
  if (counters[kThreadgroupMemory] > options.threadgroup_limit)
    report(Kind::kThreadgroupLimit, site, number, (int64_t)counters[kThreadgroupMemory], 0, 0);
  return slot.base;
}

MSL_EXPORT uint64_t __msl_buffer(uint32_t index) {
  const Slot& slot = slots[kFirstBuffer + index];
  return slot.space ? slot.base : 0;
}

MSL_EXPORT const char* msl_slot_name(int slot) { return slot >= 0 ? slots[slot].name.c_str() : ""; }

void bind_buffers(const Buffer* buffers, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    const Buffer& b = buffers[i];
    if (!b.space) continue;
    // Arrays start where the host has them, as far as vectors of 16 bytes can tell.
    Slot& slot = open_slot(kFirstBuffer + (int)i, b.length, b.space, b.element, b.name, b.starts_unwritten,
                           (uint64_t)b.host % 16);
    if (b.starts_unwritten)
      memset((void*)slot.base, 0xff, b.length);
    else
      memcpy((void*)slot.base, b.host, b.length);
  }
}

void copy_back(const Buffer* buffers, uint32_t count, uint64_t* footprints) {
  for (uint32_t i = 0; i < count; i++) {
    const Slot& slot = slots[kFirstBuffer + i];
    if (!buffers[i].space) continue;
    if (buffers[i].written_back) memcpy(buffers[i].host, (void*)slot.base, slot.length);
    memcpy(footprints + 6 * i, slot.footprint, sizeof slot.footprint);
  }
}

void forget_threadgroup_values() {
  for (auto& [id, number] : arrays) {
    Slot& slot = slots[number];
    memset((void*)slot.base, 0xff, slot.length);
    std::fill(slot.cells.begin(), slot.cells.end(), Cell());
  }
}

void release_memory() {
  for (Slot& slot : slots) {
    if (slot.space) munmap((void*)slot.page, slot.mapped);
    slot = Slot();
  }
  arrays.clear();
}
