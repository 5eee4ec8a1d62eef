// What it costs to append one token at a time to caches of K and V: f16, fixed<4,4,8>.
//
//   aligned-append-benchmark [head_dim] [repetitions]
//
// A line for each number of kv heads, of medians in nanoseconds per token and kv head: K, V, and both in turn, as a decode step appends them. A
// repetition fills one tile, 64 tokens behind 4096 others, and then forgets it again, untimed, so that all it touches lies in cache. Cases are
// interleaved: what else the machine does meets all of them alike.
#include "aligned/Runtime/Cache.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

namespace {

constexpr int64_t kBefore = 4096;

void check(bool holds) {
  if (holds)
    return;
  std::fprintf(stderr, "aligned-append-benchmark: error: %s\n", aligned_last_error());
  std::exit(EXIT_FAILURE);
}

struct Case {
  std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)> key, value;
  std::vector<uint16_t> tokens; // [4096][kv_heads][head_dim]
  std::vector<double> times[3]; // K, V, both

  Case(int64_t heads, int64_t headDim) : key(make(ALIGNED_ROLE_KEY, heads, headDim)), value(make(ALIGNED_ROLE_VALUE, heads, headDim)) {
    std::mt19937 random(1);
    for (int64_t i = 0; i < heads * kBefore * headDim; ++i)
      tokens.push_back((random() & 0x83ff) | (12 + random() % 4) << 10); // magnitudes from 1/8 to 2
    for (aligned_cache *cache : {key.get(), value.get()})
      append(cache, 0, kBefore);
  }

  static decltype(key) make(aligned_role role, int64_t heads, int64_t headDim) {
    const aligned_format format = {ALIGNED_FORMAT_FIXED, role, ALIGNED_ELEMENT_F16, 3, {4, 4, 8}};
    decltype(key) cache(aligned_cache_create(&format, 1, heads, headDim, kBefore + ALIGNED_TILE), aligned_cache_destroy);
    check(bool(cache));
    return cache;
  }

  void append(aligned_cache *cache, int64_t first, int64_t count) {
    const int64_t channels = cache->head_dim, each = cache->kv_heads * channels, strides[] = {0, channels, each, 1};
    check(aligned_cache_append(cache, tokens.data() + first * each, count, strides) == 0);
  }

  void time(int kind) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t t = 0; t < ALIGNED_TILE; ++t) {
      if (kind != 1)
        append(key.get(), t, 1);
      if (kind != 0)
        append(value.get(), t, 1);
    }
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    times[kind].push_back(took.count() / double(ALIGNED_TILE * key->kv_heads));
    for (aligned_cache *cache : {key.get(), value.get()})
      check(aligned_cache_truncate(cache, kBefore) == 0);
  }

  double median(int kind) {
    auto middle = times[kind].begin() + times[kind].size() / 2;
    std::nth_element(times[kind].begin(), middle, times[kind].end());
    return *middle;
  }
};

} // namespace

int main(int argc, char **argv) {
  const int64_t headDim = argc > 1 ? std::atoll(argv[1]) : 64, repetitions = std::max(1ll, argc > 2 ? std::atoll(argv[2]) : 2001);
  std::vector<Case> cases;
  for (int64_t heads : {1, 3, 8})
    cases.emplace_back(heads, headDim);
  for (int64_t repetition = 0; repetition < repetitions; ++repetition)
    for (Case &each : cases)
      for (int kind : {0, 1, 2})
        each.time(kind);
  std::printf("kv heads      K      V   both\n");
  for (Case &each : cases)
    std::printf("%8lld %6.1f %6.1f %6.1f\n", (long long)each.key->kv_heads, each.median(0), each.median(1), each.median(2));
}
