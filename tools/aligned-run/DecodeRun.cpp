// A captured cache: every layer, head and step through the compiled kernel, against float64 and against the dense kernel's time.
#include "Page.h"

#include "aligned/Reference/Attention.h"
#include "aligned/Reference/Baselines.h"

#include "llvm/Support/MemoryBuffer.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

using namespace aligned;

namespace {

constexpr int kTimedCalls = 5; ///< per policy, layer and step, each beside a dense one

/// The folder's contents: q [layers, q_heads, steps, dim], k and v [layers, kv_heads, tokens, dim].
struct Capture {
  NpyArray q, k, v;
  std::string model, text; ///< what was captured, where meta.json says so
  aligned_dtype dtype;
  int64_t layers, queryHeads, kvHeads, steps, tokens, keyDim, valueDim, firstPosition;
  double scale;

  int64_t width() const { return byteWidth(q.dtype); }
  const char *element() const { return dtype == ALIGNED_DTYPE_F16 ? "f16" : dtype == ALIGNED_DTYPE_BF16 ? "bf16" : "f32"; }
  const char *at(const NpyArray &array, int64_t element) const { return array.bytes.data() + element * width(); }
};

std::optional<Capture> load(const std::string &folder) {
  Capture capture;
  std::string error, metaPath = folder + "/meta.json";
  for (auto [name, array] : {std::pair("q", &capture.q), std::pair("k", &capture.k), std::pair("v", &capture.v)}) {
    auto read = readNpy(folder + "/" + name + ".npy", error);
    if (!read)
      return refuse(error);
    *array = std::move(*read);
    if (array->shape.size() != 4)
      return refuse(folder + "/" + name + ".npy: expected rank 4, got shape " + shapeText(array->shape));
  }
  auto file = llvm::MemoryBuffer::getFile(metaPath);
  if (!file)
    return refuse(metaPath + ": expected a readable file, got: " + file.getError().message());
  auto meta = llvm::json::parse((*file)->getBuffer());
  if (!meta)
    return refuse(metaPath + ": expected JSON, got: " + llvm::toString(meta.takeError()));
  const llvm::json::Object *object = meta->getAsObject();
  if (!object)
    return refuse(metaPath + ": expected a JSON object");
  auto group = object->getInteger("group"), first = object->getInteger("first_position");
  auto scale = object->getNumber("scale");
  if (!group || *group < 1)
    return refuse(metaPath + ": expected a positive integer 'group', the query heads per kv head");
  if (!first || *first < 0)
    return refuse(metaPath + ": expected an integer 'first_position' that is not negative, the position of the first step");
  if (!scale || !std::isfinite(*scale))
    return refuse(metaPath + ": expected a number 'scale', the factor of scores");
  capture.scale = *scale;
  capture.firstPosition = *first;
  capture.model = object->getString("model").value_or("");
  capture.text = object->getString("text").value_or("");

  bool bfloat16 = object->getString("dtype").value_or("") == "bfloat16";
  const NpyArray &q = capture.q, &k = capture.k, &v = capture.v;
  if (q.dtype == DType::F16)
    capture.dtype = ALIGNED_DTYPE_F16;
  else if (q.dtype == DType::F32)
    capture.dtype = ALIGNED_DTYPE_F32;
  else if (q.dtype == DType::U16 && bfloat16)
    capture.dtype = ALIGNED_DTYPE_BF16;
  else
    return refuse(folder + "/q.npy: expected float16, float32, or uint16 with \"dtype\": \"bfloat16\" in meta.json, got " + name(q.dtype));
  for (auto [file, array] : {std::pair("k", &k), std::pair("v", &v)})
    if (array->dtype != q.dtype)
      return refuse(folder + "/" + file + ".npy: expected " + name(q.dtype) + " as q.npy has, got " + name(array->dtype));

  capture.layers = q.shape[0], capture.queryHeads = q.shape[1], capture.steps = q.shape[2], capture.keyDim = q.shape[3];
  capture.kvHeads = k.shape[1], capture.tokens = k.shape[2], capture.valueDim = v.shape[3];
  if (k.shape[0] != capture.layers || v.shape[0] != capture.layers || v.shape[1] != capture.kvHeads || v.shape[2] != capture.tokens || k.shape[3] != capture.keyDim)
    return refuse(folder + ": expected q, k and v to agree in layers, kv_heads, tokens and head_dim, got " + shapeText(q.shape) + ", " + shapeText(k.shape) + " and " +
                  shapeText(v.shape));
  if (capture.kvHeads < 1 || capture.queryHeads != capture.kvHeads * *group)
    return refuse(folder + ": expected group * kv_heads = " + std::to_string(*group * capture.kvHeads) + " query heads in q.npy, got " + std::to_string(capture.queryHeads));
  if (capture.layers < 1 || capture.steps < 1)
    return refuse(folder + "/q.npy: expected at least one layer and one step, got shape " + shapeText(q.shape));
  if (*first > capture.tokens - capture.steps)
    return refuse(folder + ": expected first_position + steps = " + std::to_string(*first + capture.steps) + " tokens in k.npy, got " + std::to_string(capture.tokens));
  return capture;
}

/// One attention over caches of any length. The result is f32, so that rounding it does not hide errors.
std::string moduleText(const Capture &c) {
  std::string element = c.element();
  auto tensor = [](int64_t heads, std::string tokens, int64_t dim, std::string type) {
    return "tensor<1x" + std::to_string(heads) + "x" + tokens + "x" + std::to_string(dim) + "x" + type + ">";
  };
  std::string query = tensor(c.queryHeads, "1", c.keyDim, element), key = tensor(c.kvHeads, "?", c.keyDim, element), value = tensor(c.kvHeads, "?", c.valueDim, element),
              out = tensor(c.queryHeads, "1", c.valueDim, "f32");
  float scale = static_cast<float>(c.scale);
  uint32_t bits;
  memcpy(&bits, &scale, sizeof(bits));
  char constant[16];
  snprintf(constant, sizeof(constant), "0x%08X", bits);
  return "func.func @decode(%query: " + query + ", %key: " + key + ", %value: " + value + ") -> " + out + " {\n  %scale = arith.constant " + constant +
         " : f32\n  %out = aligned.attention %query, %key, %value scale %scale : " + query + ", " + key + ", " + value + " -> " + out + "\n  return %out : " + out + "\n}\n";
}

/// What was read, over all layers, heads and steps, and how far each head's output was off.
struct Measured {
  aligned_tally tally = {};
  std::vector<double> errors;
  std::vector<Certified> certificates; ///< of the heads whose exact output is finite; nothing is promised of others

  void add(const aligned_tally &read) {
    tally.key_bits += read.key_bits;
    tally.key_values += read.key_values;
    tally.value_bits += read.value_bits;
    tally.value_values += read.value_values;
  }
  void add(const std::vector<double> &more) { errors.insert(errors.end(), more.begin(), more.end()); }
};

/// One policy's kernel, its caches of the current layer, and what was measured.
struct Contestant {
  RunOptions options;
  Module module, certified; ///< the same kernel without and with a certificate
  bool split = false;
  aligned_format formats[2];
  Cache caches[2];
  Measured measured;
  std::vector<double> times, certifiedTimes, denseTimes;
  StepPlan plan; ///< of the step that is pictured
};

/// What others do with a cache.
struct Alternative {
  std::string name;
  std::function<PolicyResult(const HeadInputs &)> decode;
  Measured measured;
};

/// Dense tokens 0 .. count - 1 of one layer, contiguous.
std::vector<char> denseTokens(const Capture &c, const NpyArray &array, int64_t layer, int64_t count, int64_t dim) {
  std::vector<char> bytes;
  for (int64_t head = 0; head < c.kvHeads; ++head) {
    const char *start = c.at(array, ((layer * c.kvHeads + head) * c.tokens) * dim);
    bytes.insert(bytes.end(), start, start + count * dim * c.width());
  }
  return bytes;
}

/// What a certified call gives, per query head.
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
  bool extend(Contestant &contestant, int64_t layer, int64_t tokens);
  HeadInputs inputs(int64_t layer, int64_t head, int64_t tokens);
  std::vector<double> exact(int64_t layer, int64_t tokens);
  /// The alternatives at one step, and the probabilities if it is the one that is pictured.
  void measureAlternatives(int64_t layer, int64_t number, const std::vector<double> &want);
  bool pictured(int64_t layer, int64_t number) const { return page && layer == page->layer && number == page->step; }
  /// Seconds of one call; what it gives where asked for.
  std::optional<double> call(const Module &module, aligned_value key, aligned_value value, Outcome *outcome = nullptr);

  const Capture &c;
  DecodePage *const page;
  std::string query; ///< [queryHeads, keyDim] of the current step
  Module dense;
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
  if (outcome)
    *outcome = {values(0, c.queryHeads * c.valueDim), values(1, c.queryHeads), values(2, c.queryHeads)};
  for (aligned_value &result : results)
    aligned_array_free(&result.array);
  return seconds;
}

bool DecodeRun::extend(Contestant &contestant, int64_t layer, int64_t tokens) {
  for (int side = 0; side < 2; ++side) {
    aligned_cache *cache = contestant.caches[side].get();
    const NpyArray &array = side ? c.v : c.k;
    int64_t dim = side ? c.valueDim : c.keyDim;
    int64_t strides[4] = {c.kvHeads * c.tokens * dim, c.tokens * dim, dim, 1};
    if (aligned_cache_append(cache, c.at(array, (layer * c.kvHeads * c.tokens + cache->tokens) * dim), tokens - cache->tokens, strides))
      return refuse(aligned_last_error()), false;
  }
  return true;
}

HeadInputs DecodeRun::inputs(int64_t layer, int64_t head, int64_t tokens) {
  int64_t group = c.queryHeads / c.kvHeads, first = (layer * c.kvHeads + head) * c.tokens;
  return {group,
          tokens,
          c.keyDim,
          c.valueDim,
          toDouble(query.data() + head * group * c.keyDim * c.width(), group * c.keyDim, c.dtype),
          toDouble(c.at(c.k, first * c.keyDim), tokens * c.keyDim, c.dtype),
          toDouble(c.at(c.v, first * c.valueDim), tokens * c.valueDim, c.dtype),
          static_cast<float>(c.scale),
          c.dtype == ALIGNED_DTYPE_BF16 ? Storage::BFloat16 : Storage::Half};
}

std::vector<double> DecodeRun::exact(int64_t layer, int64_t tokens) {
  std::vector<double> out(c.queryHeads * c.valueDim);
  for (int64_t head = 0; head < c.kvHeads; ++head) {
    HeadInputs in = inputs(layer, head, tokens);
    exactAttention(in.q.data(), in.heads, in.k.data(), in.v.data(), tokens, c.keyDim, c.valueDim, in.scale, /*maskedZero=*/false,
                   out.data() + head * in.heads * c.valueDim);
  }
  return out;
}

void DecodeRun::measureAlternatives(int64_t layer, int64_t number, const std::vector<double> &want) {
  int64_t tokens = c.firstPosition + number + 1;
  for (int64_t head = 0; head < c.kvHeads; ++head) {
    HeadInputs in = inputs(layer, head, tokens);
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
struct PlanListener {
  int64_t row;
  StepPlan &plan;

  static void listen(void *context, int32_t, int64_t row, int64_t blocks, int64_t units, const uint8_t *keyLayers, const uint8_t *valueLayers) {
    auto &[wanted, plan] = *static_cast<PlanListener *>(context);
    if (row != wanted)
      return;
    auto bits = [](uint8_t layers) { return 4 * layers; };
    plan = {units, std::vector<int>(blocks * units), std::vector<int>(ALIGNED_BLOCK * blocks)};
    std::transform(keyLayers, keyLayers + plan.keyBits.size(), plan.keyBits.begin(), bits);
    std::transform(valueLayers, valueLayers + plan.valueBits.size(), plan.valueBits.begin(), bits);
  }
};

bool DecodeRun::step(int64_t layer, int64_t number) {
  int64_t tokens = c.firstPosition + number + 1;
  query.clear();
  for (int64_t head = 0; head < c.queryHeads; ++head)
    query.append(c.at(c.q, ((layer * c.queryHeads + head) * c.steps + number) * c.keyDim), c.keyDim * c.width());
  std::vector<double> want = exact(layer, tokens);
  std::vector<char> denseKey = denseTokens(c, c.k, layer, tokens, c.keyDim), denseValue = denseTokens(c, c.v, layer, tokens, c.valueDim);
  aligned_value key = contiguous(denseKey.data(), {1, c.kvHeads, tokens, c.keyDim}), value = contiguous(denseValue.data(), {1, c.kvHeads, tokens, c.valueDim});

  if (page)
    measureAlternatives(layer, number, want);

  for (Contestant &contestant : contestants) {
    aligned_value ours[2] = {key, value};
    if (contestant.split) {
      if (!extend(contestant, layer, tokens))
        return false;
      ours[0].cache = contestant.caches[0].get();
      ours[1].cache = contestant.caches[1].get();
    }
    Outcome got;
    aligned_tally tally = {};
    PlanListener listener{page ? page->head : 0, contestant.plan};
    aligned_rt_record(&tally, 1);
    if (pictured(layer, number))
      aligned_rt_record_plan(&PlanListener::listen, &listener);
    bool ok = call(contestant.certified, ours[0], ours[1], &got).has_value();
    aligned_rt_record(nullptr, 0);
    aligned_rt_record_plan(nullptr, nullptr);
    if (!ok)
      return false;
    contestant.measured.add(tally);
    std::vector<double> relative = relativeErrors(got.output, want, c.valueDim);
    contestant.measured.add(relative);
    for (int64_t head = 0; head < c.queryHeads; ++head) {
      Certified certified{got.bound[head], 0, got.estimate[head], relative[head]};
      bool promised = true;
      for (int64_t i = head * c.valueDim; i < (head + 1) * c.valueDim; ++i) {
        double difference = std::fabs(got.output[i] - want[i]);
        promised &= std::isfinite(want[i]);
        if (!(difference <= certified.error) && !std::isnan(certified.error)) // a NaN stays: it is within no bound
          certified.error = difference;
      }
      if (promised)
        contestant.measured.certificates.push_back(certified);
    }
    for (int repeat = 0; repeat < kTimedCalls; ++repeat) { // interleaved, so that both see the same machine
      auto seconds = call(contestant.module, ours[0], ours[1]), denseSeconds = call(dense, key, value), certifiedSeconds = call(contestant.certified, ours[0], ours[1]);
      if (!seconds || !denseSeconds || !certifiedSeconds)
        return false;
      contestant.times.push_back(*seconds);
      contestant.certifiedTimes.push_back(*certifiedSeconds);
      contestant.denseTimes.push_back(*denseSeconds);
    }
  }
  return true;
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
void judge(DecodeReport &report, const Measured &measured) {
  auto share = [](const auto &of, auto holds) { return double(std::count_if(of.begin(), of.end(), holds)) / of.size(); };
  report.boundRatioMax = 0;
  report.boundViolations = 0;
  for (const Certified &certified : measured.certificates) {
    *report.boundViolations += !certified.holds();
    if (certified.error > 0)
      report.boundRatioMax = std::max(report.boundRatioMax, certified.error / certified.bound);
  }
  if (report.tolerance > 0) {
    report.toleranceMet = share(measured.errors, [&](double error) { return error <= 2 * report.tolerance; });
    report.flagged = share(measured.certificates, [&](const Certified &certified) { return certified.estimate > report.tolerance; });
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
  std::string source = moduleText(c);
  dense = compile(source, "policy=exact format=dense isa=" + policies.front().isa);
  if (!dense)
    return std::nullopt;
  for (const RunOptions &options : policies) {
    Contestant contestant;
    contestant.options = options;
    contestant.module = compile(source, options.pipeline());
    if (!contestant.module || !(contestant.certified = compile(source, options.pipeline() + " certify")))
      return std::nullopt;
    for (int side = 0; side < 2; ++side) {
      aligned_type type;
      aligned_module_argument(contestant.module.get(), 1 + side, &type);
      contestant.split = type.is_cache;
      contestant.formats[side] = type.format;
    }
    contestants.push_back(std::move(contestant));
  }

  if (page)
    alternatives = alternativesTo(policies, c.dtype == ALIGNED_DTYPE_BF16);
  int64_t firstStep = policies.front().lastStep ? c.steps - 1 : 0, perLayer = c.steps - firstStep;
  Progress progress("decoding steps");
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    for (Contestant &contestant : contestants)
      for (int side = 0; side < 2 && contestant.split; ++side) {
        contestant.caches[side].reset(aligned_cache_create(&contestant.formats[side], 1, c.kvHeads, side ? c.valueDim : c.keyDim, c.firstPosition + c.steps));
        if (!contestant.caches[side])
          return refuse(aligned_last_error());
      }
    for (int64_t number = firstStep; number < c.steps; ++number) {
      if (!step(layer, number))
        return std::nullopt;
      progress.show(layer * perLayer + number - firstStep + 1, c.layers * perLayer);
    }
  }

  std::vector<DecodeReport> reports;
  for (Contestant &contestant : contestants) {
    DecodeReport report = summary(contestant.options.policy, contestant.measured, c.width());
    report.tolerance = contestant.options.tolerance.value_or(aligned_policy_tolerance(report.policy.c_str()));
    report.stepMicroseconds = median(contestant.times) * 1e6;
    report.denseStepMicroseconds = median(contestant.denseTimes) * 1e6;
    report.certifiedStepMicroseconds = median(contestant.certifiedTimes) * 1e6;
    judge(report, contestant.measured);
    report.threads = contestant.options.threads;
    report.attentions = aligned_module_attentions(contestant.module.get());
    reports.push_back(report);
    if (page)
      page->policies.push_back({report, contestant.plan.units ? std::optional(std::move(contestant.plan)) : std::nullopt, std::move(contestant.measured.certificates)});
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
  page.element = c.element();
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
  auto capture = load(folder);
  if (!capture || (page && !describe(*page, *capture, pictured, policies.front().lastStep)))
    return std::nullopt;
  return DecodeRun(*capture, page).run(policies);
}
