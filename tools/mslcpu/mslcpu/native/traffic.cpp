// What the lanes of a SIMD-group ask for together: cache lines and sectors of device memory, bank conflicts
// of threadgroup memory. The n-th access of a lane at a source position is taken to be one instruction with
// the n-th of the other lanes.
#include <algorithm>

#include "checker.h"

namespace {

constexpr uint64_t kLine = 128, kSector = 32, kBanks = 32;

struct Touch {
  uint64_t address;
  uint32_t size;
};

struct Site {
  uint32_t space = 0;
  bool store = false;
  std::vector<std::vector<Touch>> instructions;
  std::vector<uint32_t> seen;  // accesses of each lane so far
};

std::vector<Site> sites;
std::vector<uint32_t> touched;

uint64_t distinct(const std::vector<Touch>& touches, uint64_t unit, std::vector<uint64_t>& found) {
  found.clear();
  for (const Touch& touch : touches)
    for (uint64_t i = touch.address / unit; i <= (touch.address + touch.size - 1) / unit; i++)
      found.push_back(i);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found.size();
}

void settle(const Site& site, const std::vector<Touch>& touches) {
  static std::vector<uint64_t> found;
  if (site.space == MSL_THREADGROUP) {
    uint64_t load[kBanks] = {};
    distinct(touches, 4, found);
    for (uint64_t word : found) load[word % kBanks]++;
    counters[kBankCycles] += *std::max_element(load, load + kBanks);
    counters[kThreadgroupInstructions]++;
  } else if (site.space == MSL_DEVICE) {
    counters[site.store ? kWriteLines : kReadLines] += distinct(touches, kLine, found);
    counters[site.store ? kWriteSectors : kReadSectors] += distinct(touches, kSector, found);
    counters[kDeviceInstructions]++;
  }
}

}  // namespace

void note_access(uint32_t number, uint64_t address, uint32_t size, uint32_t space, bool store) {
  if (number >= sites.size()) sites.resize(number + 64);
  Site& site = sites[number];
  if (site.seen.empty()) {
    site.seen.assign(kLanes, 0);
    site.space = space;
    site.store = store;
    touched.push_back(number);
  }
  uint32_t turn = site.seen[current->lane]++;
  if (turn >= site.instructions.size()) site.instructions.resize(turn + 1);
  site.instructions[turn].push_back({address, size});
}

void settle_traffic() {
  for (uint32_t number : touched) {
    Site& site = sites[number];
    for (auto& touches : site.instructions) {
      if (!touches.empty()) settle(site, touches);
      touches.clear();
    }
    site.seen.clear();
  }
  touched.clear();
}
