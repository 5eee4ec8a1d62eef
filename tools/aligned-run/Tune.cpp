// A search for a budget: the fewest bytes whose measured error over a captured cache stays within a target.
//
// A side's tolerance is its own, errors of K and of V add as variances, and no kv head knows of another. So each side of each kv head is measured alone, over a ladder of tolerances,
// with the other side exact. What a choice of tolerances reads and errs is then a sum over kv heads, and the best choice for a price of error in bits is
// the best of each kv head. The price whose measured error, all together, meets the target is found by measuring.
#include "Tune.h"

#include "Layers.h"

#include "llvm/Support/Format.h"
#include "llvm/Support/Path.h"

#include <algorithm>
#include <numeric>

using namespace aligned;

namespace {

constexpr int kRungsDown = 4, kRungsUp = 3; ///< of the ladder, below and above the target, each an octave
constexpr int kSteps = 8;                   ///< choices from one rung to the next: what they cost is interpolated
constexpr int kFits = 8;                    ///< measured attempts to meet the target
constexpr double kClose = 0.995;            ///< of the target: near enough

/// One kv head, over all steps.
struct Reading {
  double bits[2] = {};        ///< of the planes of K and V
  std::vector<double> errors; ///< relative, of each step and query head
};

/// All kv heads, layer by layer.
struct Readings {
  std::vector<Reading> heads;
  aligned_tally tally = {};

  explicit Readings(int64_t heads) : heads(heads) {}

  double bits() const { return double(tally.key_bits) + double(tally.value_bits); }
  std::vector<double> errors() const {
    std::vector<double> all;
    for (const Reading &head : heads)
      all.insert(all.end(), head.errors.begin(), head.errors.end());
    return all;
  }
  double error() const {
    std::vector<double> all = errors();
    return std::accumulate(all.begin(), all.end(), 0.0) / all.size();
  }
};

using Kernels = std::vector<std::shared_ptr<Kernel>>;

std::string text(double number, const char *format = "%.4g") {
  char digits[32];
  snprintf(digits, sizeof(digits), format, number);
  return digits;
}
/// As the budget will say it, so that what is measured is what is written.
double rounded(double tolerance) { return std::stod(text(tolerance)); }
std::string tolerated(double tolerance) { return "tolerance = " + text(tolerance, "%.15f"); } // MLIR's floats have a point

class Tuner {
public:
  Tuner(const Capture &capture, const RunOptions &options, double target)
      : c(capture), options(options), target(target), group(c.queryHeads / c.kvHeads), exact(c.layers * c.steps) {}

  std::optional<Tuned> run();

private:
  std::shared_ptr<Kernel> compilePolicies(const std::string &policies) { return compileKernel(moduleText(c, "decode", policies), options.pipeline()); }
  std::shared_ptr<Kernel> compileLimits(const std::string &key, const std::string &value) {
    return compilePolicies("policy <budget, " + tolerated(target) + ", key = <" + key + ">, value = <" + value + ">>");
  }

  /// Each of a layer's kernels over the same caches; `of(layer)` has as many kernels for each layer.
  std::optional<std::vector<Readings>> measure(size_t kernels, llvm::function_ref<const Kernels &(int64_t)> of, Progress *progress = nullptr);
  bool measureStep(int64_t layer, int64_t step, Caches &caches, const Kernel &kernel, Readings &readings);
  /// One kernel for all layers.
  std::optional<Readings> measure(const std::shared_ptr<Kernel> &kernel);
  std::optional<Readings> measure(const std::vector<Tuned::Layer> &layers);

  /// The largest tolerance for all kv heads and both sides that keeps within the target, as far as bisection goes.
  bool fitUniform();
  bool measureLadder();
  /// What choices of tolerances are thought to cost, by kv head.
  void predict();
  /// For each kv head what costs least, where an error costs `price` bits, and the mean error that this is thought to make.
  std::pair<std::vector<Tuned::Layer>, double> choose(double price) const;
  /// What is thought to cost least of all that err no more than this.
  std::vector<Tuned::Layer> chooseFor(double error) const;
  bool fitLayers();

  TunedFigures figures(const Readings &readings) const;

  const Capture &c;
  const RunOptions &options;
  const double target;
  const int64_t group;
  std::vector<std::vector<double>> exact; ///< attention in float64, [layer * steps + step]
  std::vector<double> ladder;
  std::vector<Readings> alone[2]; ///< by rung: this side read to the rung's tolerance, the other one exact
  struct Choice {
    std::pair<double, double> tolerances;
    double bits, error; ///< the sum over steps and query heads
  };
  std::vector<std::vector<Choice>> choices;

  double tolerance = 0;
  std::optional<Readings> uniform, best;
  std::vector<Tuned::Layer> layers;
};

//===----------------------------------------------------------------------===//
// Measuring
//===----------------------------------------------------------------------===//

struct PlaneBits {
  Reading *heads; ///< of one layer
  int64_t keyDim, valueDim;

  static void listen(void *context, int32_t, int64_t row, int64_t, int64_t tokens, int64_t channels, const uint8_t *keyBits, const uint8_t *valueBits) {
    auto &[heads, keyDim, valueDim] = *static_cast<PlaneBits *>(context);
    double ofTile = channels == 1 ? keyDim : ALIGNED_TILE;
    int64_t units = channels == 1 ? tokens : (tokens + ALIGNED_TILE - 1) / ALIGNED_TILE * channels;
    heads[row].bits[0] += ofTile * std::accumulate(keyBits, keyBits + units, int64_t(0));
    heads[row].bits[1] += double(valueDim) * std::accumulate(valueBits, valueBits + tokens, int64_t(0));
  }
};

bool Tuner::measureStep(int64_t layer, int64_t step, Caches &caches, const Kernel &kernel, Readings &readings) {
  std::string query = c.query(layer, step);
  std::vector<double> &want = exact[layer * c.steps + step];
  if (want.empty())
    want = c.exact(query, layer, c.firstPosition + step + 1);
  aligned_value arguments[3] = {contiguous(query.data(), {1, c.queryHeads, 1, c.keyDim}), {}, {}}, result = {};
  for (int side = 0; side < 2; ++side)
    arguments[1 + side].cache = caches.side[side].get();
  Reading *heads = &readings.heads[layer * c.kvHeads];
  PlaneBits planes{heads, c.keyDim, c.valueDim};
  aligned_tally tally = {};
  aligned_rt_record(&tally, 1);
  aligned_rt_record_bits(&PlaneBits::listen, &planes);
  int failed = aligned_module_call(kernel.module.get(), arguments, &result);
  aligned_rt_record(nullptr, 0);
  aligned_rt_record_bits(nullptr, nullptr);
  if (failed)
    return refuse(aligned_last_error()), false;
  std::vector<double> errors = relativeErrors(toDouble(result.array.data, c.queryHeads * c.valueDim, ALIGNED_DTYPE_F32), want, c.valueDim);
  aligned_array_free(&result.array);
  for (int64_t head = 0; head < c.queryHeads; ++head) {
    if (!std::isfinite(errors[head]))
      return refuse("expected attention that is finite, to have an error, got a value that is not in layer " + std::to_string(layer) + ", query head " +
                    std::to_string(head) + ", step " + std::to_string(step)), false;
    heads[head / group].errors.push_back(errors[head]);
  }
  readings.tally.key_bits += tally.key_bits;
  readings.tally.key_values += tally.key_values;
  readings.tally.value_bits += tally.value_bits;
  readings.tally.value_values += tally.value_values;
  return true;
}

std::optional<std::vector<Readings>> Tuner::measure(size_t kernels, llvm::function_ref<const Kernels &(int64_t)> of, Progress *progress) {
  std::vector<Readings> all(kernels, Readings(c.layers * c.kvHeads));
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    Caches caches;
    if (!caches.create(c, *of(layer).front()))
      return std::nullopt;
    for (int64_t step = 0; step < c.steps; ++step) {
      if (!caches.extend(c, layer, c.firstPosition + step + 1))
        return std::nullopt;
      for (size_t number = 0; number < kernels; ++number)
        if (!measureStep(layer, step, caches, *of(layer)[number], all[number]))
          return std::nullopt;
      if (progress)
        progress->show(layer * c.steps + step + 1, c.layers * c.steps);
    }
  }
  return all;
}

std::optional<Readings> Tuner::measure(const std::shared_ptr<Kernel> &kernel) {
  Kernels one{kernel};
  auto all = kernel ? measure(1, [&](int64_t) -> const Kernels & { return one; }) : std::nullopt;
  return all ? std::optional(std::move(all->front())) : std::nullopt;
}

std::optional<Readings> Tuner::measure(const std::vector<Tuned::Layer> &layers) {
  std::vector<Kernels> kernels;
  for (const Tuned::Layer &layer : layers) {
    std::string policies;
    for (auto [key, value] : layer.heads)
      policies += (policies.empty() ? "<budget, " : ", <budget, ") + tolerated(target) + ", key = <" + tolerated(key) + ">, value = <" + tolerated(value) + ">>";
    kernels.push_back({compilePolicies("policies [" + policies + "]")});
    if (!kernels.back().front())
      return std::nullopt;
  }
  auto all = measure(1, [&](int64_t layer) -> const Kernels & { return kernels[layer]; });
  return all ? std::optional(std::move(all->front())) : std::nullopt;
}

//===----------------------------------------------------------------------===//
// Searching
//===----------------------------------------------------------------------===//

bool Tuner::fitUniform() {
  Progress progress("fitting one tolerance for all");
  double aim = 0.8 * target, low = 0, high = 1; // errors are relative to outputs, which are shorter than the rows of V that tolerances are relative to
  for (int fit = 0; fit < kFits; ++fit) {
    double tried = rounded(aim);
    auto readings = measure(compilePolicies("policy <budget, " + tolerated(tried) + ">"));
    if (!readings)
      return false;
    progress.show(fit + 1, kFits);
    double error = readings->error();
    if (error <= target && tried > tolerance) {
      tolerance = tried;
      uniform = std::move(*readings);
    }
    if (error <= target && error > kClose * target)
      break;
    (error <= target ? low : high) = tried;
    aim = tried * target / error * (1 + kClose) / 2;
    if (!(aim > low && aim < high))
      aim = (low + high) / 2;
  }
  return true;
}

bool Tuner::measureLadder() {
  for (int rung = -kRungsDown; rung <= kRungsUp; ++rung)
    if (double step = rounded(target * std::exp2(rung)); step < 1)
      ladder.push_back(step);
  Kernels kernels;
  {
    Progress progress("compiling a ladder of tolerances");
    for (int side = 0; side < 2; ++side)
      for (double step : ladder) {
        const std::string whole = "bits = 16 to 16";
        kernels.push_back(side ? compileLimits(whole, tolerated(step)) : compileLimits(tolerated(step), whole));
        if (!kernels.back())
          return false;
        progress.show(kernels.size(), 2 * ladder.size());
      }
  }
  Progress progress("measuring steps");
  auto all = measure(kernels.size(), [&](int64_t) -> const Kernels & { return kernels; }, &progress);
  if (!all)
    return false;
  alone[0].assign(all->begin(), all->begin() + ladder.size());
  alone[1].assign(all->begin() + ladder.size(), all->end());
  return true;
}

void Tuner::predict() {
  // Between rungs, bits are taken to fall in a line and errors to rise by a factor.
  int last = kSteps * (int(ladder.size()) - 1);
  auto at = [](const std::vector<Readings> &rungs, int step, int64_t head, int side) {
    const Reading &low = rungs[step / kSteps].heads[head], &high = rungs[std::min<size_t>(step / kSteps + 1, rungs.size() - 1)].heads[head];
    double part = double(step % kSteps) / kSteps;
    Reading between{{}, low.errors};
    between.bits[side] = low.bits[side] * (1 - part) + high.bits[side] * part;
    for (size_t i = 0; i < low.errors.size() && part > 0; ++i)
      between.errors[i] = std::pow(low.errors[i], 1 - part) * std::pow(high.errors[i], part);
    return between;
  };
  for (int64_t head = 0; head < c.layers * c.kvHeads; ++head) {
    choices.emplace_back();
    std::vector<Reading> values;
    for (int v = 0; v <= last; ++v)
      values.push_back(at(alone[1], v, head, 1));
    for (int k = 0; k <= last; ++k) {
      Reading key = at(alone[0], k, head, 0);
      for (int v = 0; v <= last; ++v) {
        auto tolerance = [&](int step) { return rounded(ladder.front() * std::exp2(double(step) / kSteps)); };
        Choice choice{{tolerance(k), tolerance(v)}, key.bits[0] + values[v].bits[1], 0};
        for (size_t i = 0; i < key.errors.size(); ++i)
          choice.error += std::hypot(key.errors[i], values[v].errors[i]);
        choices.back().push_back(choice);
      }
    }
  }
}

std::pair<std::vector<Tuned::Layer>, double> Tuner::choose(double price) const {
  std::vector<Tuned::Layer> chosen;
  double error = 0;
  for (int64_t head = 0; head < c.layers * c.kvHeads; ++head) {
    if (head % c.kvHeads == 0)
      chosen.push_back({c.layerNumbers[head / c.kvHeads], {}});
    const Choice &best = *std::min_element(choices[head].begin(), choices[head].end(),
                                           [&](const Choice &a, const Choice &b) { return a.bits + price * a.error < b.bits + price * b.error; });
    error += best.error;
    chosen.back().heads.push_back(best.tolerances);
  }
  return {chosen, error / (c.layers * c.queryHeads * c.steps)};
}

std::vector<Tuned::Layer> Tuner::chooseFor(double error) const {
  double low = 1e-6, high = 1e18; // bits for an error of 1: beyond what any capture makes worth paying
  while (high > low * 1.001) {
    double middle = std::sqrt(low * high);
    (choose(middle).second > error ? low : high) = middle;
  }
  return choose(high).first;
}

bool Tuner::fitLayers() {
  predict();
  Progress progress("fitting the budget");
  double aim = target, low = 0, high = INFINITY;
  for (int fit = 0; fit < kFits && low < kClose * high; ++fit) {
    std::vector<Tuned::Layer> tried = chooseFor(aim);
    auto readings = measure(tried);
    if (!readings)
      return false;
    progress.show(fit + 1, kFits);
    double error = readings->error();
    if (error <= target && (!best || readings->bits() < best->bits())) {
      best = std::move(*readings);
      layers = std::move(tried);
    }
    if (error <= target && error > kClose * target)
      break;
    (error <= target ? low : high) = aim;
    aim *= target / error * (1 + kClose) / 2;
    if (!(aim > low && aim < high))
      aim = (low + high) / 2;
  }
  return true;
}

TunedFigures Tuner::figures(const Readings &readings) const {
  const aligned_tally &t = readings.tally;
  std::vector<double> errors = readings.errors();
  return {readings.error(), *std::max_element(errors.begin(), errors.end()), double(t.key_bits) / t.key_values, double(t.value_bits) / t.value_values,
          readings.bits() / (double(t.key_values + t.value_values) * 8 * c.width())};
}

std::optional<Tuned> Tuner::run() {
  auto whole = measure(compileLimits("bits = 16 to 16", "bits = 16 to 16"));
  if (!whole)
    return std::nullopt;
  if (double least = whole->error(); !(least < target))
    return refuse("expected a target error above " + text(least) + ", which storage in planes makes by itself, got " + text(target));
  if (!fitUniform() || !measureLadder() || !fitLayers())
    return std::nullopt;
  if (!best && !uniform)
    return refuse("expected tolerances that err no more than " + text(target) + ", found none: the least that this storage errs is " + text(whole->error()));
  Tuned tuned{target, uniform ? tolerance : target, {}, {}, std::nullopt};
  if (uniform)
    tuned.uniform = figures(*uniform);
  bool better = best && (!uniform || best->bits() < uniform->bits());
  if (better)
    tuned.layers = std::move(layers);
  tuned.figures = better ? figures(*best) : *tuned.uniform;
  return tuned;
}

} // namespace

std::optional<Tuned> aligned::tune(const std::string &folder, const RunOptions &options, double target) {
  auto capture = readCapture(folder);
  return capture ? Tuner(*capture, options, target).run() : std::nullopt;
}

//===----------------------------------------------------------------------===//
// Telling
//===----------------------------------------------------------------------===//

void aligned::writeBudget(const Tuned &tuned, const std::string &folder, llvm::raw_ostream &os) {
  os << "# aligned-run --tune --decode " << llvm::sys::path::filename(folder) << " --target-error=" << text(tuned.target) << "\n"
     << llvm::format("# measured: error %.2e, %.4f of the bytes of dense caches", tuned.figures.errorMean, tuned.figures.bytesFraction);
  if (tuned.uniform)
    os << llvm::format("; with one tolerance for all %.2e, %.4f", tuned.uniform->errorMean, tuned.uniform->bytesFraction);
  os << "\ndefault: {tolerance: " << text(tuned.tolerance) << "}\n";
  if (tuned.layers.empty())
    return;
  os << "layers:\n";
  for (const Tuned::Layer &layer : tuned.layers) {
    os << "  " << layer.number << ":\n    heads:\n";
    for (size_t head = 0; head < layer.heads.size(); ++head)
      os << "      " << head << ": {key: {tolerance: " << text(layer.heads[head].first) << "}, value: {tolerance: " << text(layer.heads[head].second) << "}}\n";
  }
}

void aligned::printTuned(const Tuned &tuned, const std::string &path) {
  llvm::raw_ostream &os = llvm::outs();
  auto line = [&](const char *name, const TunedFigures &f) {
    os << llvm::format("%-20s %7.2f %7.2f %7.4f %11.2e %9.2e\n", name, f.keyBits, f.valueBits, f.bytesFraction, f.errorMean, f.errorMax);
  };
  os << llvm::format("%-20s %7s %7s %7s %11s %9s\n", "", "K bits", "V bits", "bytes", "error mean", "max");
  if (tuned.uniform)
    line(("tolerance " + text(tuned.tolerance)).c_str(), *tuned.uniform);
  line("tuned", tuned.figures);
  os << path << (tuned.layers.empty() ? ": one tolerance for all is best\n" : ": written\n");
}

llvm::json::Object aligned::tunedJson(const std::optional<Tuned> &tuned, bool ok) {
  auto object = [](const TunedFigures &f, double tolerance) {
    return llvm::json::Object{{"k_bits", f.keyBits}, {"v_bits", f.valueBits}, {"bytes_fraction", f.bytesFraction}, {"error_mean", f.errorMean}, {"error_max", f.errorMax},
                              {"tolerance", jsonNumber(tolerance)}};
  };
  llvm::json::Object all{{"ok", ok}};
  if (tuned) {
    all["target_error"] = tuned->target;
    all["tuned"] = object(tuned->figures, NAN);
    all["uniform"] = tuned->uniform ? llvm::json::Value(object(*tuned->uniform, tuned->tolerance)) : llvm::json::Value(nullptr);
  }
  return all;
}
