// Caches on the device: copies of the host's, memory and pages, and what is refused. What kernels make of tokens is tested where the compiler's are (GpuCaches).

#include "../Runtime/Caches.h"
#include "Fixture.h"

using namespace aligned::test;

namespace {

void expectSame(aligned_cache *device, const aligned_cache &expected) {
  ASSERT_EQ(device->location, ALIGNED_LOCATION_CUDA);
  const CachePtr host(aligned_cuda_cache_download(device));
  ASSERT_TRUE(host) << aligned_last_error();
  EXPECT_EQ(host->lengths != nullptr, expected.lengths != nullptr);
  EXPECT_EQ(host->pages != nullptr, expected.pages != nullptr);
  EXPECT_EQ(aligned_cache_free_pages(device), aligned_cache_free_pages(&expected));
  caches::expectSameCaches(*host, expected);
  for (int bits : {4, 16}) {
    std::vector<char> mine(expected.rows * expected.tokens * expected.head_dim * 4 + 1), its = mine;
    ASSERT_EQ(aligned_cache_unpack(device, bits, mine.data()), 0) << aligned_last_error();
    ASSERT_EQ(aligned_cache_unpack(&expected, bits, its.data()), 0);
    EXPECT_TRUE(mine == its) << bits << " bits";
  }
}

class Copies : public Cuda, public testing::WithParamInterface<caches::EveryStorage> {};
INSTANTIATE_TEST_SUITE_P(DeviceCache, Copies, caches::everyStorage(), caches::nameOf);

/// Of every kind, whether or not the program can append to it.
TEST_P(Copies, OfTheHostsAreTheSame) {
  constexpr int64_t channels = 48;
  const aligned_format format = caches::formatOf(GetParam());
  for (bool pages : {false, true}) {
    SCOPED_TRACE(pages ? "with pages" : "without pages");
    const caches::CachePtr host(pages ? aligned_cache_create_paged(&format, 2, 2, channels, 9, 256) : aligned_cache_create(&format, 2, 2, channels, 0));
    const auto upload = [&] { return CachePtr(aligned_cuda_cache_upload(program.get(), host.get())); };
    CachePtr empty = upload();
    ASSERT_TRUE(empty) << aligned_last_error();
    expectSame(empty.get(), *host);
    caches::Values values = caches::randomValues(format.element, 2, 2, 140, channels);
    values.set(1, 100, 3, INFINITY);
    values.set(2, 0, 40, NAN);
    ASSERT_EQ(caches::append(host, values, 0, 100), 0);
    CachePtr device = upload();
    ASSERT_TRUE(device) << aligned_last_error();
    expectSame(device.get(), *host);
    ASSERT_EQ(caches::append(host, values, 100, 140), 0);
    ASSERT_EQ(aligned_cache_truncate_entry(host.get(), 1, 70), 0);
    device = upload();
    ASSERT_TRUE(device) << aligned_last_error();
    expectSame(device.get(), *host);
    const CachePtr fork(aligned_cache_fork(device.get()));
    ASSERT_TRUE(fork) << aligned_last_error();
    for (aligned_cache *cache : {device.get(), static_cast<aligned_cache *>(host.get())})
      ASSERT_EQ(aligned_cache_drop_planes(cache, 1), 0) << aligned_last_error();
    expectSame(device.get(), *host);
    EXPECT_LT(aligned_cache_bytes(device.get()), aligned_cache_bytes(fork.get()));
    const CachePtr again(aligned_cache_fork(device.get()));
    device.reset();
    expectSame(again.get(), *host);
    EXPECT_LT(aligned_cache_truncate(again.get(), 3), 0);
    EXPECT_NE(std::string(aligned_last_error()).find("expected kernels in the program that append to a "), std::string::npos) << aligned_last_error();
    expectSame(again.get(), *host);
  }
}

CachePtr create(const ProgramPtr &program, int role, int64_t batch, int64_t capacity = 0) {
  const aligned_format format = formatOf(role);
  CachePtr cache(aligned_program_create_cache(program.get(), &format, batch, kHeads, kDim, capacity));
  EXPECT_TRUE(cache) << aligned_last_error();
  return cache;
}

int append(const CachePtr &cache, int64_t count) {
  const int64_t strides[4] = {kHeads * count * kDim, count * kDim, kDim, 1};
  return aligned_cache_append(cache.get(), randomTokens(cache->rows, count, 5).data(), count, strides);
}

TEST_F(Cuda, GrowsAndForgets) {
  const CachePtr cache = create(program, ALIGNED_ROLE_VALUE, 2);
  EXPECT_EQ(cache->capacity, 0);
  int64_t total = 0;
  for (int64_t count : {1, 62, 1, 70, 0, 130}) {
    ASSERT_EQ(append(cache, count), 0) << aligned_last_error();
    total += count;
    EXPECT_EQ(cache->tokens, total);
    EXPECT_GE(cache->capacity, total);
    EXPECT_EQ(cache->capacity % 64, 0);
  }
  const CachePtr host(aligned_cuda_cache_download(cache.get()));
  ASSERT_TRUE(host) << aligned_last_error();
  const std::vector<char> last = randomTokens(cache->rows, 130, 5); // the last tokens are still what they were
  std::vector<_Float16> values(cache->rows * total * kDim), expected(last.size() / 2);
  std::memcpy(expected.data(), last.data(), expected.size() * 2);
  ASSERT_EQ(aligned_cache_unpack(cache.get(), 16, values.data()), 0);
  for (int64_t row = 0; row < cache->rows; ++row)
    for (int64_t i = 0; i < 130 * kDim; ++i)
      ASSERT_NEAR(float(values[(row * total + total - 130) * kDim + i]), float(expected[row * 130 * kDim + i]), 0.02);
  ASSERT_EQ(aligned_cache_truncate(cache.get(), 100), 0) << aligned_last_error();
  EXPECT_EQ(cache->tokens, 100);
  ASSERT_EQ(aligned_cache_release(cache.get(), 1), 0) << aligned_last_error();
  EXPECT_EQ(aligned_cache_length(cache.get(), 0), 100);
  EXPECT_EQ(aligned_cache_length(cache.get(), 1), 0);
}

const aligned_format key = formatOf(ALIGNED_ROLE_KEY);

TEST_F(Cuda, CreateRefuses) {
  auto refused = [&](const aligned_format &format, int64_t batch, int64_t heads, int64_t dim, int64_t capacity, const std::string &expected) {
    CachePtr cache(aligned_program_create_cache(program.get(), &format, batch, heads, dim, capacity));
    EXPECT_FALSE(cache);
    EXPECT_NE(std::string(aligned_last_error()).find(expected), std::string::npos) << aligned_last_error();
  };
  refused(key, 1, 1, 64, 0, "expected kernels in the program that append to a key fixed<4,4,8> of f16, head_dim 64, got none");
  refused(key, 0, 1, kDim, 0, "expected at least one batch and head, got 0 x 1");
  refused(key, 1, 1, kDim, -1, "expected a capacity of 0 or more tokens, got -1");
  refused(key, 1, 1, kDim, int64_t(1) << 50, "more bytes of device memory, got: out of memory");
  refused(key, int64_t(1) << 40, int64_t(1) << 40, kDim, 0, "expected at least one batch and head");
  EXPECT_EQ(aligned_program_create_cache(program.get(), nullptr, 1, 1, kDim, 0), nullptr);
  EXPECT_EQ(aligned_program_create_cache(nullptr, &key, 1, 1, kDim, 0), nullptr);
  EXPECT_STREQ(aligned_last_error(), "expected a program, got null");
  EXPECT_EQ(aligned_program_create_paged_cache(program.get(), &key, 1, 1, kDim, -1, 64), nullptr);
  EXPECT_STREQ(aligned_last_error(), "expected 0 to 2147483647 pages, got -1");
}

/// What fails, for want of memory or sense, leaves the cache as it is.
TEST_F(Cuda, FailuresChangeNothing) {
  const CachePtr cache = create(program, ALIGNED_ROLE_KEY, 2), host(aligned_cache_create(&key, 2, kHeads, kDim, 0));
  ASSERT_EQ(append(cache, 100), 0) << aligned_last_error();
  const aligned_cache before = *cache;
  const int64_t strides[4] = {}, counts[2] = {1, -1};
  const uint16_t data[kDim] = {};
  const float offset[kHeads * kDim] = {};
  DeviceData there{std::vector<char>(64)};
  auto refused = [](int result, const std::string &message) {
    EXPECT_LT(result, 0);
    EXPECT_EQ(aligned_last_error(), message);
  };
  EXPECT_LT(aligned_cache_append(cache.get(), data, -1, strides), 0);
  refused(aligned_cuda_cache_append_device(cache.get(), there.memory, nullptr, -1, strides), "expected 0 or more tokens to append, and less than 2^31 in all, got -1");
  refused(aligned_cuda_cache_append_device(cache.get(), there.memory, counts, 0, strides), "expected 0 or more tokens to append, and less than 2^31 in all, got -1");
  refused(aligned_cuda_cache_append_device(cache.get(), nullptr, nullptr, 1, strides), "expected 1 tokens to append, got null data");
  refused(aligned_cuda_cache_append_device(cache.get(), there.memory, nullptr, 1, nullptr), "expected 1 tokens to append, got null strides");
  EXPECT_LT(aligned_cache_append(cache.get(), data, int64_t(1) << 40, strides), 0);
  refused(aligned_cuda_cache_append_device(host.get(), there.memory, nullptr, 1, strides), "expected a cache on the device, got a cache on the host");
  EXPECT_FALSE(aligned_cuda_cache_download(host.get()));
  EXPECT_FALSE(aligned_cuda_cache_upload(program.get(), cache.get()));
  EXPECT_STREQ(aligned_last_error(), "expected a cache on the host, got one in location 1");
  EXPECT_FALSE(aligned_cuda_cache_upload(program.get(), nullptr));
  EXPECT_STREQ(aligned_last_error(), "expected a cache, got null");
  refused(aligned_cache_set_offset(cache.get(), offset), "expected an empty cache, got one of 100 tokens");
  refused(aligned_cache_truncate(cache.get(), 101), "expected to keep 0 to 100 tokens, got 101");
  refused(aligned_cache_truncate_entry(cache.get(), 1, 101), "expected to keep 0 to 100 tokens of batch entry 1, got 101");
  refused(aligned_cache_keep_dense(cache.get(), 100), "expected a cache on the host, got one in location 1");
  EXPECT_LT(aligned_cache_drop_planes(cache.get(), 5), 0);
  EXPECT_LT(aligned_cache_release(cache.get(), 2), 0);
  EXPECT_EQ(aligned_cache_length(cache.get(), -1), -1);
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
}

TEST_F(Cuda, NoRoomToGrow) {
  const CachePtr cache(aligned_program_create_cache(program.get(), &key, 64, 64, kDim, 0));
  ASSERT_TRUE(cache) << aligned_last_error();
  const aligned_cache before = *cache;
  const int64_t strides[4] = {};
  DeviceData there{std::vector<char>(64)};
  EXPECT_LT(aligned_cuda_cache_append_device(cache.get(), there.memory, nullptr, int64_t(1) << 30, strides), 0); // a hundred terabytes
  EXPECT_EQ(std::memcmp(&before, cache.get(), sizeof before), 0);
  EXPECT_NE(std::string(aligned_last_error()).find("more bytes of device memory, got: out of memory"), std::string::npos) << aligned_last_error();
}

} // namespace
