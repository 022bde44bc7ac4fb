// Operations that the lanes of a SIMD-group do together.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "checker.h"

namespace {

template <class F>
void with_type(uint32_t type, F run) {
  switch (type) {
    case MSL_FLOAT:
      return run(float());
    case MSL_INT:
      return run(int32_t());
    case MSL_UINT:
      return run(uint32_t());
    case MSL_LONG:
      return run(int64_t());
    case MSL_ULONG:
      return run(uint64_t());
  }
}

template <class T>
T combine(uint32_t operation, T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (operation == MSL_AND) return a & b;
    if (operation == MSL_OR) return a | b;
    if (operation == MSL_XOR) return a ^ b;
  }
  switch (operation) {
    case MSL_SUM:
      return a + b;
    case MSL_PRODUCT:
      return a * b;
    case MSL_MIN:
      return std::is_floating_point_v<T> ? (T)std::fmin(a, b) : (a < b ? a : b);
    case MSL_MAX:
      return std::is_floating_point_v<T> ? (T)std::fmax(a, b) : (a > b ? a : b);
  }
  return a;
}

// In butterfly order, as a chain of xor shuffles adds.
template <class T>
void reduce(Fiber** lanes, int count, uint32_t operation) {
  T value[kLanes];
  bool active[kLanes] = {};
  for (int i = 0; i < count; i++) {
    memcpy(&value[lanes[i]->lane], lanes[i]->collective.value, sizeof(T));
    active[lanes[i]->lane] = true;
  }
  for (uint32_t step = 1; step < kLanes; step *= 2)
    for (uint32_t a = 0, b = step; b < kLanes; a += 2 * step, b += 2 * step) {
      if (!active[b]) continue;
      value[a] = active[a] ? combine(operation, value[a], value[b]) : value[b];
      active[a] = true;
    }
  for (int i = 0; i < count; i++) memcpy(lanes[i]->collective.value, &value[0], sizeof(T));
}

template <class T>
void prefix(Fiber** lanes, int count, bool product, bool inclusive) {
  T total = product ? T(1) : T(0);
  for (int i = 0; i < count; i++) {
    T given;
    memcpy(&given, lanes[i]->collective.value, sizeof(T));
    T next = product ? total * given : total + given;
    memcpy(lanes[i]->collective.value, inclusive ? &next : &total, sizeof(T));
    total = next;
  }
}

int source_lane(const Fiber& fiber, uint32_t operation) {
  int lane = (int)fiber.lane, operand = (int)fiber.collective.operand;
  switch (operation) {
    case MSL_SHUFFLE:
      return operand;
    case MSL_SHUFFLE_UP:
      return lane - operand;
    case MSL_SHUFFLE_DOWN:
      return lane + operand;
    case MSL_SHUFFLE_XOR:
      return lane ^ operand;
  }
  return (lane + operand) % (int)kLanes;
}

void shuffle(Fiber** lanes, int count, uint32_t operation, bool quad) {
  constexpr uint32_t kWidest = 32;
  static uint8_t values[kLanes][kWidest];
  bool active[kLanes] = {};
  uint32_t size = lanes[0]->collective.size;
  for (int i = 0; i < count; i++) {
    memcpy(values[lanes[i]->lane], lanes[i]->collective.value, size);
    active[lanes[i]->lane] = true;
  }
  for (int i = 0; i < count; i++) {
    Fiber& fiber = *lanes[i];
    int first = quad ? (int)(fiber.lane & ~3u) : 0, last = quad ? first + 3 : (int)kLanes - 1;
    int source = source_lane(fiber, operation) + (quad && operation == MSL_SHUFFLE ? first : 0);
    // Shuffles past the ends leave the lane's own value.
    if (source < first || source > last) source = (int)fiber.lane;
    if (active[source]) {
      memcpy(fiber.collective.value, values[source], size);
    } else {
      current = &fiber;
      report(Kind::kInactiveLane, fiber.collective.site, -1, source, 0, 0);
      memset(fiber.collective.value, 0xff, size);
    }
  }
}

void ballot(Fiber** lanes, int count) {
  uint64_t mask = 0;
  for (int i = 0; i < count; i++)
    mask |= (*(uint64_t*)lanes[i]->collective.value ? 1ull : 0) << lanes[i]->lane;
  for (int i = 0; i < count; i++) *(uint64_t*)lanes[i]->collective.value = mask;
}

// d = a * b + c, in order of the inner index, rounded once a step.
void multiply(Fiber** lanes, int count) {
  counters[lanes[0]->collective.operand == 4 ? kMatrixMultiplies32 : kMatrixMultiplies16]++;
  if (count != (int)kLanes) report(Kind::kCollectiveDivergence, lanes[0]->collective.site, -1, count, 0, 0);
  float a[8][8] = {}, b[8][8] = {};
  auto row = [](const Fiber& f) { return (f.lane / 4 & 4) + f.lane / 2 % 4; };
  auto column = [](const Fiber& f) { return (f.lane / 4 & 2) * 2 + f.lane % 2 * 2; };
  for (int i = 0; i < count; i++) {
    const float* parts = (const float*)lanes[i]->collective.value;
    uint32_t r = row(*lanes[i]), c = column(*lanes[i]);
    memcpy(&a[r][c], parts, 8);
    memcpy(&b[r][c], parts + 2, 8);
  }
  for (int i = 0; i < count; i++) {
    float* parts = (float*)lanes[i]->collective.value;
    uint32_t r = row(*lanes[i]), c = column(*lanes[i]);
    for (int k = 0; k < 8; k++)
      for (int e = 0; e < 2; e++) parts[4 + e] = std::fma(a[r][k], b[k][c + e], parts[4 + e]);
    memcpy(parts, parts + 4, 8);
  }
}

void fence(const Fiber& fiber) {
  counters[kSimdBarriers]++;
  uint32_t flags = fiber.collective.operand;
  if (flags & MSL_FENCE_THREADGROUP) group.simd_threadgroup_epoch[fiber.simdgroup]++;
  if (flags & MSL_FENCE_DEVICE) group.simd_device_epoch[fiber.simdgroup]++;
}

void run_quads(Fiber** lanes, int count, uint32_t operation) {
  for (int first = 0; first < count;) {
    int last = first;
    while (last < count && lanes[last]->lane / 4 == lanes[first]->lane / 4) last++;
    if (operation <= MSL_ROTATE)
      shuffle(lanes + first, last - first, operation, true);
    else
      with_type(lanes[0]->collective.type,
                [&](auto z) { reduce<decltype(z)>(lanes + first, last - first, operation); });
    first = last;
  }
}

}  // namespace

// `lanes` are in order, and wait at the same place.
void run_collective(Fiber** lanes, int count) {
  const Collective& first = lanes[0]->collective;
  uint32_t operation = first.operation;
  current = lanes[0];
  if (operation == MSL_SYNC) return;
  if (operation == MSL_FENCE) return fence(*lanes[0]);
  if (operation == MSL_MATRIX_MULTIPLY) return multiply(lanes, count);
  uint32_t plain = operation % MSL_QUAD;
  counters[plain <= MSL_BROADCAST_FIRST ? kShuffles : kReductions]++;
  if (operation >= MSL_QUAD) return run_quads(lanes, count, plain);
  if (operation == MSL_BALLOT) return ballot(lanes, count);
  if (operation == MSL_BROADCAST_FIRST) {
    for (int i = 1; i < count; i++) memcpy(lanes[i]->collective.value, first.value, first.size);
  } else if (operation <= MSL_ROTATE) {
    shuffle(lanes, count, operation, false);
  } else if (operation <= MSL_XOR) {
    with_type(first.type, [&](auto z) { reduce<decltype(z)>(lanes, count, operation); });
  } else {
    bool product = operation >= MSL_PREFIX_PRODUCT;
    bool inclusive = operation == MSL_PREFIX_SUM || operation == MSL_PREFIX_PRODUCT;
    with_type(first.type, [&](auto z) { prefix<decltype(z)>(lanes, count, product, inclusive); });
  }
}
