// Caches on the device hold, bit by bit, what the host's hold of the same tokens.

#include "Fixture.h"

using namespace aligned::test;

namespace {

/// A cache on the device and one on the host that get the same tokens.
class Pair {
public:
  Pair(aligned_program *program, const aligned_format &format, int64_t batch, int64_t capacity = 0)
      : device(aligned_program_create_cache(program, &format, batch, kHeads, kDim, capacity)),
        host(aligned_cache_create(&format, batch, kHeads, kDim, 0)) {
    EXPECT_TRUE(device) << aligned_last_error();
  }
  Pair(aligned_program *program, const aligned_format &format, int64_t batch, int64_t physical, int64_t most)
      : device(aligned_program_create_paged_cache(program, &format, batch, kHeads, kDim, physical, most)),
        host(aligned_cache_create_paged(&format, batch, kHeads, kDim, physical, most)) {
    EXPECT_TRUE(device) << aligned_last_error();
  }

  /// From the host's memory or the device's; negative if both fail.
  int append(int64_t count, bool onDevice = false, bool special = false) {
    std::vector<char> data = randomTokens(host->format, host->rows, count, ++seed, special);
    int64_t strides[4] = {kHeads * count * kDim, count * kDim, kDim, 1};
    int there = onDevice ? aligned_cuda_cache_append_device(device.get(), DeviceData(data).memory, nullptr, count, strides)
                         : aligned_cache_append(device.get(), data.data(), count, strides);
    return check(there, aligned_cache_append(host.get(), data.data(), count, strides));
  }
  int append(const std::vector<int64_t> &counts, bool onDevice = false, bool special = false) {
    int64_t most = *std::max_element(counts.begin(), counts.end());
    std::vector<char> data = randomTokens(host->format, host->rows, most, ++seed, special);
    int64_t strides[4] = {kHeads * most * kDim, most * kDim, kDim, 1};
    int there = onDevice ? aligned_cuda_cache_append_device(device.get(), DeviceData(data).memory, counts.data(), 0, strides)
                         : aligned_cache_append_ragged(device.get(), data.data(), counts.data(), strides);
    return check(there, aligned_cache_append_ragged(host.get(), data.data(), counts.data(), strides));
  }
  void expect() const { expectDevice(device.get(), *host); }

  CachePtr device, host;

private:
  /// Both do the same, and say the same where they fail.
  static int check(int there, int here) {
    EXPECT_EQ(there, here) << aligned_last_error();
    return there;
  }
  unsigned seed = 0;
};

class EveryStorage : public Cuda, public testing::WithParamInterface<std::tuple<int, int, int>> {
protected:
  aligned_format format() const { return formatOf(std::get<0>(GetParam()), std::get<1>(GetParam()), std::get<2>(GetParam())); }
};

std::string nameOf(const testing::TestParamInfo<EveryStorage::ParamType> &info) {
  const char *kinds[] = {"Fixed", "Float"}, *roles[] = {"Key", "Value"}, *elements[] = {"F16", "BF16", "F32"};
  return std::string(kinds[std::get<0>(info.param)]) + roles[std::get<1>(info.param)] + elements[std::get<2>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(DeviceCache, EveryStorage,
                         testing::Combine(testing::Values(ALIGNED_FORMAT_FIXED, ALIGNED_FORMAT_FLOAT),
                                          testing::Values(ALIGNED_ROLE_KEY, ALIGNED_ROLE_VALUE),
                                          testing::Values(ALIGNED_ELEMENT_F16, ALIGNED_ELEMENT_BF16, ALIGNED_ELEMENT_F32)),
                         nameOf);

TEST_P(EveryStorage, AppendAndGrow) {
  Pair caches(program.get(), format(), 2);
  EXPECT_EQ(caches.device->capacity, 0);
  caches.expect();
  int64_t total = 0;
  for (int64_t count : {1, 62, 1, 70, 0, 130}) {
    ASSERT_EQ(caches.append(count, count % 3 == 1), 0);
    total += count;
    EXPECT_EQ(caches.device->tokens, total);
    EXPECT_GE(caches.device->capacity, total); // open tokens have scores, too
    caches.expect();
  }
}

TEST_P(EveryStorage, OwnLengths) {
  Pair caches(program.get(), format(), 3);
  ASSERT_EQ(caches.append(10), 0);
  EXPECT_EQ(caches.device->lengths, nullptr);
  ASSERT_EQ(caches.append({60, 0, 130}), 0);
  ASSERT_EQ(caches.append({0, 64, 3}, /*onDevice=*/true), 0);
  ASSERT_EQ(caches.append(5, true), 0);
  caches.expect();
  EXPECT_EQ(aligned_cache_length(caches.device.get(), 1), 79);
  ASSERT_EQ(aligned_cache_release(caches.device.get(), 2), 0) << aligned_last_error();
  ASSERT_EQ(aligned_cache_release(caches.host.get(), 2), 0);
  caches.expect();
  ASSERT_EQ(caches.append({1, 0, 70}), 0);
  caches.expect();
}

TEST_P(EveryStorage, Pages) {
  Pair caches(program.get(), format(), 3, /*physical=*/5, /*most=*/200);
  EXPECT_EQ(aligned_cache_free_blocks(caches.device.get()), 5);
  ASSERT_EQ(caches.append({70, 0, 130}), 0);
  ASSERT_EQ(caches.append({60, 63, 1}, true), 0);
  EXPECT_EQ(aligned_cache_free_blocks(caches.device.get()), 1);
  caches.expect();
  aligned_cache before = *caches.device;
  EXPECT_LT(caches.append({0, 1, 62}), 0);
  EXPECT_EQ(std::memcmp(&before, caches.device.get(), sizeof before), 0);
  EXPECT_LT(caches.append({200, 0, 0}), 0);
  ASSERT_EQ(caches.append({0, 1, 60}), 0);
  caches.expect();
  for (aligned_cache *cache : {caches.device.get(), caches.host.get()})
    ASSERT_EQ(aligned_cache_release(cache, 0), 0) << aligned_last_error();
  EXPECT_EQ(aligned_cache_free_blocks(caches.device.get()), 2);
  ASSERT_EQ(caches.append({128, 0, 0}, true), 0);
  caches.expect();
}

TEST_P(EveryStorage, NotFinite) {
  Pair caches(program.get(), format(), 2);
  for (int64_t count : {40, 30, 64})
    ASSERT_EQ(caches.append(count, count == 30, /*special=*/true), 0);
  EXPECT_GT(caches.host->escapes, 0);
  caches.expect();
  for (aligned_cache *cache : {caches.device.get(), caches.host.get()})
    ASSERT_EQ(aligned_cache_release(cache, 0), 0) << aligned_last_error();
  caches.expect();
}

TEST_P(EveryStorage, CloneTruncateDrop) {
  for (bool pages : {false, true}) {
    Pair caches = pages ? Pair(program.get(), format(), 2, 9, 256) : Pair(program.get(), format(), 2, 128);
    ASSERT_EQ(caches.append({140, 70}, false, true), 0);
    for (aligned_cache *cache : {caches.device.get(), caches.host.get()}) {
      EXPECT_LT(aligned_cache_truncate(cache, 127), 0);
      ASSERT_EQ(aligned_cache_truncate(cache, 130), 0);
    }
    caches.expect();
    Pair clones = pages ? Pair(program.get(), format(), 2, 0, 0) : Pair(program.get(), format(), 2);
    clones.device.reset(aligned_cache_clone(caches.device.get()));
    clones.host.reset(aligned_cache_clone(caches.host.get()));
    ASSERT_TRUE(clones.device) << aligned_last_error();
    ASSERT_EQ(caches.append({1, 60}), 0);
    clones.expect();
    caches.expect();
    int64_t bytes = aligned_cache_bytes(clones.device.get());
    for (aligned_cache *cache : {clones.device.get(), clones.host.get()})
      ASSERT_EQ(aligned_cache_drop_planes(cache, 1), 0);
    EXPECT_LT(aligned_cache_bytes(clones.device.get()), bytes);
    clones.expect();
    ASSERT_EQ(clones.append({70, 65}, true), 0);
    clones.expect();
    CachePtr again(aligned_cache_clone(clones.device.get()));
    expectDevice(again.get(), *clones.host);
  }
}

TEST_P(EveryStorage, UploadAndJoin) {
  for (bool pages : {false, true}) {
    Pair caches = pages ? Pair(program.get(), format(), 2, 9, 256) : Pair(program.get(), format(), 2);
    ASSERT_EQ(caches.append({140, 70}, false, true), 0);
    caches.device.reset(aligned_cuda_cache_upload(program.get(), caches.host.get()));
    ASSERT_TRUE(caches.device) << aligned_last_error();
    caches.expect();
    EXPECT_EQ(aligned_cache_free_blocks(caches.device.get()), pages ? 6 : 0);
    ASSERT_EQ(caches.append({10, 58}, true), 0);
    caches.expect();
    int64_t bytes = caches.host->rows * caches.host->tokens * kDim * elementBytes(format());
    std::vector<char> there(bytes), here(bytes);
    for (int bits : {4, 16}) {
      ASSERT_EQ(aligned_cache_join(caches.device.get(), bits, there.data()), 0) << aligned_last_error();
      ASSERT_EQ(aligned_cache_join(caches.host.get(), bits, here.data()), 0);
      EXPECT_EQ(there, here);
    }
  }
}

/// Tokens may lie in any order in memory.
TEST_P(EveryStorage, Strides) {
  aligned_format f = format();
  Pair caches(program.get(), f, 2);
  const int64_t count = 70;
  std::vector<char> data = randomTokens(f, 2 * kHeads, count, 7);
  int64_t strides[4] = {kDim * kHeads, kDim, kDim * kHeads * 2, 1};
  for (int i = 0; i < 3; ++i) {
    if (i == 1) // channels outermost
      strides[3] = 2 * kHeads * count, strides[2] = 1, strides[1] = count, strides[0] = kHeads * count;
    int there = i == 2 ? aligned_cuda_cache_append_device(caches.device.get(), DeviceData(data).memory, nullptr, count, strides)
                       : aligned_cache_append(caches.device.get(), data.data(), count, strides);
    ASSERT_EQ(there, 0) << aligned_last_error();
    ASSERT_EQ(aligned_cache_append(caches.host.get(), data.data(), count, strides), 0);
  }
  caches.expect();
}

const aligned_format fixedKey = formatOf(ALIGNED_FORMAT_FIXED, ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16);

TEST_F(Cuda, MoreEscapesThanRoom) {
  Pair caches(program.get(), fixedKey, 1);
  int64_t strides[4] = {0, 0, 0, 0}; // of one infinity
  uint16_t infinity = 0x7c00;
  int64_t values = kHeads * 64 * kDim; // in a block
  // From the host: there is room, since the host sees them come.
  ASSERT_EQ(aligned_cache_append(caches.device.get(), &infinity, 64, strides), 0) << aligned_last_error();
  ASSERT_EQ(aligned_cache_append(caches.host.get(), &infinity, 64, strides), 0);
  caches.expect();
  EXPECT_GE(caches.device->escape_capacity, values);
  // From the device: they come as a surprise.
  DeviceData data(std::vector<char>{0, 0x7c});
  int64_t blocks = caches.device->escape_capacity / values + 1;
  ASSERT_EQ(aligned_cuda_cache_append_device(caches.device.get(), data.memory, nullptr, 64 * blocks, strides), 0)
      << aligned_last_error();
  ASSERT_EQ(aligned_cuda_synchronize(), 0);
  std::string message = "expected at most " + std::to_string(caches.device->escape_capacity) +
                        " values that are not finite in a cache on the device, got " + std::to_string((blocks + 1) * values) +
                        ": what is beyond is lost";
  EXPECT_LT(aligned_cache_append(caches.device.get(), &infinity, 1, strides), 0);
  EXPECT_EQ(aligned_last_error(), message);
  EXPECT_FALSE(aligned_cuda_cache_download(caches.device.get()));
  EXPECT_EQ(aligned_last_error(), message);
}

TEST_F(Cuda, CreateRefuses) {
  auto refused = [&](const aligned_format &format, int64_t batch, int64_t heads, int64_t dim, int64_t capacity,
                     const std::string &expected) {
    CachePtr cache(aligned_program_create_cache(program.get(), &format, batch, heads, dim, capacity));
    EXPECT_FALSE(cache);
    EXPECT_NE(std::string(aligned_last_error()).find(expected), std::string::npos) << aligned_last_error();
  };
  refused(fixedKey, 1, 1, 64, 0,
          "expected kernels in the program that append to a key fixed<4,4,4,4> of f16, head_dim 64, got none");
  refused(fixedKey, 0, 1, kDim, 0, "expected at least one batch and head, got 0 x 1");
  refused(fixedKey, 1, 1, kDim, -1, "expected a capacity of 0 or more tokens, got -1");
  refused(fixedKey, 1, 1, kDim, int64_t(1) << 50, "more bytes of device memory, got: out of memory");
  refused(fixedKey, int64_t(1) << 40, int64_t(1) << 40, kDim, 0, "expected at least one batch and head");
  EXPECT_EQ(aligned_program_create_cache(program.get(), nullptr, 1, 1, kDim, 0), nullptr);
  EXPECT_EQ(aligned_program_create_cache(nullptr, &fixedKey, 1, 1, kDim, 0), nullptr);
  EXPECT_STREQ(aligned_last_error(), "expected a program, got null");
  EXPECT_EQ(aligned_program_create_paged_cache(program.get(), &fixedKey, 1, 1, kDim, -1, 64), nullptr);
  EXPECT_STREQ(aligned_last_error(), "expected 0 to 2147483647 pages, got -1");
}

/// What fails, for want of memory or sense, leaves the cache as it is.
TEST_F(Cuda, FailedAppendChangesNothing) {
  Pair caches(program.get(), fixedKey, 2);
  ASSERT_EQ(caches.append(100), 0);
  aligned_cache before = *caches.device;
  int64_t strides[4] = {}, counts[2] = {1, -1};
  uint16_t data[kDim] = {};
  DeviceData there{std::vector<char>(64)};
  EXPECT_LT(aligned_cache_append(caches.device.get(), data, -1, strides), 0);
  EXPECT_LT(aligned_cuda_cache_append_device(caches.device.get(), there.memory, nullptr, -1, strides), 0);
  EXPECT_LT(aligned_cuda_cache_append_device(caches.device.get(), there.memory, counts, 0, strides), 0);
  EXPECT_LT(aligned_cuda_cache_append_device(caches.device.get(), nullptr, nullptr, 1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected 1 tokens to append, got null data");
  EXPECT_LT(aligned_cuda_cache_append_device(caches.device.get(), there.memory, nullptr, 1, nullptr), 0);
  EXPECT_LT(aligned_cache_append(caches.device.get(), data, int64_t(1) << 40, strides), 0);
  EXPECT_LT(aligned_cuda_cache_append_device(caches.host.get(), there.memory, nullptr, 1, strides), 0);
  EXPECT_STREQ(aligned_last_error(), "expected a cache on the device, got a cache on the host");
  EXPECT_FALSE(aligned_cuda_cache_download(caches.host.get()));
  EXPECT_FALSE(aligned_cuda_cache_upload(program.get(), caches.device.get()));
  EXPECT_LT(aligned_cache_drop_planes(caches.device.get(), 5), 0);
  EXPECT_LT(aligned_cache_release(caches.device.get(), 2), 0);
  EXPECT_EQ(aligned_cache_length(caches.device.get(), -1), -1);
  EXPECT_EQ(std::memcmp(&before, caches.device.get(), sizeof before), 0);
  caches.expect();
}

TEST_F(Cuda, NoRoomToGrow) {
  CachePtr cache(aligned_program_create_cache(program.get(), &fixedKey, 64, 64, kDim, 0));
  ASSERT_TRUE(cache) << aligned_last_error();
  aligned_cache before = *cache;
  int64_t strides[4] = {};
  DeviceData there{std::vector<char>(64)};
  EXPECT_LT(aligned_cuda_cache_append_device(cache.get(), there.memory, nullptr, int64_t(1) << 30, strides),
            0); // a hundred terabytes
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  EXPECT_NE(std::string(aligned_last_error()).find("more bytes of device memory, got: out of memory"), std::string::npos)
      << aligned_last_error();
}

} // namespace
