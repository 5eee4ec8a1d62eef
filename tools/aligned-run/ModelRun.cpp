// A model's file: its function on the arrays of an archive, against the expected outputs and against attention in float64.
#include "Run.h"

#include "aligned/Reference/Attention.h"

#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using namespace aligned;

namespace {

/// Arrays that a dense argument or result of this type may come in; bfloat16 is uint16 to NumPy.
bool accepts(aligned_dtype type, DType array) {
  switch (type) {
  case ALIGNED_DTYPE_F16:
    return array == DType::F16;
  case ALIGNED_DTYPE_BF16:
    return array == DType::U16;
  case ALIGNED_DTYPE_F32:
    return array == DType::F32;
  case ALIGNED_DTYPE_F64:
    return array == DType::F64;
  case ALIGNED_DTYPE_I1:
    return array == DType::Bool;
  case ALIGNED_DTYPE_I8:
    return array == DType::I8 || array == DType::U8;
  case ALIGNED_DTYPE_I16:
    return array == DType::I16 || array == DType::U16;
  case ALIGNED_DTYPE_I32:
    return array == DType::I32 || array == DType::U32;
  case ALIGNED_DTYPE_I64:
    return array == DType::I64 || array == DType::U64;
  }
  return false;
}

const char *dtypeText(aligned_dtype type) {
  constexpr const char *names[] = {"float16", "bfloat16 as uint16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"};
  return names[type];
}

std::string typeText(const aligned_type &type) {
  std::string text = std::string(dtypeText(type.dtype)) + " [";
  for (int32_t dim = 0; dim < type.rank; ++dim)
    text += (dim ? ", " : "") + (type.shape[dim] == ALIGNED_DYNAMIC ? std::string("?") : std::to_string(type.shape[dim]));
  return text + "]";
}

bool fits(const aligned_type &type, const NpyArray &array) {
  if (!accepts(type.dtype, array.dtype) || static_cast<int32_t>(array.shape.size()) != type.rank)
    return false;
  for (int32_t dim = 0; dim < type.rank; ++dim)
    if (type.shape[dim] != ALIGNED_DYNAMIC && type.shape[dim] != array.shape[dim])
      return false;
  return true;
}

/// A result in dense form.
struct Dense {
  aligned_dtype dtype;
  std::vector<int64_t> shape;
  std::vector<double> values;
};

/// Runs a compiled module on the archive's arguments.
std::optional<std::vector<Dense>> call(const aligned_module *module, const std::map<std::string, NpyArray> &archive, const std::string &path) {
  int32_t count = aligned_module_arguments(module);
  std::vector<aligned_value> arguments(count);
  std::vector<Cache> caches;
  for (int32_t number = 0; number < count; ++number) {
    aligned_type type;
    aligned_module_argument(module, number, &type);
    std::string name = "arg" + std::to_string(number);
    auto found = archive.find(name);
    if (found == archive.end())
      return refuse(path + ": expected " + name + ", " + typeText(type) + ", found no such array");
    const NpyArray &array = found->second;
    if (!fits(type, array))
      return refuse(path + ": expected " + name + " to be " + typeText(type) + ", got " + aligned::name(array.dtype) + " " + shapeText(array.shape));
    aligned_value value = contiguous(array.bytes.data(), array.shape);
    if (type.is_cache) {
      Cache cache(aligned_module_create_cache(module, number, array.shape[2]));
      if (!cache || aligned_cache_append(cache.get(), array.bytes.data(), array.shape[2], value.array.strides))
        return refuse(name + ": " + aligned_last_error());
      arguments[number].cache = cache.get();
      caches.push_back(std::move(cache));
      continue;
    }
    arguments[number] = value;
  }

  std::vector<aligned_value> results(aligned_module_results(module));
  if (aligned_module_call(module, arguments.data(), results.data()))
    return refuse(aligned_last_error());
  std::vector<Dense> outputs;
  std::vector<const aligned_cache *> made;
  for (size_t number = 0; number < results.size(); ++number) {
    aligned_type type;
    aligned_module_result(module, number, &type);
    Dense output{type.dtype, {}, {}};
    if (type.is_cache) {
      const aligned_cache *cache = results[number].cache;
      output.shape = {cache->batch, cache->kv_heads, cache->tokens, cache->head_dim};
      int64_t values = cache->rows * cache->tokens * cache->head_dim;
      std::vector<char> bytes(values * 4 + 1);
      if (aligned_cache_unpack(cache, 16, bytes.data()))
        return refuse("out" + std::to_string(number) + ": " + aligned_last_error());
      output.values = toDouble(bytes.data(), values, type.dtype);
      bool owned = std::none_of(caches.begin(), caches.end(), [&](const Cache &known) { return known.get() == cache; });
      if (owned) // the module made it from a dense tensor, or by copying an argument
        caches.push_back(Cache(results[number].cache));
    } else {
      aligned_array &array = results[number].array;
      output.shape.assign(array.shape, array.shape + type.rank);
      int64_t values = 1;
      for (int64_t extent : output.shape)
        values *= extent;
      output.values = toDouble(array.data, values, type.dtype); // results are contiguous
      aligned_array_free(&array);
    }
    outputs.push_back(std::move(output));
  }
  return outputs;
}

bool isFloat(aligned_dtype dtype) { return dtype == ALIGNED_DTYPE_F16 || dtype == ALIGNED_DTYPE_BF16 || dtype == ALIGNED_DTYPE_F32 || dtype == ALIGNED_DTYPE_F64; }

/// |got - want| <= atol + rtol |want|, NaN equals NaN, infinities equal themselves.
void compare(OutputReport &report, const Dense &got, const std::vector<double> &want, double rtol, double atol) {
  report.compared = true;
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(got.values[i]) && std::isnan(want[i]))
      continue;
    double difference = got.values[i] == want[i] ? 0 : std::abs(got.values[i] - want[i]);
    double relative = difference == 0 ? 0 : difference / std::max(std::abs(want[i]), 1e-30);
    if (!(difference <= atol + rtol * std::abs(want[i])))
      report.matches = false;
    // std::max would lose a NaN
    report.maxAbs = std::isnan(difference) || std::isnan(report.maxAbs) ? NAN : std::max(report.maxAbs, difference);
    report.maxRel = std::isnan(relative) || std::isnan(report.maxRel) ? NAN : std::max(report.maxRel, relative);
  }
}

void measure(OutputReport &report, const Dense &got, const Dense &exact) {
  std::vector<double> errors = relativeErrors(got.values, exact.values, got.shape.empty() ? 1 : got.shape.back());
  double sum = 0;
  for (double error : errors) {
    sum += error;
    report.errorMax = std::isnan(error) || std::isnan(report.errorMax) ? NAN : std::max(report.errorMax, error);
  }
  report.errorMean = errors.empty() ? 0 : sum / errors.size();
  report.measured = true;
}

double defaultAtol(const RunOptions &options) {
  if (!options.budget.empty()) // which may ask for anything
    return 6e-2;
  if (options.policy == "balanced")
    return 2e-2;
  if (options.policy == "fast" || options.policy == "alignedkv")
    return 6e-2;
  if (options.policy == "draft")
    return 0.12;
  return options.tolerance ? std::max(2e-3, 8 * *options.tolerance) : 2e-3;
}

} // namespace

std::optional<ModelReport> aligned::runModel(const std::string &modelPath, const std::string &npzPath, const RunOptions &options) {
  std::optional<std::string> source = readText(modelPath);
  if (!source)
    return std::nullopt;
  std::string error;
  auto archive = readNpz(npzPath, error);
  if (!archive)
    return refuse(error);

  Module module = compile(*source, options.pipeline() + " probe=true");
  if (!module)
    return std::nullopt;
  ModelReport report;
  report.attentions = aligned_module_attentions(module.get());
  if (!report.attentions && options.raise) {
    std::string remarks = aligned_module_remarks(module.get());
    refuse("expected at least one attention in " + modelPath + ", found none");
    llvm::errs() << remarks;
    return std::nullopt;
  }

  std::vector<aligned_tally> tally(report.attentions, aligned_tally{});
  aligned_rt_record(tally.data(), tally.size());
  auto outputs = call(module.get(), *archive, npzPath);
  aligned_rt_record(nullptr, 0);
  if (!outputs)
    return std::nullopt;
  // What a dense kernel would read is the caches' own element type: all caches of a module share it.
  double denseBits = 16;
  for (int32_t number = 0; number < aligned_module_arguments(module.get()); ++number) {
    aligned_type type;
    aligned_module_argument(module.get(), number, &type);
    if (type.is_cache || options.format == "dense")
      denseBits = type.dtype == ALIGNED_DTYPE_F32 ? 32 : 16;
  }
  for (const aligned_tally &t : tally) {
    auto per = [](int64_t bits, int64_t values) { return values ? static_cast<double>(bits) / values : 0.0; };
    AttentionReport read;
    read.counted = t.key_values > 0;
    read.keyBits = per(t.key_bits, t.key_values);
    read.valueBits = per(t.value_bits, t.value_values);
    read.bytesFraction = per(t.key_bits + t.value_bits, t.key_values + t.value_values) / denseBits;
    report.reads.push_back(read);
  }

  std::optional<std::vector<Dense>> exact;
  if (options.target != "reference") {
    // A graph that came with decode attention fused over what has no stages compiles, but not to float64.
    Module reference(aligned_module_compile(source->c_str(), "target=reference probe=true", nullptr));
    if (!reference)
      llvm::errs() << "aligned-run: warning: not compared with float64: " << aligned_last_error() << "\n";
    std::vector<aligned_tally> read(report.attentions, aligned_tally{});
    aligned_rt_record(read.data(), read.size());
    if (reference)
      exact = call(reference.get(), *archive, npzPath);
    aligned_rt_record(nullptr, 0);
    if (reference && !exact)
      return std::nullopt;
    report.staged = std::any_of(read.begin(), read.end(), [](const aligned_tally &t) { return t.key_values > 0; });
  }
  int32_t probes = aligned_module_probes(module.get());
  size_t own = outputs->size() - probes;
  for (int32_t read = 0; exact && read < probes && probes == report.attentions; ++read) {
    OutputReport seen;
    measure(seen, (*outputs)[own + read], (*exact)[own + read]);
    report.reads[read].errorMean = seen.errorMean;
    report.reads[read].errorMax = seen.errorMax;
  }
  for (size_t number = 0; number < own; ++number) {
    const Dense &got = (*outputs)[number];
    OutputReport output;
    output.index = number;
    if (exact && isFloat(got.dtype) && got.shape == (*exact)[number].shape)
      measure(output, got, (*exact)[number]);
    auto want = archive->find("out" + std::to_string(number));
    if (want != archive->end()) {
      if (!accepts(got.dtype, want->second.dtype) || want->second.shape != got.shape)
        return refuse(npzPath + ": expected out" + std::to_string(number) + " to be " + dtypeText(got.dtype) + " " + shapeText(got.shape) + ", got " +
                      aligned::name(want->second.dtype) + " " + shapeText(want->second.shape));
      const bool isBF16 = got.dtype == ALIGNED_DTYPE_BF16; // whose graphs round scores and probabilities, too
      double rtol = options.rtol.value_or(isBF16 ? 0x1p-7 : 2e-3), atol = options.atol.value_or(std::max(defaultAtol(options), isBF16 ? 0x1p-6 : 0));
      compare(output, got, toDouble(want->second.bytes.data(), want->second.count(), got.dtype), rtol, atol);
    }
    report.outputs.push_back(output);
  }
  return report;
}
