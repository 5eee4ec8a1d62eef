// Caches on the device, which the compiler's kernels append to, hold bit by bit what the host's hold of the same tokens. Only NaNs are the device's own.
#include "../Handles.h"
#include "../Runtime/Caches.h"
#include "Kernels.h"

#include <cstdlib>

using namespace caches;
using aligned::test::compileAppend;
using aligned::test::DeviceData;
using aligned::test::ProgramPtr;

namespace {

/// Of each kind of cache one, compiled when it is first asked for.
aligned_program *programFor(const aligned_format &format, int64_t channels) {
  static auto *programs = new std::map<std::vector<int64_t>, ProgramPtr>;
  std::vector<int64_t> key = {format.kind, format.role, format.element, channels};
  key.insert(key.end(), format.width, format.width + ALIGNED_MAX_PLANES);
  ProgramPtr &program = (*programs)[key];
  if (!program) {
    const aligned::Program text = compileAppend(format, channels);
    program.reset(aligned_program_load(text.ptx.c_str(), text.sidecar.c_str()));
    EXPECT_TRUE(program) << aligned_last_error();
  }
  return program.get();
}

/// With one NaN for all.
Contents known(Contents contents) {
  for (auto &[token, bits] : contents.aside)
    for (uint32_t &value : bits)
      value = (value & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : value;
  return contents;
}

/// A cache on the device and one on the host that do the same.
struct Pair {
  CachePtr device, host;

  Pair(const aligned_format &format, int64_t batch, int64_t heads, int64_t channels, int64_t capacity = 0)
      : device(aligned_program_create_cache(programFor(format, channels), &format, batch, heads, channels, capacity)),
        host(aligned_cache_create(&format, batch, heads, channels, capacity)) {
    EXPECT_TRUE(device) << aligned_last_error();
  }
  Pair(const aligned_format &format, int64_t batch, int64_t heads, int64_t channels, int64_t physical, int64_t most)
      : device(aligned_program_create_paged_cache(programFor(format, channels), &format, batch, heads, channels, physical, most)),
        host(aligned_cache_create_paged(&format, batch, heads, channels, physical, most)) {
    EXPECT_TRUE(device) << aligned_last_error();
  }
  Pair(CachePtr device, CachePtr host) : device(std::move(device)), host(std::move(host)) {}

  /// Tokens [begin, end) of values, from the host's memory or the device's.
  void append(const Values &values, int64_t begin, int64_t end, int arrangement = 0, bool onDevice = false) {
    const Block block(values, begin, end, arrangement);
    const int failed = onDevice ? aligned_cuda_cache_append_device(device.get(), DeviceData(block.data).memory, nullptr, end - begin, block.strides)
                                : aligned_cache_append(device.get(), block.data.data(), end - begin, block.strides);
    ASSERT_EQ(failed, 0) << aligned_last_error();
    ASSERT_EQ(aligned_cache_append(host.get(), block.data.data(), end - begin, block.strides), 0) << aligned_last_error();
  }
  int appendRagged(const Values &values, const std::vector<int64_t> &counts, bool onDevice = false) {
    const Block block(values, 0, values.tokens);
    const int there = onDevice ? aligned_cuda_cache_append_device(device.get(), DeviceData(block.data).memory, counts.data(), 0, block.strides)
                               : aligned_cache_append_ragged(device.get(), block.data.data(), counts.data(), block.strides);
    const std::string message = aligned_last_error();
    EXPECT_EQ(aligned_cache_append_ragged(host.get(), block.data.data(), counts.data(), block.strides), there) << message;
    if (there)
      EXPECT_EQ(message, aligned_last_error());
    return there;
  }
  template <typename Body> void both(Body body) {
    ASSERT_EQ(body(device.get()), 0) << aligned_last_error();
    ASSERT_EQ(body(host.get()), 0) << aligned_last_error();
  }
  Pair fork() { return {CachePtr(aligned_cache_fork(device.get())), CachePtr(aligned_cache_fork(host.get()))}; }

  void expectSame() {
    CachePtr there(aligned_cuda_cache_download(device.get()));
    ASSERT_TRUE(there) << aligned_last_error();
    EXPECT_EQ(device->tokens, host->tokens);
    EXPECT_EQ(aligned_cache_free_pages(device.get()), aligned_cache_free_pages(host.get()));
    ASSERT_EQ(there->tokens, host->tokens);
    EXPECT_EQ(there->bias, host->bias);
    EXPECT_EQ(there->planes, host->planes);
    EXPECT_EQ(there->lengths != nullptr, host->lengths != nullptr);
    EXPECT_EQ(there->asides, host->asides);
    for (int64_t row = 0; row < host->rows && !testing::Test::HasFailure(); ++row) {
      SCOPED_TRACE("row " + std::to_string(row));
      ::caches::expectSame(known(contentsOf(*there, row)), known(contentsOf(*host, row)));
    }
    std::vector<char> mine(host->rows * host->tokens * host->head_dim * 4 + 1), its = mine;
    ASSERT_EQ(aligned_cache_unpack(device.get(), 16, mine.data()), 0) << aligned_last_error();
    ASSERT_EQ(aligned_cache_unpack(host.get(), 16, its.data()), 0);
    EXPECT_TRUE(mine == its) << "unpacked values differ";
  }
};

class Kinds : public testing::TestWithParam<EveryStorage> {
protected:
  static void SetUpTestSuite() {
    setenv("ALIGNED_LIBCUDA", ALIGNED_CUDA_EMULATOR, /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_COLLECTIVES", "0", /*overwrite=*/0); // shuffles do not order memory: barriers do
    setenv("ALIGNED_EMULATOR_UNINITIALISED", "1", /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_SHUFFLE", "1", /*overwrite=*/0);
  }
  void SetUp() override { ASSERT_EQ(aligned_cuda_synchronize(), 0) << aligned_last_error(); } // no kernel has failed yet
  aligned_format format() const { return formatOf(GetParam()); }
  int element() const { return std::get<2>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(GpuCaches, Kinds, everyStorage(), nameOf);

constexpr int64_t kBatch = 2, kHeads = 2, kChannels = 48; // blocks of 32 and 16

/// Values of which some tokens are to be kept aside.
Values specialValues(int element, int64_t batch, int64_t tokens, int64_t channels = kChannels) {
  Values values = randomValues(element, batch, kHeads, tokens, channels, 5);
  for (int64_t row = 0; row < values.rows(); ++row)
    for (int64_t t = 0; t < tokens; ++t)
      if ((t * 7 + row * 3) % 10 == 0) {
        const int64_t c = (t * 5 + row) % channels;
        const double specials[] = {NAN, INFINITY, -INFINITY, element == ALIGNED_ELEMENT_F16 ? 65504 : 1e30};
        values.set(row, t, c, specials[t % 4]);
        if (t % 3 == 0)
          values.at(row, t, (c + 1) % channels) = element == ALIGNED_ELEMENT_F32 ? 0xffc00123 : element == ALIGNED_ELEMENT_BF16 ? 0xffc1 : 0xfe01; // a NaN with a payload
      }
  return values;
}

/// A tile and more at first, which settles offsets; then tokens one by one, and tiles. Channels of all blocks that a rotation has.
TEST_P(Kinds, AppendInPieces) {
  const int64_t channels[] = {16, 48, 64, 80, 96, 128, 240, 256};
  const int which = 3 * element() + std::get<1>(GetParam()) + (format().planes + format().width[0]) / 4;
  for (int64_t d : {channels[which % 8], channels[(which + 5) % 8]}) {
    SCOPED_TRACE(std::to_string(d) + " channels");
    const Values values = randomValues(element(), kBatch, kHeads, 204, d);
    Pair caches(format(), kBatch, kHeads, d);
    caches.expectSame();
    int64_t begin = 0;
    int piece = 0;
    for (int64_t end : {70, 71, 72, 128, 204}) {
      caches.append(values, begin, end, piece % 3, piece % 2);
      caches.expectSame();
      EXPECT_GE(caches.device->capacity, end);
      begin = end;
      ++piece;
    }
  }
}

TEST_P(Kinds, FewTokensFirst) {
  const Values values = randomValues(element(), kBatch, kHeads, 90, kChannels, 3);
  Pair caches(format(), kBatch, kHeads, kChannels, 256);
  int64_t begin = 0;
  for (int64_t end : {1, 2, 64, 65, 90}) {
    caches.append(values, begin, end, 0, true);
    begin = end;
  }
  caches.expectSame();
}

/// S7, with tokens that are not finite among those that settle an offset.
TEST_P(Kinds, KeptAside) {
  const Values values = specialValues(element(), kBatch, 130);
  for (int64_t first : {1, 100}) {
    Pair caches(format(), kBatch, kHeads, kChannels);
    caches.append(values, 0, first);
    caches.append(values, first, first + 1, 1, true);
    caches.append(values, first + 1, 130, 2, first == 100);
    EXPECT_GT(caches.host->asides, 0);
    caches.expectSame();
    caches.both([](aligned_cache *cache) { return aligned_cache_truncate(cache, 77); });
    caches.expectSame();
    caches.append(values, 90, 130);
    caches.expectSame();
  }
}

TEST_P(Kinds, TruncateAndRelease) {
  const Values values = specialValues(element(), kBatch, 150), others = randomValues(element(), kBatch, kHeads, 70, kChannels, 9);
  Pair caches(format(), kBatch, kHeads, kChannels);
  caches.append(values, 0, 150);
  for (int64_t left : {149, 130, 64, 63, 1}) {
    caches.both([=](aligned_cache *cache) { return aligned_cache_truncate(cache, left); });
    caches.expectSame();
  }
  caches.append(values, 1, 80);
  caches.both([](aligned_cache *cache) { return aligned_cache_truncate_entry(cache, 1, 0); });
  caches.append(others, 0, 70, 0, true); // an offset anew for the empty entry
  caches.expectSame();
  caches.both([](aligned_cache *cache) { return aligned_cache_release(cache, 0); });
  caches.expectSame();
  caches.both([](aligned_cache *cache) { return aligned_cache_truncate(cache, 0); }); // a bias anew
  caches.expectSame();
  caches.append(others, 0, 3);
  caches.append(others, 3, 70);
  caches.expectSame();
}

TEST_P(Kinds, OwnLengths) {
  Pair caches(format(), 3, kHeads, kChannels);
  caches.append(randomValues(element(), 3, kHeads, 10, kChannels), 0, 10);
  EXPECT_EQ(caches.device->lengths, nullptr);
  EXPECT_EQ(caches.appendRagged(specialValues(element(), 3, 130), {60, 0, 130}), 0);
  EXPECT_EQ(caches.appendRagged(randomValues(element(), 3, kHeads, 64, kChannels, 2), {0, 64, 3}, true), 0);
  caches.append(randomValues(element(), 3, kHeads, 5, kChannels, 7), 0, 5, 0, true);
  caches.expectSame();
  EXPECT_EQ(aligned_cache_length(caches.device.get(), 1), 79);
  EXPECT_EQ(caches.appendRagged(randomValues(element(), 3, kHeads, 1, kChannels), {0, 0, 0}), 0);
  caches.expectSame();
}

TEST_P(Kinds, PagesAndForks) {
  Pair caches(format(), 3, kHeads, kChannels, /*physical=*/11, /*most=*/200);
  EXPECT_EQ(caches.appendRagged(specialValues(element(), 3, 130), {70, 0, 130}), 0);
  EXPECT_EQ(caches.appendRagged(randomValues(element(), 3, kHeads, 63, kChannels, 2), {55, 63, 1}, true), 0);
  caches.expectSame();
  const aligned_cache before = *caches.device;
  EXPECT_LT(caches.appendRagged(randomValues(element(), 3, kHeads, 200, kChannels), {200, 0, 0}), 0); // beyond the table
  EXPECT_EQ(std::memcmp(&before, caches.device.get(), sizeof before), 0);

  // Whoever writes to a page that others hold takes one of its own.
  Pair fork = caches.fork();
  ASSERT_TRUE(fork.device) << aligned_last_error();
  EXPECT_EQ(fork.appendRagged(randomValues(element(), 3, kHeads, 4, kChannels, 3), {1, 1, 4}, true), 0);
  EXPECT_EQ(caches.appendRagged(randomValues(element(), 3, kHeads, 3, kChannels, 4), {0, 2, 3}), 0);
  caches.expectSame();
  fork.expectSame();
  EXPECT_LT(caches.appendRagged(randomValues(element(), 3, kHeads, 70, kChannels), {70, 70, 0}), 0); // more than are free
  caches.expectSame();
  fork.both([](aligned_cache *cache) { return aligned_cache_release(cache, 2); });
  caches.both([](aligned_cache *cache) { return aligned_cache_truncate_entry(cache, 0, 64); });
  EXPECT_EQ(caches.appendRagged(randomValues(element(), 3, kHeads, 70, kChannels, 5), {70, 0, 0}), 0);
  fork.expectSame();
  caches.expectSame();
  fork.device.reset();
  fork.host.reset();
  caches.expectSame();
}

TEST_P(Kinds, ForkUploadAndDropPlanes) {
  for (bool pages : {false, true}) {
    const Values values = specialValues(element(), kBatch, 140), more = randomValues(element(), kBatch, kHeads, 70, kChannels, 4);
    Pair caches = pages ? Pair(format(), kBatch, kHeads, kChannels, 9, 256) : Pair(format(), kBatch, kHeads, kChannels);
    EXPECT_EQ(caches.appendRagged(values, {140, 70}), 0);
    Pair fork = caches.fork();
    ASSERT_TRUE(fork.device) << aligned_last_error();
    const int64_t bytes = aligned_cache_bytes(fork.device.get());
    fork.both([](aligned_cache *cache) { return aligned_cache_drop_planes(cache, 1); });
    EXPECT_LT(aligned_cache_bytes(fork.device.get()), bytes);
    fork.expectSame();
    fork.append(more, 0, 70, 0, true);
    fork.both([](aligned_cache *cache) { return aligned_cache_truncate(cache, 150); });
    fork.expectSame();
    caches.append(more, 0, 1);
    caches.expectSame();

    // What can't be seen of a cache is copied, too: both go on alike.
    CachePtr back(aligned_cuda_cache_download(caches.device.get()));
    Pair up(CachePtr(aligned_cuda_cache_upload(programFor(format(), kChannels), caches.host.get())), std::move(back));
    ASSERT_TRUE(up.device && up.host) << aligned_last_error();
    up.expectSame();
    for (aligned_cache *cache : {up.device.get(), up.host.get()}) {
      ASSERT_EQ(aligned_cache_truncate_entry(cache, 0, 0), 0) << aligned_last_error();
      ASSERT_EQ(aligned_cache_truncate_entry(cache, 1, 30), 0) << aligned_last_error();
    }
    up.append(more, 0, 70);
    up.expectSame();
  }
}

/// S3: by the first values that are not zero, of all rows and tokens that come together.
TEST_P(Kinds, BiasSettles) {
  for (double size : {0x1p-90, 0x1p90}) {
    Values values(element(), kBatch, kHeads, 80, kChannels);
    for (int64_t i = 10; i < 80; ++i)
      for (int64_t row = 0; row < values.rows(); ++row)
        for (int64_t c = 0; c < kChannels; ++c)
          values.set(row, i, c, element() == ALIGNED_ELEMENT_F16 ? 1.0 / double(i + c) : size * double((i * 5 + c + row) % 31));
    Pair caches(format(), kBatch, kHeads, kChannels);
    caches.append(values, 0, 10);
    caches.expectSame();
    caches.append(values, 10, 14, 1, true);
    caches.expectSame();
    caches.append(values, 14, 80);
    caches.expectSame();
  }
}

TEST_P(Kinds, OffsetIsSet) {
  if (!isFixedKey(format()))
    return;
  const std::vector<float> offset = someOffset(kHeads, kChannels);
  const Values values = randomValues(element(), kBatch, kHeads, 70, kChannels);
  Pair caches(format(), kBatch, kHeads, kChannels);
  auto set = [&](const float *values) { caches.both([=](aligned_cache *cache) { return aligned_cache_set_offset(cache, values); }); };
  auto fill = [&] {
    caches.append(values, 0, 70);
    caches.expectSame();
    caches.both([](aligned_cache *cache) { return aligned_cache_truncate(cache, 0); });
    caches.expectSame();
  };
  set(offset.data());
  fill();
  set(nullptr);
  fill();
}

class GpuCaches : public Kinds {};
const EveryStorage usualKey = {formats()[0], ALIGNED_ROLE_KEY, ALIGNED_ELEMENT_F16};
INSTANTIATE_TEST_SUITE_P(One, GpuCaches, testing::Values(usualKey), nameOf);

/// A step that is replayed can't know how long its caches are.
TEST_P(GpuCaches, GridsDependOnWhatComes) {
  const std::string sidecar = compileAppend(format(), kChannels).sidecar;
  for (const char *symbol : {"capacity", "tiles", "tokens", "splits"})
    EXPECT_EQ(sidecar.find(std::string("\"") + symbol + "\""), std::string::npos) << symbol;
}

TEST_P(GpuCaches, ManyTokensKeptAside) {
  Pair caches(format(), 1, kHeads, kChannels);
  Values values(element(), 1, kHeads, 300, kChannels);
  for (int64_t row = 0; row < kHeads; ++row)
    for (int64_t t = 0; t < 300; ++t)
      values.set(row, t, t % kChannels, INFINITY);
  // From the host: there is room, since the host sees them come.
  caches.append(values, 0, 200);
  caches.expectSame();
  // A few from the device: there is room for as many.
  for (int64_t t = 200; t < 220; ++t)
    caches.append(values, t, t + 1, 0, true);
  caches.expectSame();
  // Many from the device come as a surprise.
  Pair others(format(), 1, kHeads, kChannels);
  const Block block(values, 0, 300);
  ASSERT_EQ(aligned_cuda_cache_append_device(others.device.get(), DeviceData(block.data).memory, nullptr, 300, block.strides), 0) << aligned_last_error();
  ASSERT_EQ(aligned_cuda_synchronize(), 0);
  const std::string message = "expected at most 64 tokens with values that planes can't hold in a cache on the device, got 600: those beyond are lost";
  auto fails = [&](bool failed) {
    EXPECT_TRUE(failed);
    EXPECT_EQ(aligned_last_error(), message);
  };
  fails(!aligned_cuda_cache_download(others.device.get()));
  fails(aligned_cache_append(others.device.get(), block.data.data(), 1, block.strides) < 0);
  fails(aligned_cache_truncate(others.device.get(), 1) < 0);
}

} // namespace
