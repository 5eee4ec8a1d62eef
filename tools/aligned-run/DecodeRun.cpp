// A captured cache: every layer, head and step through the compiled kernel, against float64 and against the dense kernel's time.
#include "Layers.h"
#include "Page.h"

#include "aligned/Analysis/Costs.h"
#include "aligned/Reference/Baselines.h"

#include "llvm/ADT/STLExtras.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

using namespace aligned;

namespace {

constexpr int kTimedCalls = 5;        ///< per policy, layer and step at least, each beside a dense one
constexpr double kTimedSeconds = 2e-3; ///< and more of short ones, until so much has passed

/// What was read, over all layers, heads and steps, and how far each head's output was off.
struct Measured {
  aligned_tally tally = {};
  std::vector<double> errors;
  std::vector<double> usualErrors, usualEstimates; ///< relative to a usual row of V (P2)
  std::vector<Certified> certificates; ///< of the heads whose exact output is finite; nothing is promised of others

  void add(const aligned_tally &read) {
    tally.key_bits += read.key_bits;
    tally.key_values += read.key_values;
    tally.value_bits += read.value_bits;
    tally.value_values += read.value_values;
  }
  void add(const std::vector<double> &more) { errors.insert(errors.end(), more.begin(), more.end()); }
};

/// One policy's kernels, its caches of the current layer, and what was measured.
struct Contestant {
  RunOptions options;
  std::vector<std::shared_ptr<Kernel>> kernels; ///< by layer; layers that a budget does not tell apart share one
  Caches caches;
  Measured measured;
  std::vector<double> times, certifiedTimes, denseTimes;
  std::array<std::vector<double>, ALIGNED_PARTS> partTimes = {}; ///< nanoseconds a tile
  StepBits bits; ///< of the step that is pictured
};

/// What others do with a cache.
struct Alternative {
  std::string name;
  std::function<PolicyResult(const HeadInputs &)> decode;
  Measured measured;
};

/// What a call gives, and a certified one per query head.
struct Outcome {
  std::vector<double> output, bound, estimate;
};

class DecodeRun {
public:
  /// `page`, if there is one, says which step it pictures, and gets what belongs on it.
  DecodeRun(const Capture &capture, DecodePage *page) : c(capture), page(page) {}

  std::optional<std::vector<DecodeReport>> run(const std::vector<RunOptions> &policies);

private:
  bool step(int64_t layer, int64_t number);
  /// The alternatives at one step, and the probabilities if it is the one that is pictured.
  void measureAlternatives(int64_t layer, int64_t number, const std::vector<double> &want);
  /// What the costs of this machine say of the last step.
  std::optional<Choice> choiceFor(double tolerance) const;
  bool pictured(int64_t layer, int64_t number) const { return page && layer == page->layer && number == page->step; }
  /// Seconds of one call; what it gives where asked for.
  std::optional<double> call(const Module &module, aligned_value key, aligned_value value, Outcome *outcome = nullptr);

  const Capture &c;
  DecodePage *const page;
  std::string query; ///< [queryHeads, keyDim] of the current step
  Module dense; ///< the dense kernel
  std::vector<Contestant> contestants;
  std::vector<Alternative> alternatives;
};

std::optional<double> DecodeRun::call(const Module &module, aligned_value key, aligned_value value, Outcome *outcome) {
  aligned_value arguments[3] = {contiguous(query.data(), {1, c.queryHeads, 1, c.keyDim}), key, value}, results[3] = {};
  double start = now();
  int failed = aligned_module_call(module.get(), arguments, results);
  double seconds = now() - start;
  if (failed)
    return refuse(aligned_last_error());
  auto values = [&](int number, int64_t count) { return toDouble(results[number].array.data, count, ALIGNED_DTYPE_F32); };
  bool certified = aligned_module_results(module.get()) > 1;
  if (outcome)
    *outcome = {values(0, c.queryHeads * c.valueDim), certified ? values(1, c.queryHeads) : std::vector<double>(), certified ? values(2, c.queryHeads) : std::vector<double>()};
  for (aligned_value &result : results)
    aligned_array_free(&result.array);
  return seconds;
}

void DecodeRun::measureAlternatives(int64_t layer, int64_t number, const std::vector<double> &want) {
  int64_t tokens = c.firstPosition + number + 1;
  for (int64_t head = 0; head < c.kvHeads; ++head) {
    HeadInputs in = c.inputs(query, layer, head, tokens);
    auto first = want.begin() + head * in.heads * c.valueDim;
    std::vector<double> own(first, first + in.heads * c.valueDim);
    for (Alternative &alternative : alternatives) {
      PolicyResult result = alternative.decode(in);
      auto bits = [](double each, int64_t values) { return static_cast<int64_t>(std::llround(each * values)); };
      int64_t keys = tokens * c.keyDim, values = tokens * c.valueDim;
      alternative.measured.add(aligned_tally{bits(result.keyBits, keys), bits(result.valueBits, values), keys, values, 1});
      alternative.measured.add(relativeErrors(result.out, own, c.valueDim));
    }
    if (pictured(layer, number) && head == page->head) {
      std::vector<double> p = exactProbabilities(in);
      page->stepTokens = tokens;
      page->probabilities.assign(tokens, 0);
      for (int64_t i = 0; i < in.heads * tokens; ++i)
        page->probabilities[i % tokens] = std::max(page->probabilities[i % tokens], p[i]);
    }
  }
}

/// Keeps the plan of one row; kernels of other rows may report at the same time.
struct BitsListener {
  int64_t row, tokens;
  StepBits &bits;

  static void listen(void *context, int32_t, int64_t row, int64_t first, int64_t tokens, int64_t channels, const uint8_t *keyBits, const uint8_t *valueBits) {
    auto &[wanted, all, bits] = *static_cast<BitsListener *>(context);
    if (row != wanted)
      return;
    auto units = [&](int64_t tokens) { return channels == 1 ? tokens : (tokens + ALIGNED_TILE - 1) / ALIGNED_TILE * channels; };
    bits.channels = channels;
    bits.keyBits.resize(units(all));
    bits.valueBits.resize(all);
    std::copy_n(keyBits, units(tokens), bits.keyBits.begin() + units(first));
    std::copy_n(valueBits, tokens, bits.valueBits.begin() + first);
  }
};

bool DecodeRun::step(int64_t layer, int64_t number) {
  int64_t tokens = c.firstPosition + number + 1;
  query = c.query(layer, number);
  std::vector<double> want = c.exact(query, layer, tokens);
  Bytes denseKey = denseOf(c, c.k, layer, tokens), denseValue = denseOf(c, c.v, layer, tokens);
  aligned_value key = contiguous(denseKey.data(), {1, c.kvHeads, tokens, c.keyDim}), value = contiguous(denseValue.data(), {1, c.kvHeads, tokens, c.valueDim});

  if (page)
    measureAlternatives(layer, number, want);
  std::vector<double> usual;
  for (int64_t head = 0; head < c.kvHeads; ++head)
    usual.push_back(c.usualRow(layer, head, tokens));

  for (Contestant &contestant : contestants) {
    const Kernel &kernel = *contestant.kernels[layer];
    aligned_value ours[2] = {key, value};
    if (kernel.split) {
      if (!contestant.caches.extend(c, layer, tokens))
        return false;
      ours[0].cache = contestant.caches.side[0].get();
      ours[1].cache = contestant.caches.side[1].get();
    }
    Outcome got;
    aligned_tally tally = {};
    BitsListener listener{page ? page->head : 0, tokens, contestant.bits};
    aligned_rt_record(&tally, 1);
    if (pictured(layer, number))
      aligned_rt_record_bits(&BitsListener::listen, &listener);
    bool ok = call(kernel.certified ? kernel.certified : kernel.module, ours[0], ours[1], &got).has_value();
    aligned_rt_record(nullptr, 0);
    aligned_rt_record_bits(nullptr, nullptr);
    if (!ok)
      return false;
    contestant.measured.add(tally);
    std::vector<double> relative = relativeErrors(got.output, want, c.valueDim);
    contestant.measured.add(relative);
    for (int64_t head = 0; head < c.queryHeads && kernel.certified; ++head) {
      Certified certified{got.bound[head], 0, got.estimate[head], relative[head]};
      bool promised = true;
      for (int64_t i = head * c.valueDim; i < (head + 1) * c.valueDim; ++i) {
        double difference = std::fabs(got.output[i] - want[i]);
        promised &= std::isfinite(want[i]);
        if (!(difference <= certified.error) && !std::isnan(certified.error)) // a NaN stays: it is within no bound
          certified.error = difference;
      }
      if (!promised)
        continue;
      contestant.measured.certificates.push_back(certified);
      double size = std::sqrt(std::inner_product(want.begin() + head * c.valueDim, want.begin() + (head + 1) * c.valueDim, want.begin() + head * c.valueDim, 0.0)) /
                    usual[head / (c.queryHeads / c.kvHeads)];
      contestant.measured.usualErrors.push_back(certified.relativeError * size);
      contestant.measured.usualEstimates.push_back(certified.estimate * size);
    }
    auto isTimedAgain = [](int repeat, double start) { return repeat < kTimedCalls || now() - start < kTimedSeconds; };
    const double start = now();
    for (int repeat = 0; isTimedAgain(repeat, start); ++repeat) { // interleaved, so that both see the same machine
      auto seconds = call(kernel.module, ours[0], ours[1]), denseSeconds = call(dense, key, value), certifiedSeconds = kernel.certified ? call(kernel.certified, ours[0], ours[1]) : NAN;
      if (!seconds || !denseSeconds || !certifiedSeconds)
        return false;
      contestant.times.push_back(*seconds);
      contestant.certifiedTimes.push_back(*certifiedSeconds);
      contestant.denseTimes.push_back(*denseSeconds);
    }
    const double profileStart = now();
    for (int repeat = 0; kernel.profiled && isTimedAgain(repeat, profileStart); ++repeat) {
      double ns[ALIGNED_PARTS];
      aligned_rt_take_laps(ns); // what came before
      if (!call(kernel.profiled, ours[0], ours[1]))
        return false;
      aligned_rt_lap(ALIGNED_PART_CALL);
      aligned_rt_take_laps(ns);
      for (auto [times, part] : llvm::zip(contestant.partTimes, ns))
        times.push_back(part / double(c.kvHeads * ((tokens + ALIGNED_TILE - 1) / ALIGNED_TILE)));
    }
  }
  return true;
}

std::optional<Choice> DecodeRun::choiceFor(double tolerance) const {
  const double *numbers = machineCosts();
  if (!numbers)
    return std::nullopt;
  const Costs costs = *Costs::of(numbers, Costs::kNumbers);
  const AttentionShape shape{c.keyDim, c.valueDim, c.queryHeads / c.kvHeads};
  const int64_t tokens = c.firstPosition + c.steps;
  const ReadBits bits = usualBits(tokens, tolerance);
  const double values = double(tokens) * (c.keyDim + c.valueDim), read = tokens * (bits.key * c.keyDim + bits.value * c.valueDim) / 8;
  constexpr double kMicro = 1e-3;
  return Choice{tokens, costs.denseUpTo(shape, tolerance), bits.key, bits.value, costs.planes(shape, tokens, bits) * kMicro, costs.dense(shape, tokens) * kMicro,
                read / costs.readRate * kMicro, values * c.width() / costs.readRate * kMicro};
}

double median(std::vector<double> values) {
  if (values.empty())
    return 0;
  auto middle = values.begin() + values.size() / 2;
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2)
    return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

/// What was measured, as a report without times.
DecodeReport summary(const std::string &name, const Measured &measured, int64_t width) {
  const aligned_tally &t = measured.tally;
  const std::vector<double> &errors = measured.errors;
  DecodeReport report;
  report.policy = name;
  report.keyBits = static_cast<double>(t.key_bits) / t.key_values;
  report.valueBits = static_cast<double>(t.value_bits) / t.value_values;
  report.bytesFraction = static_cast<double>(t.key_bits + t.value_bits) / ((t.key_values + t.value_values) * 8.0 * width);
  report.errorMean = std::accumulate(errors.begin(), errors.end(), 0.0) / errors.size();
  bool known = !std::isnan(report.errorMean); // what is NaN has no order
  report.errorMedian = known ? median(errors) : NAN;
  report.errorMax = known ? *std::max_element(errors.begin(), errors.end()) : NAN;
  report.stepMicroseconds = report.denseStepMicroseconds = NAN;
  return report;
}

/// How far bounds and tolerance were kept.
void judge(DecodeReport &report, const Measured &measured, bool certifies) {
  auto share = [](const auto &of, auto holds) { return double(std::count_if(of.begin(), of.end(), holds)) / of.size(); };
  if (certifies) {
    report.boundRatioMax = 0;
    report.boundViolations = 0;
  }
  for (const Certified &certified : measured.certificates) {
    *report.boundViolations += !certified.holds();
    if (certified.error > 0)
      report.boundRatioMax = std::max(report.boundRatioMax, certified.error / certified.bound);
  }
  if (report.tolerance > 0) {
    auto isWithin = [&](double error) { return error <= 2 * report.tolerance; };
    report.toleranceMet = share(measured.usualErrors, isWithin);
    report.flagged = 1 - share(measured.usualEstimates, isWithin);
  }
}

std::vector<Alternative> alternativesTo(const std::vector<RunOptions> &policies, bool bfloat16) {
  std::vector<Alternative> all{{bfloat16 ? "bf16 flash" : "fp16 flash", decodeFlash, {}},
                               {"int8", [](const HeadInputs &in) { return decodeIntegers(in, 8); }, {}},
                               {"q8_0", decodeQ8, {}},
                               {"fp8", decodeFp8, {}},
                               {"int4", [](const HeadInputs &in) { return decodeIntegers(in, 4); }, {}}};
  if (std::none_of(policies.begin(), policies.end(), [](const RunOptions &options) { return options.policy == "alignedkv"; }))
    all.push_back({"alignedkv", decodeAlignedKV, {}});
  return all;
}

std::optional<std::vector<DecodeReport>> DecodeRun::run(const std::vector<RunOptions> &policies) {
  RunOptions exact = policies.front();
  exact.policy = "exact", exact.format = "dense", exact.budget.clear(), exact.tolerance.reset();
  if (!(dense = aligned::compile(moduleText(c), exact.pipeline())))
    return std::nullopt;
  for (const RunOptions &options : policies) {
    auto kernels = compileLayers(c, options);
    if (!kernels)
      return std::nullopt;
    contestants.emplace_back().options = options;
    contestants.back().kernels = std::move(*kernels);
  }

  if (page)
    alternatives = alternativesTo(policies, c.element == ALIGNED_ELEMENT_BF16);
  int64_t firstStep = policies.front().lastStep ? c.steps - 1 : 0, perLayer = c.steps - firstStep;
  Progress progress("decoding steps");
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    for (Contestant &contestant : contestants)
      if (!contestant.caches.create(c, *contestant.kernels[layer]))
        return std::nullopt;
    for (int64_t number = firstStep; number < c.steps; ++number) {
      if (!step(layer, number))
        return std::nullopt;
      progress.show(layer * perLayer + number - firstStep + 1, c.layers * perLayer);
    }
  }

  std::vector<DecodeReport> reports;
  for (Contestant &contestant : contestants) {
    const Kernel &kernel = *contestant.kernels.front();
    DecodeReport report = summary(contestant.options.name(), contestant.measured, c.width());
    if (contestant.options.budget.empty())
      report.tolerance = contestant.options.tolerance.value_or(aligned_policy_tolerance(report.policy.c_str()));
    report.stepMicroseconds = median(contestant.times) * 1e6;
    report.denseStepMicroseconds = median(contestant.denseTimes) * 1e6;
    report.certifiedStepMicroseconds = median(contestant.certifiedTimes) * 1e6;
    for (const std::vector<double> &times : contestant.partTimes)
      if (!times.empty())
        report.partNanoseconds.push_back(median(times));
    if (contestant.options.explain && kernel.split && kernel.formats[0].kind == ALIGNED_FORMAT_FIXED && !(report.choice = choiceFor(report.tolerance)))
      return std::nullopt;
    judge(report, contestant.measured, bool(kernel.certified));
    report.threads = contestant.options.threads;
    report.attentions = aligned_module_attentions(kernel.module.get());
    reports.push_back(report);
    if (page)
      page->policies.push_back({report, contestant.bits.channels ? std::optional(std::move(contestant.bits)) : std::nullopt, std::move(contestant.measured.certificates)});
  }
  for (const Alternative &alternative : alternatives)
    page->alternatives.push_back(summary(alternative.name, alternative.measured, c.width()));
  return reports;
}

/// Fills what the capture says, and checks the step that is asked for.
bool describe(DecodePage &page, const Capture &c, const PageOptions &wanted, bool lastStep) {
  int64_t least = lastStep ? c.steps - 1 : 0;
  page.layer = wanted.layer.value_or(c.layers / 2);
  page.head = wanted.head.value_or(0);
  page.step = wanted.step.value_or(c.steps - 1);
  auto within = [](const char *what, int64_t value, int64_t least, int64_t count) {
    if (value >= least && value < count)
      return true;
    refuse(std::string("--report-") + what + ": expected " + std::to_string(least) + (least + 1 < count ? " to " + std::to_string(count - 1) : "") + ", got " +
           std::to_string(value));
    return false;
  };
  page.model = c.model;
  page.text = c.text;
  page.element = c.elementName();
  page.elementBits = 8 * c.width();
  page.layers = c.layers;
  page.kvHeads = c.kvHeads;
  page.group = c.queryHeads / c.kvHeads;
  page.keyDim = c.keyDim;
  page.valueDim = c.valueDim;
  page.steps = c.steps - least;
  page.tokens = c.firstPosition + c.steps;
  return within("layer", page.layer, 0, c.layers) && within("head", page.head, 0, c.kvHeads) && within("step", page.step, least, c.steps);
}

} // namespace

std::optional<std::vector<DecodeReport>> aligned::runDecode(const std::string &folder, const std::vector<RunOptions> &policies, const PageOptions &pictured,
                                                            DecodePage *page) {
  auto capture = readCapture(folder);
  if (!capture || (page && !describe(*page, *capture, pictured, policies.front().lastStep)))
    return std::nullopt;
  return DecodeRun(*capture, page).run(policies);
}
