// What an interpreter can prove of kernels that no numbers show: that every barrier is needed and there, and that no more of the planes is read than a policy calls for.
#include "aligned/JIT/Module.h"
#include "aligned/Runtime/Cuda.h"

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/MemoryBuffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

constexpr int64_t kKeyDim = 64;

struct Kernels {
  std::string ptx, sidecar;
};

Kernels compile(int64_t group, int64_t valueDim, const std::string &options, int64_t keyDim = kKeyDim) {
  auto type = [&](int64_t heads, const char *tokens, int64_t dim) { return "tensor<1x" + std::to_string(heads) + "x" + tokens + "x" + std::to_string(dim) + "xf16>"; };
  std::string q = type(group, "1", keyDim), k = type(1, "?", keyDim), v = type(1, "?", valueDim), out = type(group, "1", valueDim);
  std::string source = "func.func @step(%q: " + q + ", %k: " + k + ", %v: " + v + ") -> " + out + " {\n  %scale = arith.constant 0.125 : f32\n  %out = aligned.attention %q, %k, %v scale %scale : " + q + ", " + k + ", " + v +
                       " -> " + out + "\n  return %out : " + out + "\n}\n";
  char *ptx = nullptr, *sidecar = nullptr;
  EXPECT_EQ(aligned_compile_kernels(source.c_str(), options.c_str(), &ptx, &sidecar), 0) << aligned_last_error();
  Kernels kernels{ptx ? ptx : "", sidecar ? sidecar : ""};
  aligned_text_free(ptx);
  aligned_text_free(sidecar);
  return kernels;
}

using Program = std::unique_ptr<aligned_program, decltype(&aligned_program_destroy)>;
using Cache = std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>;

class Proof : public testing::Test {
protected:
  static void SetUpTestSuite() {
    setenv("ALIGNED_LIBCUDA", ALIGNED_CUDA_EMULATOR, /*overwrite=*/0);
    setenv("ALIGNED_EMULATOR_COLLECTIVES", "0", /*overwrite=*/0); // shuffles do not order memory: barriers do
    setenv("ALIGNED_EMULATOR_SMS", "1", /*overwrite=*/0);         // few splits, so that warps have several blocks
    counts = testing::TempDir() + "aligned-counts-" + std::to_string(getpid());
    setenv("ALIGNED_EMULATOR_COUNTS", counts.c_str(), /*overwrite=*/1); // read once, when the driver starts: this program's tests share it
    driver = dlopen(ALIGNED_CUDA_EMULATOR, RTLD_NOW | RTLD_LOCAL);
    ASSERT_TRUE(driver) << dlerror();
  }
  static void TearDownTestSuite() { llvm::sys::fs::remove(counts); }

  template <typename Function> static Function entry(const char *name) { return reinterpret_cast<Function>(dlsym(driver, name)); }
  static void reset() { entry<void (*)()>("aligned_emulator_reset")(); }
  static void nameAllocation(const void *base, const std::string &name) {
    entry<void (*)(uint64_t, const char *)>("aligned_emulator_name")(reinterpret_cast<uint64_t>(base), name.c_str());
  }

  struct Step {
    std::vector<float> acc;
    aligned_tally tally = {};
    std::string error; ///< what failed, if anything did
  };

  struct Data {
    int64_t tokens;
    bool escapes = false; ///< whether a value of K and one of V are infinite
    bool flat = false;    ///< if not, every second block has small keys and with them small probabilities; if so, all tokens have about the same probability, but for four of each block, which have none
  };

  /// Appends in two parts and decodes; planes get names that begin with `names`.
  static Step step(const Program &program, const Data &data, const char *names = nullptr) {
    int64_t tokens = data.tokens;
    Step result;
    std::mt19937 random(17);
    std::normal_distribution<float> normal;
    aligned_program_site site;
    EXPECT_EQ(aligned_program_site_info(program.get(), 0, &site), 0);
    auto halves = [&](int64_t rows, int64_t dim, auto scale) {
      std::vector<uint16_t> values;
      for (int64_t i = 0; i < rows * dim; ++i) {
        _Float16 half = static_cast<_Float16>(normal(random) * scale(i / dim, i % dim));
        values.emplace_back();
        memcpy(&values.back(), &half, 2);
      }
      return values;
    };
    auto q = halves(site.heads, site.key_dim, [&](int64_t, int64_t c) { return data.flat ? 0.2f : c % 5 ? 2.0f : 0.1f; });
    auto k = halves(tokens, site.key_dim, [](int64_t t, int64_t c) { return (c == 3 ? 8.0f : c < 8 ? 0.05f : 1.0f) * (t / 64 % 2 ? 0.02f : 1.0f); });
    auto v = halves(tokens, site.value_dim, [](int64_t t, int64_t) { return t % 17 ? 1.0f : 6.0f; });
    for (int64_t i = 0; data.flat && i < tokens * site.key_dim; ++i)
      if (i / site.key_dim % 16 == 5) {
        _Float16 opposite;
        memcpy(&opposite, &q[i % site.key_dim], 2);
        opposite = static_cast<_Float16>(opposite * -300);
        memcpy(&k[i], &opposite, 2);
      }
    if (data.escapes)
      k[70 * site.key_dim + 3] = v[70 * site.value_dim + 5] = 0x7c00;
    std::vector<Cache> caches;
    auto fail = [&] {
      result.error = aligned_last_error();
      return result;
    };
    if (site.key.kind == ALIGNED_FORMAT_DENSE)
      return denseStep(program, site, tokens, q, k, v, names);
    for (bool isValue : {false, true}) {
      caches.emplace_back(aligned_program_create_cache(program.get(), isValue ? &site.value : &site.key, 1, 1, isValue ? site.value_dim : site.key_dim, tokens), aligned_cache_destroy);
      aligned_cache *cache = caches.back().get();
      if (!cache)
        return fail();
      int64_t dim = cache->head_dim, strides[] = {tokens * dim, tokens * dim, dim, 1}, first = tokens * 2 / 3;
      const uint16_t *values = (isValue ? v : k).data();
      if (aligned_cache_append(cache, values, first, strides) || aligned_cache_append(cache, values + first * dim, tokens - first, strides))
        return fail();
      for (int plane = 0; names && plane < ALIGNED_MAX_PLANES; ++plane)
        nameAllocation(cache->plane[plane], std::string(names) + (isValue ? "value" : "key"));
    }
    result.acc.resize(site.heads * site.value_dim);
    aligned_decode_call call = {};
    call.batch = 1;
    call.key = caches[0].get();
    call.value = caches[1].get();
    call.query = q.data();
    call.scale = 0.125f;
    call.acc = result.acc.data();
    aligned_rt_record(&result.tally, 1);
    int failed = aligned_program_decode(program.get(), 0, &call);
    aligned_rt_record(nullptr, 0);
    return failed ? fail() : result;
  }

  /// The same over arrays on the device.
  static Step denseStep(const Program &program, const aligned_program_site &site, int64_t tokens, const std::vector<uint16_t> &q, const std::vector<uint16_t> &k, const std::vector<uint16_t> &v,
                        const char *names) {
    Step result;
    std::vector<std::unique_ptr<void, decltype(&aligned_cuda_free)>> memory;
    auto onDevice = [&](const void *data, int64_t bytes, const char *name = nullptr) {
      memory.emplace_back(aligned_cuda_allocate(bytes), aligned_cuda_free);
      if (data)
        EXPECT_EQ(aligned_cuda_copy_to_device(memory.back().get(), data, bytes), 0) << aligned_last_error();
      if (names && name)
        nameAllocation(memory.back().get(), std::string(names) + name);
      return memory.back().get();
    };
    auto bytesOf = [](const std::vector<uint16_t> &values) { return static_cast<int64_t>(2 * values.size()); };
    result.acc.resize(site.heads * site.value_dim);
    aligned_decode_call call = {};
    call.batch = 1;
    call.location = ALIGNED_LOCATION_CUDA;
    call.query = onDevice(q.data(), bytesOf(q));
    call.dense_key = onDevice(k.data(), bytesOf(k), "key");
    call.dense_value = onDevice(v.data(), bytesOf(v), "value");
    call.lengths = static_cast<int64_t *>(onDevice(&tokens, sizeof tokens));
    call.capacity = tokens;
    call.scale = 0.125f;
    call.acc = static_cast<float *>(onDevice(nullptr, result.acc.size() * sizeof(float)));
    aligned_rt_record(&result.tally, 1);
    int failed = aligned_program_decode(program.get(), 0, &call);
    aligned_rt_record(nullptr, 0);
    if (failed || aligned_cuda_copy_to_host(result.acc.data(), call.acc, result.acc.size() * sizeof(float)))
      result.error = aligned_last_error();
    return result;
  }

  /// What the launches of a kernel counted since `counts` was last removed.
  struct Count {
    int64_t instructions = 0, columns = 0; ///< of all launches; of the last one's grid
    std::map<std::string, int64_t> bytes; ///< of distinct sectors that were read, by allocation
  };
  static std::map<std::string, Count> readCounts() {
    std::map<std::string, Count> kernels;
    auto file = llvm::MemoryBuffer::getFile(counts);
    EXPECT_TRUE(bool(file));
    llvm::StringRef rest = file ? (*file)->getBuffer() : "";
    while (!rest.empty()) {
      auto [line, after] = rest.split('\n');
      rest = after;
      llvm::Expected<llvm::json::Value> launch = llvm::json::parse(line);
      EXPECT_TRUE(bool(launch));
      Count &count = kernels[launch->getAsObject()->getString("kernel")->str()];
      count.instructions += *launch->getAsObject()->getInteger("warp_instructions");
      count.columns = *(*launch->getAsObject()->getArray("grid"))[0].getAsInteger();
      for (const llvm::json::Value &allocation : *launch->getAsObject()->getArray("allocations"))
        count.bytes[allocation.getAsObject()->getString("name")->str()] += 32 * *allocation.getAsObject()->getObject("read")->getInteger("distinct");
    }
    return kernels;
  }

  static inline std::string counts;
  static inline void *driver = nullptr;
};

std::string replaced(std::string text, const std::string &what, const std::string &by) {
  size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

Program load(const Kernels &kernels) { return Program(aligned_program_load(kernels.ptx.c_str(), kernels.sidecar.c_str()), aligned_program_destroy); }

/// Without any one of them a race is found or the result is another, in some of the runs that have it.
TEST_F(Proof, EveryBarrierIsNeeded) {
  struct Run {
    int64_t group, valueDim;
    const char *options;
    Data data;
  };
  std::map<std::string, bool> needed; // kernels of one kind have the same barriers in the same order
  for (const Run &run : {Run{8, 64, "policy=tight certify", {1000, true}}, Run{3, 64, "policy=balanced", {1000, true}}, Run{16, 64, "policy=fast", {1000, true}}, Run{1, 64, "policy=budget tolerance=1e-4", {1700, false, true}},
                         Run{3, 128, "policy=alignedkv", {1000, true}}, Run{8, 128, "policy=alignedkv", {1000, true}}, Run{3, 64, "format=dense", {1000}}, Run{16, 128, "format=dense", {1000}}}) {
    SCOPED_TRACE(std::string(run.options) + ", " + std::to_string(run.group) + " query heads");
    std::string options = run.options, storage = options == "policy=alignedkv" ? " of float planes" : options == "format=dense" ? " of dense caches" : "";
    Kernels kernels = compile(run.group, run.valueDim, run.options);
    Program program = load(kernels);
    ASSERT_TRUE(program) << aligned_last_error();
    Step whole = step(program, run.data);
    ASSERT_EQ(whole.error, "");
    std::string kernel;
    int inKernel = 0;
    for (size_t at = 0, end; at < kernels.ptx.size(); at = end + 1) {
      end = std::min(kernels.ptx.find('\n', at), kernels.ptx.size());
      llvm::StringRef line = llvm::StringRef(kernels.ptx).slice(at, end).trim();
      if (line.consume_front(".visible .entry ")) {
        kernel = line.take_until([](char c) { return c == '('; }).str() + storage;
        inKernel = 0;
      }
      if (!line.starts_with("bar.") && !line.starts_with("barrier."))
        continue;
      Kernels without = kernels;
      without.ptx.replace(at, end - at, end - at, ' ');
      Program mutant = load(without);
      ASSERT_TRUE(mutant) << aligned_last_error();
      testing::internal::CaptureStderr(); // the interpreter says what it finds
      Step other = step(mutant, run.data);
      testing::internal::GetCapturedStderr();
      mutant.reset();
      reset();
      needed[kernel + ": number " + std::to_string(++inKernel)] |=
          !other.error.empty() || memcmp(other.acc.data(), whole.acc.data(), whole.acc.size() * sizeof(float)) != 0;
    }
  }
  EXPECT_GT(needed.size(), 30u);
  for (const auto &[barrier, isNeeded] : needed)
    EXPECT_TRUE(isNeeded) << barrier;
}

/// Chained launches give the same, and each kernel but the first of a list has to wait for the one ahead of it: without that it meets global memory that is not its own yet.
TEST_F(Proof, EveryWaitIsNeeded) {
  for (const char *options : {"policy=tight certify", "policy=alignedkv", "format=dense"}) {
    SCOPED_TRACE(options);
    Kernels kernels = compile(3, 64, options);
    const Data data{200, true};
    Step whole = step(load(kernels), data);
    ASSERT_EQ(whole.error, "");
    kernels.sidecar = replaced(kernels.sidecar, "\"chained\": 0", "\"chained\": 1");
    Step chained = step(load(kernels), data);
    ASSERT_EQ(chained.error, "");
    EXPECT_EQ(memcmp(chained.acc.data(), whole.acc.data(), whole.acc.size() * sizeof(float)), 0); // some are NaN
    for (size_t at = 0; (at = kernels.ptx.find("griddepcontrol.wait;", at)) != std::string::npos; ++at) {
      size_t name = kernels.ptx.rfind(".entry ", at) + 7;
      std::string kernel = kernels.ptx.substr(name, kernels.ptx.find('(', name) - name), phase = kernel.substr(kernel.find('_') + 1);
      Kernels without = kernels;
      without.ptx.insert(at, "//");
      Program mutant = load(without);
      ASSERT_TRUE(mutant) << aligned_last_error();
      testing::internal::CaptureStderr(); // the interpreter says what it finds
      Step other = step(mutant, data);
      std::string said = testing::internal::GetCapturedStderr();
      bool isFirst = phase == "scores" || phase == "scan" || phase == "split";
      EXPECT_EQ(said.find(kernel + ": line") != std::string::npos && said.find(" before griddepcontrol.wait") != std::string::npos, !isFirst) << kernel << ": " << said;
      EXPECT_EQ(other.error.empty(), isFirst) << kernel << ": " << other.error;
      mutant.reset();
      reset();
    }
  }
}

/// Kernels that do not wait are not chained.
TEST_F(Proof, KernelsThatDoNotWaitAreNotChained) {
  Kernels kernels = compile(3, 64, "policy=exact chip=sm_80");
  EXPECT_EQ(kernels.ptx.find("griddepcontrol"), std::string::npos);
  EXPECT_TRUE(load(kernels)) << aligned_last_error();
  kernels.sidecar = replaced(kernels.sidecar, "\"chained\": 0", "\"chained\": 1");
  EXPECT_FALSE(load(kernels));
  EXPECT_STREQ(aligned_last_error(), "kernels.json: expected 0 at tuning.chained for PTX of sm_80 in which 0 of 8 kernels wait for those ahead of them, got 1");
}

/// The sidecar says how many splits a row has: as many as fill the device's one multiprocessor, two without a word, where there are so many and tokens enough.
TEST_F(Proof, SplitsAreTuned) {
  Kernels kernels = compile(3, 64, "policy=exact");
  const std::string perMultiprocessor = "\"blocks_per_multiprocessor\": 2", perSplit = "\"blocks_per_split\": 4", most = "\"most_splits\": 128";
  auto splits = [&](const std::string &what, const std::string &by) {
    Program program = load({kernels.ptx, replaced(kernels.sidecar, what, by)});
    EXPECT_TRUE(program) << aligned_last_error();
    llvm::sys::fs::remove(counts);
    EXPECT_EQ(step(program, {1000}).error, "");
    return readCounts()["decode0_scores"].columns;
  };
  EXPECT_EQ(splits("", ""), 2);
  EXPECT_EQ(splits("\"tuning\"", "\"tuned\""), 2) << "as older compilers left it";
  EXPECT_EQ(splits(perMultiprocessor, "\"blocks_per_multiprocessor\": 3"), 3);
  EXPECT_EQ(splits(perMultiprocessor, "\"blocks_per_multiprocessor\": 32"), 4);
  EXPECT_EQ(splits(perSplit, "\"blocks_per_split\": 9"), 2);
  EXPECT_EQ(splits(perSplit, "\"blocks_per_split\": 16"), 1);
  EXPECT_EQ(splits(most, "\"most_splits\": 1"), 1);
}

/// Distinct sectors that kernels touch of the planes, against the bits that the policy calls for. A row of V of 64 channels is a sector for each layer, a unit of K four.
TEST_F(Proof, PlanesAreReadAsFarAsThePolicyCallsFor) {
  for (const char *options : {"policy=exact", "policy=tight", "policy=balanced", "policy=fast", "policy=alignedkv"}) {
    SCOPED_TRACE(options);
    constexpr int64_t kGroup = 3, kTokens = 16 * 64;
    Program program = load(compile(kGroup, 64, options));
    ASSERT_TRUE(program) << aligned_last_error();
    llvm::sys::fs::remove(counts);
    Step result = step(program, {kTokens}, options);
    ASSERT_EQ(result.error, "");
    std::map<std::string, Count> kernels = readCounts();
    std::string key = std::string(options) + "key", value = std::string(options) + "value"; // of all planes, which share a name
    int64_t keyBytes = kernels["decode0_scores"].bytes[key], refinedBytes = kernels["decode0_refine"].bytes[key], valueBytes = kernels["decode0_values"].bytes[value];
    // Of the tally, planes alone: fixed formats have exponents, a byte for 64 keys of a channel and one for a row of V.
    bool isFixed = std::string(options) != "policy=alignedkv";
    double keyPlanes = result.tally.key_bits / 8.0 - (isFixed ? kTokens / 64 * kKeyDim : 0), valuePlanes = result.tally.value_bits / 8.0 - (isFixed ? kTokens : 0);
    EXPECT_NEAR(valueBytes, valuePlanes, 0.05 * valuePlanes);
    EXPECT_NEAR(keyBytes + refinedBytes, keyPlanes, 0.05 * keyPlanes); // what is read more finely is not read again
  }
}

/// Every sector of K and V once, and few instructions for each byte: an H100 issues about 0.2 of them for each byte that its memory delivers.
TEST_F(Proof, DenseCachesAreReadOnceWithFewInstructions) {
  constexpr int64_t kDim = 128, kTokens = 4096;
  Program program = load(compile(4, kDim, "format=dense", kDim));
  ASSERT_TRUE(program) << aligned_last_error();
  llvm::sys::fs::remove(counts);
  Step result = step(program, {kTokens}, "dense ");
  ASSERT_EQ(result.error, "");
  std::map<std::string, Count> kernels = readCounts();
  Count &scan = kernels["decode0_scan"];
  EXPECT_EQ(scan.bytes["dense key"], kTokens * kDim * 2);
  EXPECT_EQ(scan.bytes["dense value"], kTokens * kDim * 2);
  EXPECT_EQ(result.tally.key_bits + result.tally.value_bits, 2 * kTokens * kDim * 16);
  double perByte = double(scan.instructions + kernels["decode0_merge"].instructions) / (kTokens * kDim * 4);
  RecordProperty("instructions_per_byte", std::to_string(perByte));
  EXPECT_LE(perByte, 0.06);
}

} // namespace
