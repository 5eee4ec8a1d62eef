// What decode steps take on this machine (aligned/Analysis/Costs.h), measured once and kept on disk.
//
// At each corner of the model a dense kernel and one over planes run in turns over caches of two lengths. Loud queries make few tokens visible and quiet ones many, so that what bits
// take can be told from what tokens take; how many were read the kernels report. Of each the fastest call counts: others shared the machine with somebody.
#include "Engine.h"
#include "ObjectCache.h"

#include "aligned/Analysis/Costs.h"
#include "aligned/JIT/Module.h"

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <chrono>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>

using namespace aligned;

namespace {

constexpr int64_t kLengths[] = {256, 1024};
constexpr float kLoudness[] = {0.5f, 5.0f}; ///< the deviation of scores, in nats
constexpr double kNanoseconds = 1e8;         ///< of turns at a corner

double now() { return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

using Module = std::unique_ptr<aligned_module, decltype(&aligned_module_destroy)>;
using Cache = std::unique_ptr<aligned_cache, decltype(&aligned_cache_destroy)>;

/// Attention of one kv head, over planes or dense.
Module compile(const Costs::Corner &corner, bool isDense) {
  std::string query = llvm::formatv("tensor<1x{0}x1x{1}xf32>", corner.queryRows, corner.headDim), cache = llvm::formatv("tensor<1x1x?x{0}xf16>", corner.headDim),
              text = llvm::formatv("func.func @step(%q: {0}, %k: {1}, %v: {1}) -> {0} {{\n  %scale = arith.constant {2:e} : f32\n"
                                   "  %out = aligned.attention %q, %k, %v scale %scale : {0}, {1}, {1} -> {0}\n  return %out : {0}\n}",
                                   query, cache, 1 / std::sqrt(double(corner.headDim)));
  return {aligned_module_compile(text.c_str(), isDense ? "policy=exact format=dense" : "policy=tight", nullptr), aligned_module_destroy};
}

/// One way to take a step, with the fastest time seen.
struct Contestant {
  const aligned_module *module;
  aligned_value arguments[3];
  double nanoseconds = std::numeric_limits<double>::infinity();
  aligned_tally read = {};

  bool run() {
    aligned_value result;
    const double start = now();
    if (aligned_module_call(module, arguments, &result))
      return false;
    nanoseconds = std::min(nanoseconds, now() - start);
    aligned_array_free(&result.array);
    return true;
  }
};

/// `step` and `token` of a line through the times at both lengths; neither is below a little.
std::pair<double, double> lineThrough(double shorter, double longer) {
  const double token = std::max((longer - shorter) / double(kLengths[1] - kLengths[0]), 1e-3);
  return {std::max(shorter - double(kLengths[0]) * token, 1.0), token};
}

/// Nothing, with an error, where something fails.
std::optional<StepCosts> measure(const Costs::Corner &corner) {
  const int64_t dim = corner.headDim, longest = kLengths[1];
  Module planes = compile(corner, false), dense = compile(corner, true);
  if (!planes || !dense)
    return std::nullopt;
  // Values of K and V: odd multiples of 1/8 up to 15/8, which halves hold.
  constexpr uint16_t kHalves[] = {0x3000, 0x3600, 0x3900, 0x3b00, 0x3c80, 0x3d80, 0x3e80, 0x3f80};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> data[2];
  for (std::vector<uint16_t> &side : data)
    for (int64_t i = 0; i < longest * dim; ++i) {
      const uint32_t bits = random();
      side.push_back(kHalves[bits & 7] | (bits & 8) << 12);
    }
  std::vector<float> queries[2];
  for (int i = 0; i < 2; ++i)
    for (int64_t j = 0; j < corner.queryRows * dim; ++j)
      queries[i].push_back(kLoudness[i] * normal(random));

  auto array = [](auto &values, int64_t rows, int64_t tokens, int64_t dim) {
    aligned_value value = {};
    value.array = {values.data(), {1, rows, tokens, dim}, {rows * tokens * dim, tokens * dim, dim, 1}, nullptr};
    return value;
  };
  std::vector<Cache> caches;
  std::vector<Contestant> contestants; // of each length: dense, planes under quiet and under loud queries
  for (int64_t tokens : kLengths) {
    aligned_value sides[2];
    for (int side = 0; side < 2; ++side) {
      const int64_t strides[] = {tokens * dim, tokens * dim, dim, 1};
      caches.emplace_back(aligned_module_create_cache(planes.get(), 1 + side, tokens), aligned_cache_destroy);
      if (!caches.back() || aligned_cache_append(caches.back().get(), data[side].data(), tokens, strides))
        return std::nullopt;
      sides[side].cache = caches.back().get();
    }
    contestants.push_back({dense.get(), {array(queries[0], corner.queryRows, 1, dim), array(data[0], 1, tokens, dim), array(data[1], 1, tokens, dim)}});
    for (std::vector<float> &query : queries)
      contestants.push_back({planes.get(), {array(query, corner.queryRows, 1, dim), sides[0], sides[1]}});
  }
  for (Contestant &contestant : contestants) {
    aligned_rt_record(&contestant.read, 1);
    const bool works = contestant.run();
    aligned_rt_record(nullptr, 0);
    if (!works)
      return std::nullopt;
  }
  for (const double start = now(); now() - start < kNanoseconds;)
    for (Contestant &contestant : contestants)
      if (!contestant.run())
        return std::nullopt;

  // What bits beyond the first four of K take: the slope between quiet and loud queries, of both lengths.
  auto bits = [&](const Contestant &of) { return double(of.read.key_bits - 4 * of.read.key_values + of.read.value_bits); };
  double products = 0, squares = 0;
  for (size_t quiet : {1, 4}) {
    const double more = bits(contestants[quiet]) - bits(contestants[quiet + 1]);
    products += more * (contestants[quiet].nanoseconds - contestants[quiet + 1].nanoseconds);
    squares += more * more;
  }
  const double bit = std::max(products / std::max(squares, 1.0), 1e-6);
  auto withoutBits = [&](size_t quiet) {
    return (contestants[quiet].nanoseconds + contestants[quiet + 1].nanoseconds - bit * (bits(contestants[quiet]) + bits(contestants[quiet + 1]))) / 2;
  };
  auto [denseStep, denseToken] = lineThrough(contestants[0].nanoseconds, contestants[3].nanoseconds);
  auto [planesStep, planesToken] = lineThrough(withoutBits(1), withoutBits(4));
  return StepCosts{denseStep, denseToken, planesStep, planesToken, bit};
}

/// Bytes in a nanosecond.
double measureReading() {
  std::vector<uint64_t> words(16 << 20, 1); // more than caches hold
  double fastest = std::numeric_limits<double>::infinity();
  uint64_t sum = 0;
  for (int round = 0; round < 3; ++round) {
    const double start = now();
    sum += std::accumulate(words.begin(), words.end(), uint64_t(0));
    fastest = std::min(fastest, now() - start);
  }
  return sum ? words.size() * sizeof(uint64_t) / fastest : 0; // so that it is summed
}

std::optional<Costs> measureAll(llvm::function_ref<void(size_t done)> progress) {
  Costs costs{measureReading(), {}};
  for (size_t i = 0; i < costs.corners.size(); ++i) {
    std::optional<StepCosts> measured = measure(Costs::kCorners[i]);
    if (!measured)
      return std::nullopt;
    costs.corners[i] = *measured;
    progress(i + 1);
  }
  return costs;
}

/// What a file on disk says, if it says costs.
std::optional<Costs> parse(llvm::StringRef text) {
  std::vector<double> numbers;
  for (llvm::StringRef word : llvm::split(text, ' ')) {
    double number;
    if (word.getAsDouble(number))
      return std::nullopt;
    numbers.push_back(number);
  }
  return Costs::of(numbers.data(), numbers.size());
}

} // namespace

const double *aligned_machine_costs(void (*progress)(void *, int32_t, int32_t), void *context) {
  static std::mutex mutex;
  static std::vector<double> numbers;
  std::lock_guard<std::mutex> lock(mutex);
  if (!numbers.empty())
    return numbers.data();
  ObjectCache cache({machineIdentity(), "costs of decode steps"});
  std::optional<std::string> kept = cache.load();
  std::optional<Costs> costs = kept ? parse(*kept) : std::nullopt;
  if (!costs) {
    costs = measureAll([&](size_t done) {
      if (progress)
        progress(context, int32_t(done), int32_t(Costs::kCorners.size()));
    });
    if (!costs)
      return nullptr;
    std::string text;
    for (double number : costs->numbers())
      text += llvm::formatv("{0}{1:e6}", text.empty() ? "" : " ", number).str();
    cache.store(text);
    costs = parse(text); // rounded alike now and later
  }
  numbers = costs->numbers();
  return numbers.data();
}
