// Memory out of large pages: blocks that never overlap, are zero, and leave nothing behind.
#include "Runtime/LargePages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <random>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#if defined(__linux__)

using namespace aligned;

namespace {

struct Block {
  char *memory;
  size_t bytes;
  char mark;
};

bool isAll(const Block &block, char what) { return std::all_of(block.memory, block.memory + block.bytes, [&](char byte) { return byte == what; }); }

/// Kilobytes of memory that this process has mapped.
size_t mapped() {
  std::ifstream file("/proc/self/statm");
  size_t pages = 0;
  file >> pages;
  return pages * 4;
}

void churn(LargePages &pages, unsigned seed, int steps) {
  std::mt19937 random(seed);
  std::vector<Block> blocks;
  auto give = [&](size_t i) {
    ASSERT_TRUE(isAll(blocks[i], blocks[i].mark)) << "somebody wrote to a block of " << blocks[i].bytes << " bytes";
    pages.give(blocks[i].memory, blocks[i].bytes);
    blocks.erase(blocks.begin() + i);
  };
  for (int step = 0; step < steps; ++step) {
    if (!blocks.empty() && random() % 5 < 2) {
      give(random() % blocks.size());
      continue;
    }
    // Of every size: below a grain, between, just around a large page, and above.
    const size_t sizes[] = {1, 4096, 16384 + random() % 100000, LargePages::kPage - 1 - random() % 9000, LargePages::kPage + random() % 9000};
    Block block{nullptr, sizes[random() % 5], char(1 + random() % 100)};
    block.memory = static_cast<char *>(pages.take(block.bytes));
    ASSERT_NE(block.memory, nullptr);
    ASSERT_EQ(reinterpret_cast<uintptr_t>(block.memory) % LargePages::kGrain, 0u);
    ASSERT_TRUE(isAll(block, 0)) << block.bytes << " bytes";
    std::fill_n(block.memory, block.bytes, block.mark);
    blocks.push_back(block);
  }
  while (!blocks.empty() && !testing::Test::HasFatalFailure())
    give(random() % blocks.size());
}

TEST(LargePages, BlocksAreZeroAndNobodyElses) {
  LargePages pages;
  for (unsigned seed = 0; seed < 5; ++seed)
    churn(pages, seed, 300);
}

TEST(LargePages, AllIsGivenBack) {
  LargePages pages;
  churn(pages, 1, 100);
  const size_t before = mapped();
  for (unsigned seed = 2; seed < 6; ++seed)
    churn(pages, seed, 200);
  EXPECT_LE(mapped(), before + 4096); // of the test's own vectors
}

TEST(LargePages, NeighboursBecomeOneBlock) {
  LargePages pages;
  char *blocks[4];
  for (char *&block : blocks)
    block = static_cast<char *>(pages.take(LargePages::kPage / 4));
  for (int i : {0, 2, 1}) // the one between two others last
    pages.give(blocks[i], LargePages::kPage / 4);
  EXPECT_EQ(pages.take(LargePages::kPage * 3 / 4), blocks[0]);
  pages.give(blocks[0], LargePages::kPage * 3 / 4);
  pages.give(blocks[3], LargePages::kPage / 4);
}

TEST(LargePages, ServesThreads) {
  LargePages pages;
  std::vector<std::thread> threads;
  for (unsigned seed = 10; seed < 14; ++seed)
    threads.emplace_back([&, seed] { churn(pages, seed, 100); });
  for (std::thread &thread : threads)
    thread.join();
}

TEST(LargePages, ServesChildrenOfFork) {
  LargePages::get(); // made ahead of the forks: a child can't end what a thread that it does not have has begun
  std::atomic<bool> isDone{false};
  std::thread other([&] {
    while (!isDone) {
      void *memory = LargePages::get().take(20000);
      LargePages::get().give(memory, 20000);
    }
  });
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    if (!child) {
      alarm(10); // ends a child that waits for ever
      void *memory = LargePages::get().take(30000);
      LargePages::get().give(memory, 30000);
      _exit(memory ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  }
  isDone = true;
  other.join();
}

} // namespace

#endif
