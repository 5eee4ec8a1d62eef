// What was compiled once is kept on disk: entries that are whole or count for nothing, whoever else writes.
#include "JIT/ObjectCache.h"
#include "Kernels.h"

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <unistd.h>

using namespace aligned;
namespace fs = std::filesystem;

namespace {

class Caching : public testing::Test {
protected:
  Caching() : folder(fs::temp_directory_path() / ("aligned-cache-" + std::to_string(getpid()))) { say(folder.string()); }
  ~Caching() override {
    before ? setenv("ALIGNED_CACHE_DIR", before->c_str(), 1) : unsetenv("ALIGNED_CACHE_DIR");
    fs::remove_all(folder);
  }
  static void say(const std::string &place) { setenv("ALIGNED_CACHE_DIR", place.c_str(), 1); }
  std::vector<fs::path> files() const {
    std::vector<fs::path> files;
    for (const auto &file : fs::directory_iterator(folder))
      files.push_back(file.path());
    return files;
  }

  const std::optional<std::string> before = std::getenv("ALIGNED_CACHE_DIR") ? std::optional(std::string(std::getenv("ALIGNED_CACHE_DIR"))) : std::nullopt;
  const fs::path folder;
};

TEST_F(Caching, EntriesAreThoseOfTheirSource) {
  EXPECT_EQ(ObjectCache({"a", "bc"}).load(), std::nullopt);
  ObjectCache({"a", "bc"}).store("one");
  ObjectCache({"ab", "c"}).store(std::string("t\0o", 3));
  EXPECT_EQ(ObjectCache({"a", "bc"}).load(), "one");
  EXPECT_EQ(ObjectCache({"ab", "c"}).load(), std::string("t\0o", 3));
  EXPECT_EQ(ObjectCache({"abc"}).load(), std::nullopt);
  EXPECT_EQ(files().size(), 2u);
}

TEST_F(Caching, TornEntriesCountForNothing) {
  const ObjectCache cache({"source"});
  const std::string content(1000, 'x');
  cache.store(content);
  const fs::path file = files().front();
  for (size_t size : {0, 7, 15, 16, 500}) {
    fs::resize_file(file, size);
    EXPECT_EQ(cache.load(), std::nullopt) << size << " bytes";
    cache.store(content);
    EXPECT_EQ(cache.load(), content);
  }
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(300).put('y');
  EXPECT_EQ(cache.load(), std::nullopt);
}

TEST_F(Caching, IsOffOrElsewhereWhereItCannotBe) {
  say("off");
  ObjectCache({"source"}).store("content");
  EXPECT_EQ(ObjectCache({"source"}).load(), std::nullopt);
  EXPECT_FALSE(fs::exists(folder));
  std::ofstream(folder) << "a file where the folder should be";
  say(folder.string());
  ObjectCache({"source"}).store("content");
  EXPECT_EQ(ObjectCache({"source"}).load(), std::nullopt);
}

TEST_F(Caching, WritersMayRace) {
  const std::string content(1 << 16, 'z');
  std::atomic<int> whole{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        const ObjectCache cache({"source"});
        cache.store(content);
        std::optional<std::string> found = cache.load();
        found == content ? ++whole : ++wrong;
      }
    });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_EQ(whole, 400);
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(files().size(), 1u);
}

//===----------------------------------------------------------------------===//
// Modules
//===----------------------------------------------------------------------===//

/// Output of one step over three tokens.
std::vector<float> run(const std::string &options) {
  std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)> module(aligned_module_compile(kAttention, options.c_str(), nullptr), aligned_module_destroy);
  if (!module) {
    ADD_FAILURE() << aligned_last_error();
    return {};
  }
  EXPECT_EQ(aligned_module_arguments(module.get()), 3);
  EXPECT_EQ(aligned_module_attentions(module.get()), 1);
  std::vector<float> q(64), k(192), v(96);
  for (size_t i = 0; i < k.size(); ++i)
    q[i % 64] = float(i % 7) - 3, k[i] = float(i % 5) - 2, v[i % 96] = float(i % 11);
  aligned_value arguments[3] = {}, result = {};
  arguments[0].array = {q.data(), {1, 2, 1, 32}, {64, 32, 32, 1}, nullptr};
  for (int32_t i = 1; i < 3; ++i) {
    aligned_cache *cache = aligned_module_create_cache(module.get(), i, 0);
    const int64_t dim = i == 1 ? 32 : 16, strides[4] = {6 * dim, 3 * dim, dim, 1};
    EXPECT_EQ(aligned_cache_append(cache, i == 1 ? k.data() : v.data(), 3, strides), 0) << aligned_last_error();
    arguments[i].cache = cache;
  }
  EXPECT_EQ(aligned_module_call(module.get(), arguments, &result), 0) << aligned_last_error();
  std::vector<float> out(static_cast<float *>(result.array.data), static_cast<float *>(result.array.data) + 32);
  aligned_array_free(&result.array);
  for (int32_t i = 1; i < 3; ++i)
    aligned_cache_destroy(arguments[i].cache);
  return out;
}

TEST_F(Caching, ModulesAreTheSameFromDisk) {
  const std::vector<float> compiled = run("policy=tight");
  ASSERT_EQ(files().size(), 1u);
  EXPECT_EQ(run("policy=tight"), compiled);
  EXPECT_EQ(files().size(), 1u);
  std::fstream(files().front(), std::ios::in | std::ios::out | std::ios::binary).seekp(5000).put('y').put('z');
  EXPECT_EQ(run("policy=tight"), compiled);
  run("policy=fast");
  EXPECT_EQ(files().size(), 2u);
}

TEST_F(Caching, ABudgetsTextCounts) {
  const fs::path budget = fs::temp_directory_path() / ("aligned-budget-" + std::to_string(getpid()) + ".yaml");
  for (const char *tolerance : {"0.01", "0.001"}) {
    std::ofstream(budget) << "default:\n  tolerance: " << tolerance << "\n";
    run("budget=" + budget.string());
  }
  EXPECT_EQ(files().size(), 2u);
  fs::remove(budget);
}

} // namespace
