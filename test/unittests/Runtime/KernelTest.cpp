#include "aligned/Runtime/Kernel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

/// aligned_rt_parallel with a lambda.
template <typename Body> void parallel(int64_t count, Body body) {
  aligned_rt_parallel(
      count, [](void *args, int64_t begin, int64_t end) { (*static_cast<Body *>(args))(begin, end); }, &body);
}

/// Runs the body with several sizes of the pool and leaves the pool as it was.
template <typename Body> void withThreads(Body body) {
  int32_t before = aligned_rt_threads();
  for (int32_t threads : {1, 2, 5}) {
    SCOPED_TRACE(threads);
    aligned_rt_set_threads(threads);
    EXPECT_EQ(aligned_rt_threads(), threads);
    body(threads);
  }
  aligned_rt_set_threads(before);
}

TEST(Parallel, EachItemOnce) {
  withThreads([](int) {
    for (int64_t count : {-1, 0, 1, 2, 3, 7, 63, 64, 65, 1000, 100003}) {
      std::vector<int> seen(std::max<int64_t>(count, 0));
      parallel(count, [&](int64_t begin, int64_t end) {
        ASSERT_LT(begin, end);
        for (int64_t i = begin; i < end; ++i)
          ++seen[i];
      });
      for (int times : seen)
        ASSERT_EQ(times, 1);
    }
  });
}

TEST(Parallel, FewItemsGoOneByOne) {
  aligned_rt_set_threads(3);
  std::atomic<int> ranges{0};
  parallel(7, [&](int64_t begin, int64_t end) { ++ranges; });
  EXPECT_EQ(ranges, 7);
}

/// Two items that wait for each other can only both run on two threads, of any number that the pool has.
TEST(Parallel, RunsOnSeveralThreads) {
  for (int32_t threads : {2, 5, 2}) {
    aligned_rt_set_threads(threads);
    std::atomic<int> arrived{0};
    std::vector<std::thread::id> ids(threads);
    parallel(threads, [&](int64_t begin, int64_t end) {
      ids[begin] = std::this_thread::get_id();
      ++arrived;
      while (arrived < threads)
        std::this_thread::yield();
    });
    EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), size_t(threads));
  }
}

TEST(Parallel, AtLeastOneThread) {
  aligned_rt_set_threads(-3);
  EXPECT_EQ(aligned_rt_threads(), 1);
  std::thread::id id;
  parallel(5, [&](int64_t, int64_t) { id = std::this_thread::get_id(); });
  EXPECT_EQ(id, std::this_thread::get_id());
  aligned_rt_set_threads(2);
}

/// Of what goes evenly into the threads, nested calls run in place.
TEST(Parallel, NestedCallsRunInPlace) {
  withThreads([](int threads) {
    std::atomic<int64_t> sum{0};
    parallel(17, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::thread::id outer = std::this_thread::get_id();
        parallel(100, [&](int64_t from, int64_t to) {
          if (i < 17 / threads * threads)
            EXPECT_EQ(std::this_thread::get_id(), outer);
          sum += to - from;
        });
      }
    });
    EXPECT_EQ(sum, 1700);
  });
}

/// What is left over runs in order on the calling thread, and nested calls on all threads: as many items as these, which wait for one another.
TEST(Parallel, LeftOverItemsUseAllThreadsInside) {
  withThreads([](int threads) {
    for (int64_t even : {0, threads, 3 * threads}) {
      std::vector<int64_t> leftOver;
      std::atomic<int64_t> shared{0};
      parallel(even + threads - 1, [&](int64_t begin, int64_t end) {
        if (begin < even) {
          EXPECT_LE(end, even);
          shared += end - begin;
          return;
        }
        EXPECT_EQ(shared, even) << "what is shared comes first";
        EXPECT_EQ(end, begin + 1);
        leftOver.push_back(begin - even);
        std::atomic<int> arrived{0};
        std::vector<std::thread::id> ids(threads);
        parallel(threads, [&](int64_t from, int64_t to) {
          ASSERT_EQ(to, from + 1);
          ids[from] = std::this_thread::get_id();
          ++arrived;
          while (arrived < threads)
            std::this_thread::yield();
        });
        EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), size_t(threads));
      });
      std::vector<int64_t> expected(threads - 1);
      std::iota(expected.begin(), expected.end(), 0);
      EXPECT_EQ(leftOver, expected);
    }
  });
}

/// Three deep: rows, splits and what is in a split.
TEST(Parallel, NestsDeeply) {
  withThreads([](int) {
    std::vector<std::atomic<int>> seen(7 * 11 * 13);
    parallel(7, [&](int64_t rowBegin, int64_t rowEnd) {
      for (int64_t row = rowBegin; row < rowEnd; ++row)
        parallel(11, [&](int64_t begin, int64_t end) {
          for (int64_t split = begin; split < end; ++split)
            parallel(13, [&](int64_t from, int64_t to) {
              for (int64_t i = from; i < to; ++i)
                ++seen[(row * 11 + split) * 13 + i];
            });
        });
    });
    for (std::atomic<int> &times : seen)
      ASSERT_EQ(times, 1);
  });
}

TEST(Parallel, ConcurrentCallers) {
  withThreads([](int) {
    std::vector<std::thread> callers;
    std::atomic<int> wrong{0};
    for (int caller = 0; caller < 4; ++caller)
      callers.emplace_back([&wrong, caller] {
        for (int repeat = 0; repeat < 200; ++repeat) {
          int64_t count = 1 + (caller * 97 + repeat) % 50;
          std::atomic<int64_t> sum{0};
          parallel(count, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
              sum += i + 1;
          });
          wrong += sum != count * (count + 1) / 2;
        }
      });
    for (std::thread &caller : callers)
      caller.join();
    EXPECT_EQ(wrong, 0);
  });
}

#if !defined(__SANITIZE_THREAD__)
/// A child has none of its parent's threads, and leaves without waiting for any.
TEST(Parallel, AfterFork) {
  aligned_rt_set_threads(3);
  parallel(100, [](int64_t, int64_t) {});
  pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    aligned_rt_set_threads(3);
    std::atomic<int64_t> sum{0};
    parallel(1000, [&](int64_t begin, int64_t end) { sum += end - begin; });
    _exit(sum == 1000 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}
#endif

// Sleeping takes at least as long as was asked for; how much longer is the machine's business.
TEST(Laps, AreOfThePartThatEnds) {
  double ns[ALIGNED_PARTS];
  aligned_rt_take_laps(ns);
  std::this_thread::sleep_for(std::chrono::milliseconds(3));
  aligned_rt_lap(ALIGNED_PART_SCAN);
  std::thread([] { // whose time begins with its first call
    aligned_rt_lap(ALIGNED_PART_CALL);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    aligned_rt_lap(ALIGNED_PART_ADD);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    aligned_rt_lap(ALIGNED_PART_ADD);
  }).join();
  aligned_rt_take_laps(ns);
  EXPECT_GE(ns[ALIGNED_PART_SCAN], 2.9e6); // clocks differ a little
  EXPECT_GE(ns[ALIGNED_PART_ADD], 3.9e6);
  EXPECT_LT(ns[ALIGNED_PART_CALL], 100e6);
  for (int part : {ALIGNED_PART_PREPARE, ALIGNED_PART_RULE, ALIGNED_PART_LIST, ALIGNED_PART_REFINE, ALIGNED_PART_WEIGH, ALIGNED_PART_FINISH})
    EXPECT_EQ(ns[part], 0);
  aligned_rt_take_laps(ns);
  EXPECT_EQ(ns[ALIGNED_PART_SCAN], 0);
}

// A worker's waiting is nobody's part.
TEST(Laps, WaitingIsNotCounted) {
  withThreads([](int32_t threads) {
    // Every thread takes one range: nobody leaves its own before all are in one.
    auto together = [threads](auto work) {
      std::atomic<int> entered = 0;
      parallel(threads, [&](int64_t, int64_t) {
        for (++entered; entered < threads;)
          std::this_thread::yield();
        work();
      });
    };
    together([] { aligned_rt_lap(ALIGNED_PART_SCAN); });
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    double ns[ALIGNED_PARTS];
    aligned_rt_take_laps(ns);
    together([] { aligned_rt_lap(ALIGNED_PART_SCAN); });
    aligned_rt_take_laps(ns);
    EXPECT_LT(ns[ALIGNED_PART_SCAN], 150e6);
  });
}

TEST(Scratch, GrowsPerThread) {
  void *first = aligned_rt_scratch(100);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % 64, 0u);
  std::memset(first, 1, 100);
  EXPECT_EQ(aligned_rt_scratch(50), first);
  void *large = aligned_rt_scratch(1 << 22);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(large) % 64, 0u);
  std::memset(large, 2, 1 << 22);
  EXPECT_EQ(aligned_rt_scratch(100), large);
  EXPECT_NE(aligned_rt_scratch(0), nullptr);
  std::thread([large] {
    void *other = aligned_rt_scratch(0);
    EXPECT_NE(other, nullptr);
    EXPECT_NE(other, large);
  }).join();
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(ScratchDeathTest, OutOfMemory) {
  EXPECT_EXIT(aligned_rt_scratch(int64_t(1) << 60), testing::ExitedWithCode(1),
              "out of memory: expected 1152921504606846976 bytes");
}
#endif

TEST(Tally, TravelsToWorkers) {
  withThreads([](int) {
    aligned_tally list[2] = {};
    aligned_rt_record(list, 2);
    parallel(1000, [](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        aligned_rt_tally(int32_t(i % 3), i, 10, 2 * i, 20); // attention 2 is not in the list
    });
    aligned_rt_record(nullptr, 2);
    aligned_rt_tally(0, 1, 1, 1, 1);
    int64_t sums[2] = {}, rows[2] = {};
    for (int64_t i = 0; i < 1000; ++i)
      if (i % 3 < 2)
        sums[i % 3] += i, ++rows[i % 3];
    for (int attention = 0; attention < 2; ++attention) {
      EXPECT_EQ(list[attention].key_bits, sums[attention]);
      EXPECT_EQ(list[attention].value_bits, 2 * sums[attention]);
      EXPECT_EQ(list[attention].key_values, 10 * rows[attention]);
      EXPECT_EQ(list[attention].value_values, 20 * rows[attention]);
      EXPECT_EQ(list[attention].rows, rows[attention]);
    }
  });
}

/// Lists belong to threads: two callers at once do not mix, though they share the workers.
TEST(Tally, CallersDoNotMix) {
  aligned_rt_set_threads(3);
  aligned_tally lists[4] = {};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&lists, caller] {
      if (caller)
        aligned_rt_record(&lists[caller], 1);
      for (int repeat = 0; repeat < 50; ++repeat)
        parallel(20, [caller](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i)
            aligned_rt_tally(0, caller, 1, 1, 1);
        });
    });
  for (std::thread &caller : callers)
    caller.join();
  for (int caller = 0; caller < 4; ++caller) {
    EXPECT_EQ(lists[caller].key_bits, caller * 1000);
    EXPECT_EQ(lists[caller].rows, caller ? 1000 : 0);
  }
}

/// Grouped heads and values of another size than the keys, against weights that can be told beforehand: a query selects tokens by
/// one channel, which makes ln 3 of difference, so that of 3 tokens the chosen one weighs 3/5.
TEST(ReferenceAttention, GroupedHeads) {
  const int64_t batch = 2, qHeads = 6, kvHeads = 2, queries = 3, tokens = 3, keyDim = 4, valueDim = 2;
  std::vector<float> q(batch * qHeads * queries * keyDim), k(batch * kvHeads * tokens * keyDim),
      v(batch * kvHeads * tokens * valueDim);
  std::vector<float> out(batch * qHeads * queries * valueDim, -1);
  for (int64_t row = 0; row < batch * qHeads * queries; ++row)
    q[row * keyDim + row % queries] = 2 * std::log(3.0f);
  for (int64_t row = 0; row < batch * kvHeads; ++row)
    for (int64_t t = 0; t < tokens; ++t) {
      k[(row * tokens + t) * keyDim + t] = 1;
      v[(row * tokens + t) * valueDim] = float(10 * row + t);
      v[(row * tokens + t) * valueDim + 1] = 1;
    }
  aligned_rt_reference_attention(q.data(), k.data(), v.data(), out.data(), ALIGNED_ELEMENT_F32, batch, qHeads, kvHeads, queries,
                                 tokens, keyDim, valueDim, 0.5f, 0, 0, 0, 0, 0, nullptr, 0, nullptr);
  for (int64_t row = 0; row < batch * qHeads * queries; ++row) {
    int64_t kvRow = row / queries / 3, chosen = row % queries; // 3 query heads share a kv head
    EXPECT_FLOAT_EQ(out[row * valueDim], 10 * kvRow + (3.0f + 2 * chosen) / 5);
    EXPECT_FLOAT_EQ(out[row * valueDim + 1], 1);
  }
}

TEST(ReferenceAttention, NonFinite) {
  const float infinity = INFINITY;
  auto attend = [](float key0, float key1, float value0, int32_t maskedZero) {
    const float q = 1, k[] = {key0, key1}, v[] = {value0, 5};
    float out = -1;
    aligned_rt_reference_attention(&q, k, v, &out, ALIGNED_ELEMENT_F32, 1, 1, 1, 1, 2, 1, 1, 1, maskedZero, 0, 0, 0, 0, nullptr, 0, nullptr);
    return out;
  };
  EXPECT_EQ(attend(-infinity, 0, 1, 0), 5);
  EXPECT_TRUE(std::isnan(attend(-infinity, -infinity, 1, 0)));
  EXPECT_EQ(attend(-infinity, -infinity, 1, 1), 0);
  EXPECT_TRUE(std::isnan(attend(NAN, -infinity, 1, 1)));
  EXPECT_TRUE(std::isnan(attend(0, infinity, 1, 1)));
  EXPECT_EQ(attend(0, 0, infinity, 0), infinity);
  EXPECT_TRUE(std::isnan(attend(-infinity, 0, infinity, 0))); // 0 * inf, as in dense attention
}

/// Equal scores: a row is the mean of what it sees. Two kv heads of two query heads with three queries each, over five tokens of value 1, 10, 100, ...
TEST(ReferenceAttention, Masks) {
  const float q[12] = {}, k[10] = {}, v[10] = {1, 10, 100, 1000, 10000, 2, 20, 200, 2000, 20000};
  auto attend = [&](int32_t causal, int64_t window, int64_t sinks) {
    std::vector<float> out(12);
    aligned_rt_reference_attention(q, k, v, out.data(), ALIGNED_ELEMENT_F32, 1, 4, 2, 3, 5, 1, 1, 1, 0, causal, window, sinks, 0, nullptr, 0, nullptr);
    for (int i = 0; i < 3; ++i) { // the other query head of the group, and the other kv head
      EXPECT_EQ(out[3 + i], out[i]);
      EXPECT_EQ(out[6 + i], 2 * out[i]);
    }
    return std::vector<float>(out.begin(), out.begin() + 3);
  };
  EXPECT_EQ(attend(0, 0, 0), std::vector<float>(3, 11111.0f / 5));
  EXPECT_EQ(attend(1, 0, 0), (std::vector<float>{111 / 3.0f, 1111 / 4.0f, 11111 / 5.0f}));
  EXPECT_EQ(attend(1, 2, 0), (std::vector<float>{110 / 2.0f, 1100 / 2.0f, 11000 / 2.0f}));
  EXPECT_EQ(attend(0, 2, 0), (std::vector<float>{11110 / 4.0f, 11100 / 3.0f, 11000 / 2.0f}));
  EXPECT_EQ(attend(1, 1, 2), (std::vector<float>{111 / 3.0f, 1011 / 3.0f, 10011 / 3.0f}));
}

TEST(ReferenceAttention, Softcap) {
  const float q = 1, k[] = {0, 6}, v[] = {0, 1};
  float out = -1;
  aligned_rt_reference_attention(&q, k, v, &out, ALIGNED_ELEMENT_F32, 1, 1, 1, 1, 2, 1, 1, 0.5f, 0, 0, 0, 0, 2.0, nullptr, 0, nullptr);
  EXPECT_FLOAT_EQ(out, float(1 / (1 + std::exp(-2 * std::tanh(1.5)))));
}

/// Numbers that are added, each query head with its own, and logits without a value: the second query head does not see the first token.
TEST(Reference, TakesMasksByNumbersAndSinks) {
  const float q[] = {0, 0}, k[] = {0, 0}, v[] = {1, 5}, mask[] = {0, 0, -INFINITY, 0}, sinks[] = {std::log(2.0f), -INFINITY};
  float out[2];
  aligned_rt_reference_attention(q, k, v, out, ALIGNED_ELEMENT_F32, 1, 2, 1, 1, 2, 1, 1, 1, 0, 0, 0, 0, 0, mask, /*mask_dims=*/2, sinks);
  EXPECT_FLOAT_EQ(out[0], 6.0f / 4); // 1 + 1 + 2 in the sum
  EXPECT_FLOAT_EQ(out[1], 5);
}

/// The result is rounded to the element type once.
TEST(ReferenceAttention, SmallElements) {
  const uint16_t one = 0x3c00, values[] = {0x3c00, 0x3c01, 0x3c01}; // 1, 1 + 2^-10 twice: the mean is nearer to the latter
  const uint16_t keys[] = {one, one, one};
  uint16_t out = 0;
  aligned_rt_reference_attention(&one, keys, values, &out, ALIGNED_ELEMENT_F16, 1, 1, 1, 1, 3, 1, 1, 1, 0, 0, 0, 0, 0, nullptr, 0, nullptr);
  EXPECT_EQ(out, 0x3c01);
  const uint16_t zero = 0, brain[] = {0x3f80, 0x4000, 0x4000}; // (1 + 2 + 2) / 3 = 1.1010101 | 0101.. in binary
  aligned_rt_reference_attention(&zero, brain, brain, &out, ALIGNED_ELEMENT_BF16, 1, 1, 1, 1, 3, 1, 1, 1, 0, 0, 0, 0, 0, nullptr, 0, nullptr);
  EXPECT_EQ(out, 0x3fd5);
}

} // namespace
