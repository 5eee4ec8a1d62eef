// What people and machines are told.
#include "Run.h"

#include "llvm/Support/Format.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <unistd.h>

using namespace aligned;

double aligned::now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::nullopt_t aligned::refuse(const std::string &why) {
  llvm::errs() << program_invocation_short_name << ": error: " << why << "\n";
  return std::nullopt;
}

std::optional<std::string> aligned::readText(const std::string &path) {
  auto file = llvm::MemoryBuffer::getFile(path);
  if (!file)
    return refuse(path + ": expected a readable file, got: " + file.getError().message());
  return (*file)->getBuffer().str();
}

const double *aligned::machineCosts() {
  Progress progress("measuring what steps take on this machine, once");
  const double *numbers = aligned_machine_costs([](void *progress, int32_t done, int32_t total) { static_cast<Progress *>(progress)->show(done, total); }, &progress);
  if (!numbers)
    refuse(aligned_last_error());
  return numbers;
}

Module aligned::compile(const std::string &source, const std::string &options) {
  Module module(aligned_module_compile(source.c_str(), options.c_str(), nullptr));
  if (!module)
    refuse(aligned_last_error());
  return module;
}

std::string RunOptions::pipeline() const {
  std::string text = "policy=" + policy + " format=" + format + " isa=" + isa;
  if (target == "cuda")
    text += " target=nvptx chip=" + chip + " ptx=" + std::to_string(ptx);
  else if (target != "cpu")
    text += " target=" + target;
  if (tolerance)
    llvm::raw_string_ostream(text) << llvm::format(" tolerance=%.17g", *tolerance);
  if (!budget.empty())
    text += " budget='" + budget + "'";
  if (denseUpTo != "0")
    text += " dense-up-to=" + denseUpTo;
  if (!raise)
    text += " raise=false";
  return text;
}

std::string RunOptions::name() const { return budget.empty() ? policy : llvm::sys::path::filename(budget).str(); }

//===----------------------------------------------------------------------===//
// Progress
//===----------------------------------------------------------------------===//

constexpr char kClearLine[] = "\33[K"; // from the cursor on

Progress::Progress(std::string what) : what(std::move(what)), start(now()), terminal(isatty(STDERR_FILENO)) {}

void Progress::show(int64_t done, int64_t total) {
  if (now() - start < 2 || (shown && !terminal))
    return;
  if (terminal) {
    constexpr int64_t width = 30;
    int64_t full = done * width / std::max<int64_t>(total, 1);
    llvm::errs() << "\r" << what << " [" << std::string(full, '#') << std::string(width - full, ' ') << "] " << done << " of " << total << kClearLine;
  } else {
    llvm::errs() << what << ": " << done << " of " << total << " ...\n";
  }
  shown = true;
}

Progress::~Progress() {
  if (shown && terminal)
    llvm::errs() << "\r" << kClearLine;
}

std::optional<std::string> aligned::complaintAbout(const DecodeReport &report) {
  std::string text;
  llvm::raw_string_ostream os(text);
  auto percent = [](double share) { return llvm::format("%.0f %%", 100 * share); };
  constexpr double kExactly = 0.01, kMany = 0.25; // far beyond what 16 bits lose; of heads
  if (report.boundViolations.value_or(0) > 0)
    os << "expected no error beyond its proven bound, got " << *report.boundViolations;
  else if (report.policy == "exact" && report.errorMean > kExactly)
    os << "expected the error of 16 bits, got a mean of " << llvm::format("%.1e", report.errorMean);
  else if (1 - report.toleranceMet - report.flagged > kMany)
    os << "expected errors within twice the tolerance or estimates that say otherwise, got " << percent(1 - report.toleranceMet) << " of errors beyond, of which estimates announce "
       << percent(report.flagged);
  else
    return std::nullopt;
  return "policy '" + report.policy + "': " + text;
}

//===----------------------------------------------------------------------===//
// For people
//===----------------------------------------------------------------------===//

void aligned::printModel(const ModelReport &report, const RunOptions &options) {
  llvm::raw_ostream &os = llvm::outs();
  os << (options.target == "reference" ? "in float64" : "policy " + options.name()) << ", " << report.attentions << (report.attentions == 1 ? " attention" : " attentions") << "\n";
  for (size_t read = 0; read < report.reads.size(); ++read) {
    const AttentionReport &s = report.reads[read];
    if (!s.counted)
      continue;
    os << llvm::format("attention %zu: %.3f of the bytes of dense caches, %.2f bits of K, %.2f bits of V", read, s.bytesFraction, s.keyBits, s.valueBits);
    if (s.errorMean)
      os << llvm::format("; error %.1e mean, %.1e max against float64", *s.errorMean, *s.errorMax);
    os << "\n";
  }
  for (const OutputReport &output : report.outputs) {
    os << "out" << output.index << ":";
    if (output.measured)
      os << llvm::format(" error %.1e mean, %.1e max against %s in float64;", output.errorMean, output.errorMax, report.staged ? "the same stages" : "attention");
    if (output.compared)
      os << llvm::format(" differs from the expected one by %.1e at most (%.1e relative): %s", output.maxAbs, output.maxRel, output.matches ? "ok" : "TOO FAR");
    else
      os << " nothing to compare with";
    os << "\n";
  }
}

/// Names of ALIGNED_PART_*.
static constexpr const char *kParts[ALIGNED_PARTS] = {"call", "prepare", "scan", "rule", "list", "refine", "weigh", "add", "finish"};

static std::string reasonFor(const Choice &choice) {
  std::string text;
  llvm::raw_string_ostream os(text);
  if (choice.tokens <= choice.denseUpTo)
    os << "dense, as up to " << choice.denseUpTo << " tokens";
  else if (choice.denseMicroseconds < choice.planesMicroseconds)
    os << "planes, for their memory: both are held up to " << choice.denseUpTo << " tokens";
  else
    os << "planes, as from " << choice.denseUpTo + 1 << " tokens on";
  return text;
}

static void printChoices(const std::vector<DecodeReport> &reports) {
  auto isExplained = [](const DecodeReport &r) { return r.choice.has_value(); };
  if (llvm::none_of(reports, isExplained))
    return;
  llvm::raw_ostream &os = llvm::outs();
  os << "\nwhat dense-up-to=auto goes by: microseconds that the last step of a kv head is expected to take in a near cache, and that reading takes from memory (m)\n"
     << llvm::format("%-12s %7s %7s %7s %9s %9s %9s %9s  %s\n", "policy", "tokens", "K bits", "V bits", "planes", "dense", "m planes", "m dense", "choice");
  for (const DecodeReport &r : llvm::make_filter_range(reports, isExplained)) {
    const Choice &c = *r.choice;
    os << llvm::format("%-12s %7lld %7.2f %7.2f %9.1f %9.1f %9.1f %9.1f  %s\n", r.policy.c_str(), (long long)c.tokens, c.keyBits, c.valueBits, c.planesMicroseconds,
                       c.denseMicroseconds, c.planesReading, c.denseReading, reasonFor(c).c_str());
  }
}

void aligned::printDecode(const std::vector<DecodeReport> &reports) {
  llvm::raw_ostream &os = llvm::outs();
  os << llvm::format("%-12s %7s %7s %7s %11s %9s %9s %9s %9s %7s\n", "policy", "K bits", "V bits", "bytes", "error mean", "median", "max", "step us", "dense us", "ratio");
  auto timed = [](const char *format, double number) { // there is no dense kernel of f32 on GPUs
    std::string text;
    llvm::raw_string_ostream(text) << llvm::format(format, number);
    return std::isnan(number) ? "-" : text;
  };
  for (const DecodeReport &r : reports)
    os << llvm::format("%-12s %7.2f %7.2f %7.3f %11.1e %9.1e %9.1e %9.1f %9s %7s\n", r.policy.c_str(), r.keyBits, r.valueBits, r.bytesFraction, r.errorMean,
                       r.errorMedian, r.errorMax, r.stepMicroseconds, timed("%.1f", r.denseStepMicroseconds).c_str(),
                       timed("%.2f", r.stepMicroseconds / r.denseStepMicroseconds).c_str());
  printChoices(reports);
  auto isProfiled = [](const DecodeReport &r) { return !r.partNanoseconds.empty(); };
  if (llvm::none_of(reports, isProfiled))
    return;
  os << "\nnanoseconds for 64 tokens of a kv head, medians, clocks of the profile included\n" << llvm::format("%-12s", "policy");
  for (const char *part : kParts)
    os << llvm::format(" %8s", part);
  os << llvm::format(" %8s\n", "all");
  for (const DecodeReport &r : llvm::make_filter_range(reports, isProfiled)) {
    os << llvm::format("%-12s", r.policy.c_str());
    for (double ns : r.partNanoseconds)
      os << llvm::format(" %8.1f", ns);
    os << llvm::format(" %8.1f\n", std::accumulate(r.partNanoseconds.begin(), r.partNanoseconds.end(), 0.0));
  }
}

//===----------------------------------------------------------------------===//
// For machines
//===----------------------------------------------------------------------===//

llvm::json::Value aligned::jsonNumber(double x) { return std::isfinite(x) ? llvm::json::Value(x) : llvm::json::Value(nullptr); }

llvm::json::Object aligned::modelJson(const ModelReport &report, bool ok) {
  llvm::json::Array outputs, reads;
  for (const OutputReport &output : report.outputs) {
    llvm::json::Object entry{{"index", output.index}, {"compared", output.compared}};
    entry["max_abs"] = output.compared ? jsonNumber(output.maxAbs) : llvm::json::Value(nullptr);
    entry["max_rel"] = output.compared ? jsonNumber(output.maxRel) : llvm::json::Value(nullptr);
    entry["error_mean"] = output.measured ? jsonNumber(output.errorMean) : llvm::json::Value(nullptr);
    entry["error_max"] = output.measured ? jsonNumber(output.errorMax) : llvm::json::Value(nullptr);
    outputs.push_back(std::move(entry));
  }
  for (const AttentionReport &read : report.reads)
    reads.push_back(llvm::json::Object{{"k_bits", jsonNumber(read.keyBits)}, {"v_bits", jsonNumber(read.valueBits)}, {"bytes_fraction", jsonNumber(read.bytesFraction)},
                                       {"error_mean", jsonNumber(read.errorMean.value_or(NAN))},
                                       {"error_max", jsonNumber(read.errorMax.value_or(NAN))}});
  return llvm::json::Object{{"ok", ok}, {"attentions", report.attentions}, {"outputs", std::move(outputs)}, {"reads", std::move(reads)}};
}

llvm::json::Object aligned::decodeJson(const std::vector<DecodeReport> &reports, bool ok, const std::vector<DecodeReport> &alternatives) {
  auto array = [](const std::vector<DecodeReport> &reports) {
    llvm::json::Array runs;
    for (const DecodeReport &r : reports) {
      llvm::json::Object run{{"policy", r.policy},
                             {"tolerance", jsonNumber(r.tolerance)},
                             {"k_bits", jsonNumber(r.keyBits)},
                             {"v_bits", jsonNumber(r.valueBits)},
                             {"bytes_fraction", jsonNumber(r.bytesFraction)},
                             {"error_mean", jsonNumber(r.errorMean)},
                             {"error_median", jsonNumber(r.errorMedian)},
                             {"error_max", jsonNumber(r.errorMax)},
                             {"step_us", jsonNumber(r.stepMicroseconds)},
                             {"dense_step_us", jsonNumber(r.denseStepMicroseconds)},
                             {"certified_step_us", jsonNumber(r.certifiedStepMicroseconds)},
                             {"bound_ratio_max", jsonNumber(r.boundRatioMax)},
                             {"bound_violations", r.boundViolations ? llvm::json::Value(*r.boundViolations) : llvm::json::Value(nullptr)},
                             {"tolerance_met", jsonNumber(r.toleranceMet)},
                             {"flagged", jsonNumber(r.flagged)},
                             {"threads", r.threads}};
      llvm::json::Object parts;
      for (auto [name, ns] : llvm::zip(kParts, r.partNanoseconds))
        parts[name] = jsonNumber(ns);
      if (!parts.empty())
        run["tile_ns"] = std::move(parts);
      if (r.choice)
        run["choice"] = llvm::json::Object{{"tokens", r.choice->tokens}, {"dense_up_to", r.choice->denseUpTo},
                                           {"k_bits", r.choice->keyBits}, {"v_bits", r.choice->valueBits},
                                           {"planes_us", r.choice->planesMicroseconds}, {"dense_us", r.choice->denseMicroseconds},
                                           {"planes_reading_us", r.choice->planesReading}, {"dense_reading_us", r.choice->denseReading}};
      runs.push_back(std::move(run));
    }
    return runs;
  };
  llvm::json::Object object{{"ok", ok}, {"attentions", reports.empty() ? 0 : reports.front().attentions}, {"outputs", llvm::json::Array()}, {"runs", array(reports)}};
  if (!alternatives.empty())
    object["alternatives"] = array(alternatives);
  return object;
}

//===----------------------------------------------------------------------===//
// Numbers
//===----------------------------------------------------------------------===//

std::vector<double> aligned::toDouble(const void *data, int64_t count, aligned_dtype dtype) {
  std::vector<double> values(count);
  for (int64_t i = 0; i < count; ++i)
    switch (dtype) {
    case ALIGNED_DTYPE_F16:
      values[i] = static_cast<double>(static_cast<const _Float16 *>(data)[i]);
      break;
    case ALIGNED_DTYPE_BF16: {
      uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t *>(data)[i]) << 16;
      float wide;
      memcpy(&wide, &bits, sizeof(wide));
      values[i] = wide;
      break;
    }
    case ALIGNED_DTYPE_F32:
      values[i] = static_cast<const float *>(data)[i];
      break;
    case ALIGNED_DTYPE_F64:
      values[i] = static_cast<const double *>(data)[i];
      break;
    case ALIGNED_DTYPE_I1:
    case ALIGNED_DTYPE_I8:
      values[i] = static_cast<const int8_t *>(data)[i];
      break;
    case ALIGNED_DTYPE_I16:
      values[i] = static_cast<const int16_t *>(data)[i];
      break;
    case ALIGNED_DTYPE_I32:
      values[i] = static_cast<const int32_t *>(data)[i];
      break;
    case ALIGNED_DTYPE_I64:
      values[i] = static_cast<double>(static_cast<const int64_t *>(data)[i]);
      break;
    }
  return values;
}

aligned_value aligned::contiguous(const void *data, const std::vector<int64_t> &shape) {
  aligned_value value = {};
  value.array.data = const_cast<void *>(data);
  int64_t stride = 1;
  for (size_t dim = shape.size(); dim-- > 0; stride *= shape[dim]) {
    value.array.shape[dim] = shape[dim];
    value.array.strides[dim] = stride;
  }
  return value;
}
