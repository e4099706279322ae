// What warps access, counted by instruction: see emulator.h for the rules. Emulated in
// tests/ops/emulated/__init__.py calls the functions at the end.
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace emulated {
namespace {

constexpr int kBanks = 32, kWordBytes = 4, kSectorBytes = 32, kLineBytes = 128, kLinesTogether = 4, kMostBytes = 16;

using Site = std::tuple<uintptr_t, Access, int, int>;  // kernel, kind, line, bytes per lane

struct Count {
  long long instructions = 0, lanes = 0, wavefronts = 0, ideal_wavefronts = 0, sectors = 0, ideal_sectors = 0;
  int worst = 0;  // wavefronts of the part of a warp that takes most
};

struct Reported {
  Site site;
  int occurrence;
  uintptr_t address;
  int lane;
};

std::map<Site, Count> counts;
std::vector<std::vector<Reported>> of_thread(1024);
uintptr_t kernel;

bool is_shared(Access kind) { return kind == Access::read_shared || kind == Access::write_shared; }

// How many words the busiest bank is asked for.
int wavefronts(const std::vector<uintptr_t>& addresses, int bytes) {
  std::vector<uintptr_t> words;
  for (const uintptr_t address : addresses)
    for (uintptr_t word = address / kWordBytes; word <= (address + bytes - 1) / kWordBytes; ++word)
      words.push_back(word);
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  int of_bank[kBanks] = {};
  for (const uintptr_t word : words) ++of_bank[word % kBanks];
  return *std::max_element(of_bank, of_bank + kBanks);
}

void count_shared(Count& count, const Reported* first, const Reported* last, int bytes) {
  const int part = bytes <= 4 ? kWarp : bytes <= 8 ? kWarp / 2 : kWarp / 4;
  for (int begin = 0; begin < kWarp; begin += part) {
    std::vector<uintptr_t> addresses;
    for (const Reported* r = first; r != last; ++r)
      if (r->lane >= begin && r->lane < begin + part) addresses.push_back(r->address);
    if (addresses.empty()) continue;
    const int taken = wavefronts(addresses, bytes);
    count.wavefronts += taken;
    ++count.ideal_wavefronts;
    count.worst = std::max(count.worst, taken);
  }
}

void count_global(Count& count, const Reported* first, const Reported* last, int bytes, bool reduces) {
  std::map<uintptr_t, std::map<uintptr_t, int>> lanes_of;  // sector -> byte where an element starts -> lanes
  long long moved = 0;
  std::map<uintptr_t, bool> seen;
  for (const Reported* r = first; r != last; ++r) {
    const int step = std::min(bytes, kWordBytes);
    for (int i = 0; i < bytes; i += step) ++lanes_of[(r->address + i) / kSectorBytes][r->address + i];
    if (reduces || !seen[r->address]) moved += bytes;
    seen[r->address] = true;
  }
  for (const auto& [sector, words] : lanes_of) {
    int most = 1;
    for (const auto& [word, lanes] : words) most = std::max(most, lanes);
    count.sectors += reduces ? most : 1;
  }
  std::set<uintptr_t> lines;
  for (const auto& [sector, words] : lanes_of) lines.insert(sector * kSectorBytes / kLineBytes);
  if (!reduces) {
    count.wavefronts += int(lines.size() + kLinesTogether - 1) / kLinesTogether;
    ++count.ideal_wavefronts;
  }
  count.ideal_sectors += (moved + kSectorBytes - 1) / kSectorBytes;
}

// Who touched two bytes of shared memory since the block last met.
struct Touch {
  int thread = -1, line = 0;
  long long meetings = 0;
};

struct Cell {
  Touch write;
  std::vector<Touch> reads;  // the last one of each warp, and of another lane at the same time
};

std::unordered_map<uintptr_t, Cell> cells;
std::vector<long long> meetings(1024);            // of each thread with its warp
std::set<std::tuple<uintptr_t, int, int>> races;  // kernel and two lines

// Two accesses of which one writes race where no meeting of the block, or of their warp, lies between.
bool in_order(const Touch& a, const Touch& b) {
  if (a.thread < 0 || a.thread == b.thread) return true;
  return a.thread / kWarp == b.thread / kWarp && a.meetings != b.meetings;
}

void look_for_races(Access kind, int line, uintptr_t address, size_t bytes) {
  const int thread = current_thread();
  const Touch now{thread, line, meetings[thread]};
  for (uintptr_t at = address / 2; at < (address + bytes + 1) / 2; ++at) {
    Cell& cell = cells[at];
    if (!in_order(cell.write, now)) races.insert({kernel, cell.write.line, line});
    if (kind == Access::read_shared) {
      const auto stale = [&](const Touch& t) { return t.thread == thread || in_order(t, now); };
      const auto same_warp = [&](const Touch& t) { return t.thread / kWarp == thread / kWarp; };
      auto& reads = cell.reads;
      reads.erase(std::remove_if(reads.begin(), reads.end(), [&](auto& t) { return same_warp(t) && stale(t); }),
                  reads.end());
      if (std::count_if(reads.begin(), reads.end(), same_warp) < 2) reads.push_back(now);
    } else {
      for (const Touch& read : cell.reads)
        if (!in_order(read, now)) races.insert({kernel, read.line, line});
      cell = {now, {}};
    }
  }
}

uintptr_t library_offset(uintptr_t address) {
  Dl_info library;
  dladdr(reinterpret_cast<void*>(address), &library);
  return address - reinterpret_cast<uintptr_t>(library.dli_fbase);
}

std::string launches;

}  // namespace

void record(Access kind, int line, const void* address, size_t bytes) {
  if (is_shared(kind)) look_for_races(kind, line, reinterpret_cast<uintptr_t>(address), bytes);
  std::vector<Reported>& list = of_thread[current_thread()];
  const int each = int(std::min<size_t>(bytes, kMostBytes));
  const Site site{kernel, kind, line, each};
  for (size_t at = 0; at < bytes; at += each)
    list.push_back({site, 0, reinterpret_cast<uintptr_t>(address) + at, lane()});
}

void count_kernel(uintptr_t kernel_) {
  kernel = kernel_;
  for (auto& list : of_thread) list.clear();
}

void count_until_here(int first, unsigned mask) {
  if (!counting) return;
  std::vector<Reported> all;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    ++meetings[first + lane];
    std::map<Site, int> occurrences;
    for (Reported& r : of_thread[first + lane]) {
      r.occurrence = occurrences[r.site]++;
      all.push_back(r);
    }
    of_thread[first + lane].clear();
  }
  const auto key = [](const Reported& r) { return std::tie(r.site, r.occurrence); };
  std::stable_sort(all.begin(), all.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  for (size_t begin = 0, end; begin < all.size(); begin = end) {
    for (end = begin; end < all.size() && key(all[end]) == key(all[begin]);) ++end;
    const Site& site = all[begin].site;
    const Access kind = std::get<1>(site);
    Count& count = counts[site];
    ++count.instructions;
    count.lanes += (long long)(end - begin);
    const Reported *first = &all[begin], *last = &all[0] + end;
    const int bytes = std::get<3>(site);
    if (is_shared(kind)) {
      count_shared(count, first, last, bytes);
    } else {
      count_global(count, first, last, bytes, kind == Access::add_global);
    }
  }
}

void block_met() { cells.clear(); }

void record_launch(uintptr_t kernel, dim3 grid, dim3 block, size_t shared_bytes, const Parameters& parameters) {
  std::ostringstream out;
  out << library_offset(kernel);
  for (const dim3& size : {grid, block}) out << ' ' << size.x << ' ' << size.y << ' ' << size.z;
  out << ' ' << shared_bytes << ' ';
  for (const char byte : parameters.bytes) out << "0123456789abcdef"[byte >> 4 & 15] << "0123456789abcdef"[byte & 15];
  launches += out.str() + '\n';
}

}  // namespace emulated

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void emulated_reset_counts() {
  emulated::counts.clear();
  emulated::races.clear();
  emulated::counting = true;
}

// One line per site: the kernel's address in the library, the kind, the line, the bytes, and the numbers of Count.
EXPORTED const char* emulated_counts() {
  static std::string text;
  std::ostringstream out;
  for (const auto& [site, c] : emulated::counts)
    out << emulated::library_offset(std::get<0>(site)) << ' ' << int(std::get<1>(site)) << ' ' << std::get<2>(site)
        << ' ' << std::get<3>(site) << ' ' << c.instructions << ' ' << c.lanes << ' ' << c.wavefronts << ' '
        << c.ideal_wavefronts << ' ' << c.worst << ' ' << c.sectors << ' ' << c.ideal_sectors << '\n';
  emulated::counting = false;
  return (text = out.str()).c_str();
}

// One line per pair of lines that race: the kernel's address in the library, and the lines.
EXPORTED const char* emulated_races() {
  static std::string text;
  std::ostringstream out;
  for (const auto& [kernel, first, second] : emulated::races)
    out << emulated::library_offset(kernel) << ' ' << first << ' ' << second << '\n';
  return (text = out.str()).c_str();
}

EXPORTED void emulated_record_launches(bool only_recording) {
  emulated::launches.clear();
  emulated::only_recording = only_recording;
}

// One line per launch: the kernel's address in the library, grid, block, dynamic shared memory, the parameters in hex.
EXPORTED const char* emulated_launches() { return emulated::launches.c_str(); }
