// See the header.
#include "Launch.h"

#include "aligned/Runtime/Cuda.h"
#include "aligned/Support/Capture.h"
#include "aligned/Support/Json.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>

using namespace aligned;

namespace {

constexpr int64_t kCertificate = ALIGNED_CERTIFICATE_NUMBERS;
constexpr double kTolerance = 0.03; ///< of programs without certificates, unless another is asked for

struct Destroy {
  void operator()(aligned_cache *cache) const { aligned_cache_destroy(cache); }
  void operator()(aligned_program *program) const { aligned_program_destroy(program); }
  void operator()(aligned_graph *graph) const { aligned_graph_destroy(graph); }
};
struct FreeOnDevice {
  void operator()(void *memory) const { aligned_cuda_free(memory); }
};
struct DestroyEvent {
  void operator()(void *event) const { aligned_cuda_event_destroy(event); }
};
using Cache = std::unique_ptr<aligned_cache, Destroy>;
using OnDevice = std::unique_ptr<void, FreeOnDevice>;
using Event = std::unique_ptr<void, DestroyEvent>;

/// Prints the error and returns nothing, for `return refuse(...)`.
std::nullopt_t refuse(const std::string &why) {
  std::fprintf(stderr, "aligned-launch: error: %s\n", why.c_str());
  return std::nullopt;
}
bool refused() { return refuse(aligned_last_error()), false; }

/// The certified bound of each head (P4), from the state of the softmax and its certificate.
double boundOf(const float *acc, double sum, const float *certificate, int64_t dim) {
  if (sum == 0)
    return 0;
  double largest = 0;
  for (int64_t c = 0; c < dim; ++c)
    largest = std::max(largest, std::fabs(acc[c] / sum));
  double u = certificate[0] / sum;
  double bound = ((1 + u) * certificate[1] + u * certificate[2] + certificate[3]) / sum, within = certificate[5] + largest;
  return bound < within ? bound : within; // either may be NaN, where nothing is promised
}

double median(std::vector<double> values) {
  if (values.empty())
    return NAN;
  std::sort(values.begin(), values.end());
  size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

class Run {
public:
  Run(const Capture &capture, const LaunchOptions &options) : c(capture), options(options) {}

  bool open() {
    if (!aligned_cuda_available())
      return refused();
    report.device = aligned_cuda_device_name();
    report.capability = aligned_cuda_compute_capability();
    program.reset(aligned_program_open(options.program.c_str()));
    if (!program)
      return refused();
    if (!chooseSite())
      return false;
    report.site = site.site;
    report.certified = site.certified;
    report.uploaded = !isDense() && (!aligned_program_appends(program.get(), &site.key, site.key_dim) ||
                                     !aligned_program_appends(program.get(), &site.value, site.value_dim));
    report.tolerance = options.tolerance.value_or(site.certified ? 0 : kTolerance);
    int64_t rows = c.queryHeads;
    for (auto [memory, bytes] :
         {std::pair(&query, rows * c.keyDim * c.width()), std::pair(&acc, rows * c.valueDim * 4), std::pair(&max, rows * 4),
          std::pair(&sum, rows * 4), std::pair(&certificate, rows * kCertificate * 4)}) {
      memory->reset(aligned_cuda_allocate(bytes));
      if (!*memory)
        return refused();
    }
    from.reset(aligned_cuda_event());
    to.reset(aligned_cuda_event());
    return from && to ? true : refused();
  }

  bool run() {
    std::vector<double> allErrors, allTimes, allGraphTimes;
    int64_t first = options.layer.value_or(0), end = options.layer ? first + 1 : c.layers;
    for (int64_t layer = first; layer < end; ++layer) {
      current = {};
      current.layer = layer;
      errors.clear();
      times.clear();
      graphTimes.clear();
      if (!runLayer(layer))
        return false;
      summarize(current, errors, times, graphTimes);
      report.layers.push_back(current);
      LayerReport &all = report.all;
      all.steps += current.steps;
      all.tokens = current.tokens;
      all.keyBits += current.keyBits, all.keyValues += current.keyValues, all.valueBits += current.valueBits,
          all.valueValues += current.valueValues;
      all.heads += current.heads, all.violations += current.violations;
      all.boundRatioMax = std::fmax(all.boundRatioMax, current.boundRatioMax);
      allErrors.insert(allErrors.end(), errors.begin(), errors.end());
      allTimes.insert(allTimes.end(), times.begin(), times.end());
      allGraphTimes.insert(allGraphTimes.end(), graphTimes.begin(), graphTimes.end());
    }
    summarize(report.all, allErrors, allTimes, allGraphTimes);
    return true;
  }

  LaunchReport report;

private:
  bool fits(const aligned_program_site &s) const {
    return s.kv_heads == c.kvHeads && s.heads == c.group() && s.queries == 1 && !s.sink_logits && !s.attn_mask && !(s.softcap || s.tolerance_factor || s.window || s.sinks || s.later) &&
           s.key_dim == c.keyDim && s.value_dim == c.valueDim &&
           s.query == c.element && s.key.element == c.element && s.value.element == c.element;
  }

  bool chooseSite() {
    static const char *const elements[] = {"f16", "bf16", "f32"};
    auto text = [](int64_t kvHeads, int64_t heads, int64_t keyDim, int64_t valueDim, int32_t element) {
      return std::to_string(kvHeads) + " kv heads x " + std::to_string(heads) + " query rows, head_dim " +
             std::to_string(keyDim) + " and " + std::to_string(valueDim) + ", " + elements[element];
    };
    std::string seen;
    for (int32_t i = 0; i < aligned_program_sites(program.get()); ++i) {
      if (aligned_program_site_info(program.get(), i, &site))
        return refused();
      if (options.site && *options.site != site.site)
        continue;
      if (fits(site))
        return true;
      seen += "\n  site " + std::to_string(site.site) + ": " +
              text(site.kv_heads, site.heads, site.key_dim, site.value_dim, site.query);
    }
    refuse(options.program + ": expected a site " + (options.site ? std::to_string(*options.site) + " " : "") + "for " +
           text(c.kvHeads, c.group(), c.keyDim, c.valueDim, c.element) + ", got " + (seen.empty() ? "none" : "these:" + seen));
    return false;
  }

  bool isDense() const { return site.key.kind == ALIGNED_FORMAT_DENSE; }

  /// K, V and their length are given to a call where they lie, on the host or the device.
  void give(aligned_decode_call &call, const void *k, const void *v, const int64_t *length) const {
    call.key = device[0].get();
    call.value = device[1].get();
    call.dense_key = k;
    call.dense_value = v;
    call.lengths = length;
    call.capacity = c.tokens;
    call.splits = options.splits;
  }

  /// A dense site reads the layer as the capture holds it, all tokens at once: a step is but another length.
  bool createArrays(int64_t layer) {
    int64_t strides[4];
    length.reset(aligned_cuda_allocate(sizeof(int64_t)));
    for (int side = 0; side < 2; ++side) {
      int64_t bytes = c.kvHeads * c.tokens * (side ? site.value_dim : site.key_dim) * c.width();
      array[side].reset(aligned_cuda_allocate(bytes));
      onHost[side] = c.tokensFrom(side ? c.v : c.k, layer, 0, strides);
      if (!length || !array[side] || aligned_cuda_copy_to_device(array[side].get(), onHost[side], bytes))
        return refused();
    }
    return true;
  }

  bool createCaches() {
    for (int side = 0; side < 2; ++side) {
      const aligned_format &format = side ? site.value : site.key;
      int64_t dim = side ? site.value_dim : site.key_dim, capacity = c.firstPosition + c.steps;
      device[side].reset();
      Cache &cache = report.uploaded ? host[side] : device[side];
      cache.reset(report.uploaded ? aligned_cache_create(&format, 1, c.kvHeads, dim, capacity)
                                  : aligned_program_create_cache(program.get(), &format, 1, c.kvHeads, dim, capacity));
      if (!cache)
        return refused();
    }
    return true;
  }

  bool extend(int64_t layer, int64_t tokens) {
    if (isDense())
      return aligned_cuda_copy_to_device(length.get(), &tokens, sizeof tokens) == 0 || refused();
    for (int side = 0; side < 2; ++side) {
      aligned_cache *cache = (report.uploaded ? host : device)[side].get();
      int64_t strides[4], have = cache->tokens;
      const char *data = c.tokensFrom(side ? c.v : c.k, layer, have, strides);
      if (aligned_cache_append(cache, data, tokens - have, strides))
        return refused();
      if (report.uploaded) {
        device[side].reset(); // room for one is enough
        device[side].reset(aligned_cuda_cache_upload(program.get(), cache));
        if (!device[side])
          return refused();
      }
    }
    return true;
  }

  bool runLayer(int64_t layer) {
    int64_t steps = options.steps.value_or(c.steps);
    if (!(isDense() ? createArrays(layer) : createCaches()))
      return false;
    if (!report.uploaded && !extend(layer, c.firstPosition)) // the prefix at once; then token by token
      return false;
    for (int64_t step = 0; step < steps; ++step) {
      int64_t tokens = c.firstPosition + step + 1;
      if (!extend(layer, tokens) || !compare(layer, step, tokens) || !time())
        return false;
      ++current.steps;
      current.tokens = tokens;
    }
    return true;
  }

  /// One step with host memory, and what it read and erred.
  bool compare(int64_t layer, int64_t step, int64_t tokens) {
    std::string bytes = c.query(layer, step);
    int64_t heads = c.queryHeads, dim = c.valueDim;
    std::vector<float> outAcc(heads * dim), outMax(heads), outSum(heads), outCertificate(heads * kCertificate);
    aligned_decode_call call = {};
    call.batch = 1;
    give(call, onHost[0], onHost[1], &tokens);
    call.query = bytes.data();
    call.scale = static_cast<float>(c.scale);
    call.location = ALIGNED_LOCATION_HOST;
    call.acc = outAcc.data();
    call.max = outMax.data();
    call.sum = outSum.data();
    call.certificate = site.certified ? outCertificate.data() : nullptr;
    std::vector<aligned_tally> tallies(site.site + 1);
    aligned_rt_record(tallies.data(), static_cast<int32_t>(tallies.size()));
    int failed = aligned_program_decode(program.get(), site.site, &call);
    aligned_rt_record(nullptr, 0);
    if (failed)
      return refused();
    const aligned_tally &tally = tallies[site.site];
    current.keyBits += tally.key_bits, current.keyValues += tally.key_values;
    current.valueBits += tally.value_bits, current.valueValues += tally.value_values;

    std::vector<double> want = c.exact(bytes, layer, tokens), out(heads * dim);
    for (int64_t i = 0; i < heads * dim; ++i)
      out[i] = outSum[i / dim] == 0 ? 0 : double(outAcc[i]) / outSum[i / dim];
    std::vector<double> relative = relativeErrors(out, want, dim);
    errors.insert(errors.end(), relative.begin(), relative.end());
    std::vector<double> usual;
    for (int64_t head = 0; head < c.kvHeads; ++head)
      usual.push_back(c.usualRow(layer, head, tokens));
    for (int64_t head = 0; head < heads; ++head) {
      bool promised = true, violated = false;
      double error = 0, offBy = 0, length = 0; // the last two squared
      for (int64_t i = head * dim; i < (head + 1) * dim; ++i) {
        promised &= std::isfinite(want[i]);
        double difference = std::fabs(out[i] - want[i]);
        if (!(difference <= error) && !std::isnan(error)) // a NaN stays: it is within no bound
          error = difference;
        offBy += difference * difference, length += want[i] * want[i];
      }
      if (site.certified && promised) {
        double bound = boundOf(&outAcc[head * dim], outSum[head], &outCertificate[head * kCertificate], dim);
        violated |= !(error <= bound) && std::isfinite(bound);
        if (error > 0)
          current.boundRatioMax = std::fmax(current.boundRatioMax, error / bound);
      }
      if (report.tolerance > 0 && promised)
        violated |= !(std::sqrt(offBy) <= report.tolerance * std::max(std::sqrt(length), usual[head / c.group()]));
      current.violations += violated;
      ++current.heads;
    }
    return aligned_cuda_copy_to_device(query.get(), bytes.data(), bytes.size()) == 0 || refused();
  }

  /// The same step with device memory, by events.
  bool time() {
    aligned_step step = {};
    step.site = site.site;
    aligned_decode_call &call = step.call;
    call.batch = 1;
    give(call, array[0].get(), array[1].get(), static_cast<int64_t *>(length.get()));
    call.query = query.get();
    call.scale = static_cast<float>(c.scale);
    call.location = ALIGNED_LOCATION_CUDA;
    call.acc = static_cast<float *>(acc.get());
    call.max = static_cast<float *>(max.get());
    call.sum = static_cast<float *>(sum.get());
    call.certificate = site.certified ? static_cast<float *>(certificate.get()) : nullptr;
    std::unique_ptr<aligned_graph, Destroy> graph;
    if (options.graph && options.repeat && !(graph = decltype(graph)(aligned_program_capture(program.get(), &step, 1))))
      return refused();
    for (bool captured : {false, true})
      for (int i = 0; i <= options.repeat && options.repeat && (!captured || graph); ++i) { // the first is not counted
        if (aligned_cuda_event_record(from.get()) ||
            (captured ? aligned_graph_launch(graph.get()) : aligned_program_decode(program.get(), site.site, &call)) ||
            aligned_cuda_event_record(to.get()))
          return refused();
        double microseconds = aligned_cuda_event_microseconds(from.get(), to.get());
        if (microseconds < 0)
          return refused();
        if (i)
          (captured ? graphTimes : times).push_back(microseconds);
      }
    return true;
  }

  void summarize(LayerReport &layer, const std::vector<double> &errors, const std::vector<double> &times,
                 const std::vector<double> &graphTimes) const {
    layer.bytesFraction = double(layer.keyBits + layer.valueBits) / (double(layer.keyValues + layer.valueValues) * 8 * c.width());
    layer.errorMean = std::accumulate(errors.begin(), errors.end(), 0.0) / errors.size();
    layer.errorMax = std::isnan(layer.errorMean) ? NAN : *std::max_element(errors.begin(), errors.end());
    layer.stepMicroseconds = median(times);
    layer.graphMicroseconds = median(graphTimes);
  }

  const Capture &c;
  const LaunchOptions &options;
  std::unique_ptr<aligned_program, Destroy> program;
  aligned_program_site site = {};
  Cache host[2], device[2];
  const void *onHost[2] = {}; ///< of a dense site: the layer's K and V
  OnDevice array[2], length;
  OnDevice query, acc, max, sum, certificate;
  Event from, to;
  LayerReport current;
  std::vector<double> errors, times, graphTimes; ///< of the current layer
};

//===----------------------------------------------------------------------===//
// Reports
//===----------------------------------------------------------------------===//

std::string number(double x, const char *format) {
  char digits[32];
  std::snprintf(digits, sizeof digits, format, x);
  return digits;
}

double perValue(int64_t bits, int64_t values) { return double(bits) / values; }

std::string cell(double x, const char *format) { return std::isnan(x) ? "-" : number(x, format); }

void printLine(const std::string &name, const LayerReport &layer, bool certified) {
  std::printf("%5s  %6lld  %6.2f  %6.2f  %5.3f  %10.2e  %9.2e  %8s  %8s", name.c_str(), static_cast<long long>(layer.tokens),
              perValue(layer.keyBits, layer.keyValues), perValue(layer.valueBits, layer.valueValues), layer.bytesFraction,
              layer.errorMean, layer.errorMax, cell(layer.stepMicroseconds, "%.1f").c_str(),
              cell(layer.graphMicroseconds, "%.1f").c_str());
  if (certified)
    std::printf("  %11s", cell(layer.boundRatioMax, "%.2e").c_str());
  std::printf("  %10lld of %lld\n", static_cast<long long>(layer.violations), static_cast<long long>(layer.heads));
}

/// Numbers that are not finite become null.
nlohmann::ordered_json json(const LayerReport &layer) {
  return {{"steps", layer.steps},
          {"tokens", layer.tokens},
          {"key_bits", perValue(layer.keyBits, layer.keyValues)},
          {"value_bits", perValue(layer.valueBits, layer.valueValues)},
          {"bytes_fraction", layer.bytesFraction},
          {"error_mean", layer.errorMean},
          {"error_max", layer.errorMax},
          {"step_us", layer.stepMicroseconds},
          {"graph_us", layer.graphMicroseconds},
          {"bound_ratio_max", layer.boundRatioMax},
          {"heads", layer.heads},
          {"violations", layer.violations}};
}

} // namespace

std::optional<LaunchReport> aligned::launchCapture(const LaunchOptions &options) {
  std::string error;
  std::optional<Capture> capture = loadCapture(options.capture, error);
  if (!capture)
    return refuse(error);
  if (options.layer && *options.layer >= capture->layers)
    return refuse("expected a layer from 0 to " + std::to_string(capture->layers - 1) + ", got " +
                  std::to_string(*options.layer));
  if (options.steps && *options.steps > capture->steps)
    return refuse("expected 1 to " + std::to_string(capture->steps) + " steps, got " + std::to_string(*options.steps));
  Run run(*capture, options);
  if (!run.open() || !run.run())
    return std::nullopt;
  return std::move(run.report);
}

void aligned::printReport(const LaunchReport &report) {
  std::printf("%s, sm_%d; site %d%s%s\n\n", report.device.c_str(), report.capability, report.site,
              report.certified ? ", certified" : "",
              report.uploaded ? "; caches are appended to on the host and uploaded for each step" : "");
  std::printf("layer  tokens  K bits  V bits  bytes  error mean  error max   step us  graph us%s  %s\n",
              report.certified ? "  error/bound" : "", report.tolerance > 0 ? "beyond tolerance" : "beyond bound");
  for (const LayerReport &layer : report.layers)
    printLine(std::to_string(layer.layer), layer, report.certified);
  printLine("all", report.all, report.certified);
}

void aligned::printJson(const LaunchReport &report) {
  auto layers = nlohmann::ordered_json::array();
  for (const LayerReport &layer : report.layers) {
    layers.push_back({{"layer", layer.layer}});
    layers.back().update(json(layer));
  }
  nlohmann::ordered_json all = {{"ok", report.ok()},
                                {"device", report.device},
                                {"compute_capability", report.capability},
                                {"site", report.site},
                                {"certified", report.certified},
                                {"uploaded", report.uploaded},
                                {"tolerance", report.tolerance > 0 ? nlohmann::ordered_json(report.tolerance) : nullptr},
                                {"layers", layers},
                                {"all", json(report.all)}};
  std::printf("%s\n", all.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}
