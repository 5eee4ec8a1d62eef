// Programs: the driver that is not there, chips, the driver's complaints, sharing of modules.

#include "Fixture.h"

#include <cstdlib>
#include <sys/stat.h>

using namespace aligned::test;

namespace {

/// Before anything of the driver is used in this process.
struct Environment {
  Environment() { setenv("ALIGNED_LIBCUDA", ALIGNED_TEST_LIBCUDA, /*overwrite=*/0); }
} environment;

/// Runs in a process of its own, since the driver is looked for once.
void reportAvailable(const char *library) {
  setenv("ALIGNED_LIBCUDA", library, 1);
  int available = aligned_cuda_available();
  std::fprintf(stderr, "available: %d: %s\n", available, aligned_last_error());
  bool none = !aligned_cuda_device_name() && !aligned_program_load("", sidecar().c_str()) && !aligned_cuda_allocate(8) &&
              aligned_cuda_synchronize() < 0 && aligned_cuda_compute_capability() < 0 && !aligned_cuda_event();
  std::exit(none ? 0 : 1);
}

TEST(DriverDeathTest, NotThere) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(reportAvailable("/nowhere/libcuda.so.1"), testing::ExitedWithCode(0),
              "available: 0: no CUDA driver found: /nowhere/libcuda.so.1: ");
  EXPECT_EXIT(reportAvailable("libm.so.6"), testing::ExitedWithCode(0),
              "available: 0: CUDA driver too old: expected libm.so.6 to have cuInit, ");
}

TEST_F(Cuda, Device) {
  EXPECT_NE(aligned_cuda_device_name(), nullptr);
  EXPECT_GE(aligned_cuda_compute_capability(), 70);
  EXPECT_EQ(aligned_program_sites(program.get()), 2);
  aligned_program_site info;
  ASSERT_EQ(aligned_program_site_info(program.get(), 0, &info), 0);
  EXPECT_EQ(info.site, 4);
  EXPECT_EQ(info.kv_heads, 2);
  EXPECT_EQ(info.heads, 3);
  EXPECT_EQ(info.queries, 1);
  EXPECT_EQ(info.key_dim, kDim);
  EXPECT_EQ(info.certified, 0);
  EXPECT_EQ(info.records, 1);
  EXPECT_EQ(info.sink_logits, 0);
  EXPECT_EQ(info.attn_mask, 0);
  EXPECT_EQ(info.value.role, ALIGNED_ROLE_VALUE);
  aligned_program_site second;
  ASSERT_EQ(aligned_program_site_info(program.get(), 1, &second), 0);
  EXPECT_EQ(second.site, 5);
  EXPECT_EQ(second.queries, 3);
  EXPECT_EQ(second.certified, 1);
  EXPECT_EQ(second.records, 0);
  EXPECT_EQ(second.sink_logits, 1);
  EXPECT_EQ(second.attn_mask, 1);
  EXPECT_LT(aligned_program_site_info(program.get(), 2, &second), 0);
  EXPECT_STREQ(aligned_last_error(), "expected a site from 0 to 1, got 2");
  EXPECT_EQ(aligned_program_appends(program.get(), &info.key, kDim), 1);
  EXPECT_EQ(aligned_program_appends(program.get(), &info.key, 64), 0);
  EXPECT_LT(aligned_cuda_allocate(0) ? 0 : -1, 0);
  EXPECT_STREQ(aligned_last_error(), "expected at least one byte of device memory, got 0");
  EXPECT_EQ(aligned_cuda_allocate(int64_t(1) << 60), nullptr);
}

TEST_F(Cuda, Chips) {
  int has = aligned_cuda_compute_capability();
  auto load = [&](const std::string &chip) {
    return ProgramPtr(aligned_program_load(ptx().c_str(), replaced(sidecar(), "sm_70", chip).c_str()));
  };
  auto expectRefused = [&](const std::string &chip) {
    EXPECT_FALSE(load(chip));
    EXPECT_EQ(std::string(aligned_last_error()), "expected a device that runs PTX for " + chip + ", got " +
                                                     aligned_cuda_device_name() + ", which is sm_" + std::to_string(has));
  };
  std::string mine = "sm_" + std::to_string(has);
  for (const std::string &chip : {mine, mine + "a", mine + "f", std::string("sm_50")})
    EXPECT_TRUE(load(chip)) << aligned_last_error();
  expectRefused("sm_" + std::to_string(has + 10));
  expectRefused("sm_" + std::to_string(has + 1) + "f");
  expectRefused("sm_" + std::to_string(has - 1) + "a"); // what is for one chip alone runs on no newer one
  expectRefused("sm_" + std::to_string(has - 10) + "f");
  for (const char *chip : {"gfx90", "sm_", "sm_9", "sm_90x", "sm_90aa", "sm_99999"}) {
    EXPECT_FALSE(load(chip));
    EXPECT_EQ(std::string(aligned_last_error()),
              std::string("kernels.json: expected a chip such as \"sm_90\" at chip, got \"") + chip + "\"");
  }
}

TEST_F(Cuda, BadPtx) {
  ProgramPtr bad(aligned_program_load(".version 7.0\n.target sm_70\n.address_size 64\nbad syntax;\n", sidecar().c_str()));
  EXPECT_FALSE(bad);
  std::string message = aligned_last_error();
  EXPECT_EQ(message.find("expected PTX that the driver (CUDA "), 0u) << message;
  EXPECT_NE(message.find(") compiles, got: "), std::string::npos) << message;
  EXPECT_NE(message.find('\n'), std::string::npos) << "the driver's log: " << message;
  std::string renamed = sidecar();
  for (int i = 0; i < 2; ++i)
    renamed = replaced(renamed, "\"decode_values\"", "\"decode_volumes\"");
  bad.reset(aligned_program_load(ptx().c_str(), renamed.c_str()));
  EXPECT_FALSE(bad);
  EXPECT_EQ(std::string(aligned_last_error()).find("expected a kernel decode_volumes in the PTX, got: "), 0u)
      << aligned_last_error();
}

TEST_F(Cuda, ProgramsAreShared) {
  ProgramPtr second(aligned_program_load(ptx().c_str(), sidecar().c_str()));
  ASSERT_TRUE(second);
  program.reset();
  aligned_format f = formatOf(ALIGNED_ROLE_KEY);
  CachePtr cache(aligned_program_create_cache(second.get(), &f, 1, kHeads, kDim, 0));
  ASSERT_TRUE(cache) << aligned_last_error();
  second.reset(); // the cache still has its kernels
  std::vector<char> tokens = randomTokens(kHeads, 70, 1);
  int64_t strides[4] = {kHeads * 70 * kDim, 70 * kDim, kDim, 1};
  EXPECT_EQ(aligned_cache_append(cache.get(), tokens.data(), 70, strides), 0) << aligned_last_error();
  EXPECT_EQ(cache->tokens, 70);
}

TEST_F(Cuda, Folder) {
  std::string folder = testing::TempDir() + "aligned-cuda-folder";
  mkdir(folder.c_str(), 0777);
  std::remove((folder + "/kernels.json").c_str());
  std::remove((folder + "/kernels.ptx").c_str());
  ProgramPtr opened(aligned_program_open(folder.c_str()));
  EXPECT_FALSE(opened);
  EXPECT_EQ(std::string(aligned_last_error()),
            folder + "/kernels.json: expected a readable file, got: No such file or directory");
  std::ofstream(folder + "/kernels.json") << sidecar();
  opened.reset(aligned_program_open(folder.c_str()));
  EXPECT_FALSE(opened);
  EXPECT_EQ(std::string(aligned_last_error()), folder + "/kernels.ptx: expected a readable file, got: No such file or directory");
  std::ofstream(folder + "/kernels.ptx") << ptx();
  opened.reset(aligned_program_open(folder.c_str()));
  EXPECT_TRUE(opened) << aligned_last_error();
}

TEST_F(Cuda, MemoryAndEvents) {
  std::vector<char> data{1, 2, 3, 4, 5};
  DeviceData there(data);
  EXPECT_EQ(there.get<char>(5), data);
  void *from = aligned_cuda_event(), *to = aligned_cuda_event();
  ASSERT_EQ(aligned_cuda_event_record(from), 0);
  ASSERT_EQ(aligned_cuda_event_record(to), 0);
  EXPECT_GE(aligned_cuda_event_microseconds(from, to), 0);
  EXPECT_EQ(aligned_cuda_synchronize(), 0);
  aligned_cuda_event_destroy(from);
  aligned_cuda_event_destroy(to);
}

} // namespace
