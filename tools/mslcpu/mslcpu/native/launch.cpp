// The interface Python calls.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <unordered_map>

#include "checker.h"

Options options;
uint64_t counters[kCounters];
Shape shape;

namespace {
std::vector<Finding> findings;
std::unordered_map<uint64_t, size_t> known;
uint64_t total;
}  // namespace

void report(Kind kind, uint32_t site, int slot, int64_t offset, uint32_t size, uint32_t other) {
  if (!options.check) return;
  total++;
  uint64_t key = (uint64_t)kind << 56 ^ (uint64_t)site << 16 ^ (uint32_t)(slot + 1);
  auto found = known.find(key);
  if (found != known.end()) {
    findings[found->second].count++;
  } else if (findings.size() < options.most_findings) {
    known[key] = findings.size();
    findings.push_back(
        {(uint32_t)kind, site, slot, size, offset, group.number, current->thread, other, 0, 1});
  }
}

MSL_EXPORT uint64_t msl_launch(void (*entry)(), const uint32_t* grid, const uint32_t* threads,
                               const Buffer* buffers, uint32_t count, const Options* given, uint64_t* counted,
                               uint64_t* footprints) {
  options = *given;
  findings.clear();
  known.clear();
  total = 0;
  memset(counters, 0, sizeof counters);
  seed_random(options.seed);
  group = Group();
  bind_buffers(buffers, count);
  for (int i = 0; i < 3; i++)
    shape.groups[i] = ((shape.grid[i] = grid[i]) + threads[i] - 1) / (shape.group[i] = threads[i]);
  uint32_t groups = shape.groups[0] * shape.groups[1] * shape.groups[2];
  std::vector<uint32_t> order(groups);
  std::iota(order.begin(), order.end(), 0);
  if (options.order == 1) std::reverse(order.begin(), order.end());
  if (options.order == 2)
    for (uint32_t n = groups; n > 1; n--) std::swap(order[n - 1], order[random_number() % n]);
  for (uint32_t number : order) {
    group.number = number;
    group.place[0] = group.number % shape.groups[0];
    group.place[1] = group.number / shape.groups[0] % shape.groups[1];
    group.place[2] = group.number / (shape.groups[0] * shape.groups[1]);
    // The last groups of a grid that groups do not divide are smaller.
    for (int i = 0; i < 3; i++) group.extent[i] = std::min(threads[i], grid[i] - group.place[i] * threads[i]);
    run_group(entry);
  }
  copy_back(buffers, count, footprints);
  memcpy(counted, counters, sizeof counters);
  return total;
}

MSL_EXPORT uint32_t msl_findings(const Finding** first) {
  *first = findings.data();
  return (uint32_t)findings.size();
}

MSL_EXPORT void msl_release() { release_memory(); }

// Conversion to bfloat16, which older compiler runtimes lack; the result comes back in xmm0.
asm(R"(
.text
.weak __truncsfbf2
.type __truncsfbf2,@function
__truncsfbf2:
  movd %xmm0,%eax
  movl %eax,%ecx
  andl $0x7fffffff,%ecx
  cmpl $0x7f800000,%ecx
  ja 1f
  movl %eax,%ecx
  shrl $16,%ecx
  andl $1,%ecx
  leal 0x7fff(%rax,%rcx),%eax
  shrl $16,%eax
  movd %eax,%xmm0
  ret
1:
  shrl $16,%eax
  orl $0x40,%eax
  movd %eax,%xmm0
  ret
.size __truncsfbf2,.-__truncsfbf2
)");
