// See the header.
#include "Capture.h"

#include <map>
#include <numeric>

using namespace aligned;

std::optional<Capture> aligned::loadCapture(const std::string &folder) {
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
  auto text = readText(metaPath);
  if (!text)
    return std::nullopt;
  auto meta = llvm::json::parse(*text);
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
  capture.layerNumbers.resize(capture.layers);
  std::iota(capture.layerNumbers.begin(), capture.layerNumbers.end(), 0);
  if (const llvm::json::Array *numbers = object->getArray("layers")) {
    capture.partial = true;
    for (size_t i = 0; i < numbers->size() && i < capture.layerNumbers.size(); ++i)
      capture.layerNumbers[i] = (*numbers)[i].getAsInteger().value_or(-1);
    bool rise = numbers->size() == capture.layerNumbers.size() && capture.layerNumbers.front() >= 0;
    for (int64_t i = 1; i < capture.layers; ++i)
      rise &= capture.layerNumbers[i] > capture.layerNumbers[i - 1];
    if (!rise)
      return refuse(metaPath + ": expected 'layers' to be " + std::to_string(capture.layers) + " rising numbers, one for each layer of q.npy");
  }
  if (*first > capture.tokens - capture.steps)
    return refuse(folder + ": expected first_position + steps = " + std::to_string(*first + capture.steps) + " tokens in k.npy, got " + std::to_string(capture.tokens));
  return capture;
}

//===----------------------------------------------------------------------===//
// Steps
//===----------------------------------------------------------------------===//

std::string Capture::query(int64_t layer, int64_t step) const {
  std::string bytes;
  for (int64_t head = 0; head < queryHeads; ++head)
    bytes.append(at(q, ((layer * queryHeads + head) * steps + step) * keyDim), keyDim * width());
  return bytes;
}

Bytes Capture::dense(const NpyArray &array, int64_t layer, int64_t count) const {
  Bytes bytes;
  int64_t dim = array.shape[3];
  bytes.reserve(kvHeads * count * dim * width());
  for (int64_t head = 0; head < kvHeads; ++head) {
    const char *start = at(array, (layer * kvHeads + head) * tokens * dim);
    bytes.insert(bytes.end(), start, start + count * dim * width());
  }
  return bytes;
}

HeadInputs Capture::inputs(const std::string &query, int64_t layer, int64_t head, int64_t tokens) const {
  int64_t group = queryHeads / kvHeads, first = (layer * kvHeads + head) * this->tokens;
  return {group,
          tokens,
          keyDim,
          valueDim,
          toDouble(query.data() + head * group * keyDim * width(), group * keyDim, dtype),
          toDouble(at(k, first * keyDim), tokens * keyDim, dtype),
          toDouble(at(v, first * valueDim), tokens * valueDim, dtype),
          static_cast<float>(scale),
          dtype == ALIGNED_DTYPE_BF16 ? Storage::BFloat16 : Storage::Half};
}

std::vector<double> Capture::exact(const std::string &query, int64_t layer, int64_t tokens) const {
  std::vector<double> out(queryHeads * valueDim);
  for (int64_t head = 0; head < kvHeads; ++head) {
    HeadInputs in = inputs(query, layer, head, tokens);
    exactAttention(in.q.data(), in.heads, in.k.data(), in.v.data(), tokens, keyDim, valueDim, in.scale, /*maskedZero=*/false,
                   out.data() + head * in.heads * valueDim);
  }
  return out;
}

double Capture::usualRow(int64_t layer, int64_t head, int64_t tokens) const {
  std::vector<double> rows = toDouble(at(v, (layer * kvHeads + head) * this->tokens * valueDim), tokens * valueDim, dtype);
  double sum = 0;
  for (auto row = rows.begin(); row != rows.end(); row += valueDim)
    sum += std::sqrt(std::inner_product(row, row + valueDim, row, 0.0));
  return sum / tokens;
}

//===----------------------------------------------------------------------===//
// Kernels and caches
//===----------------------------------------------------------------------===//

/// The result is f32, so that rounding it does not hide errors.
std::string aligned::moduleText(const Capture &c, const std::string &name, const std::string &policies) {
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
  return "func.func @" + name + "(%query: " + query + ", %key: " + key + ", %value: " + value + ") -> " + out + " {\n  %scale = arith.constant " + constant +
         " : f32\n  %out = aligned.attention %query, %key, %value scale %scale " + policies + " : " + query + ", " + key + ", " + value + " -> " + out + "\n  return %out : " + out + "\n}\n";
}

std::shared_ptr<Kernel> aligned::compileKernel(const std::string &source, const std::string &options) {
  auto kernel = std::make_shared<Kernel>();
  if (!(kernel->module = compile(source, options)))
    return nullptr;
  for (int side = 0; side < 2; ++side) {
    aligned_type type;
    aligned_module_argument(kernel->module.get(), 1 + side, &type);
    kernel->split = type.is_cache;
    kernel->formats[side] = type.format;
  }
  kernel->denseUpTo = aligned_module_dense_up_to(kernel->module.get());
  return kernel;
}

std::optional<std::vector<std::shared_ptr<Kernel>>> aligned::compileLayers(const Capture &c, const RunOptions &options) {
  auto transform = [](const std::string &source, const std::string &pipeline) -> std::optional<std::string> {
    std::unique_ptr<char, decltype(&aligned_text_free)> text(aligned_transform(source.c_str(), ("aligned-pipeline{to=raise " + pipeline + "}").c_str()), aligned_text_free);
    if (!text)
      return refuse(aligned_last_error());
    return text.get();
  };
  RunOptions rest = options;
  rest.budget.clear();
  if (!options.budget.empty() && !c.partial) { // all layers at once, so that a layer that does not exist is told
    std::string all;
    for (int64_t layer = 0; layer < c.layers; ++layer)
      all += moduleText(c, "layer" + std::to_string(layer));
    if (!transform(all, options.pipeline()))
      return std::nullopt;
  }
  std::map<std::string, std::shared_ptr<Kernel>> known; // by the text that says how closely it reads
  std::vector<std::shared_ptr<Kernel>> kernels;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    std::string source = moduleText(c);
    if (!options.budget.empty()) {
      auto text = transform(source, options.pipeline() + " budget-layer=" + std::to_string(c.layerNumbers[layer]));
      if (!text)
        return std::nullopt;
      source = *text;
    }
    std::shared_ptr<Kernel> &kernel = known[source];
    if (!kernel) {
      kernel = compileKernel(source, rest.pipeline());
      if (!kernel || !(kernel->certified = compile(source, rest.pipeline() + " certify")))
        return std::nullopt;
      if (options.profile && kernel->split && kernel->formats[0].kind == ALIGNED_FORMAT_FIXED && !(kernel->profiled = compile(source, rest.pipeline() + " profile")))
        return std::nullopt;
    }
    kernels.push_back(kernel);
  }
  return kernels;
}

bool Caches::create(const Capture &c, const Kernel &kernel) {
  for (int number = 0; number < 2 && kernel.split; ++number) {
    side[number].reset(aligned_cache_create(&kernel.formats[number], 1, c.kvHeads, number ? c.valueDim : c.keyDim, c.firstPosition + c.steps));
    if (!side[number] || aligned_cache_keep_dense(side[number].get(), kernel.denseUpTo))
      return refuse(aligned_last_error()), false;
  }
  return true;
}

bool Caches::extend(const Capture &c, int64_t layer, int64_t tokens) {
  for (int number = 0; number < 2; ++number) {
    aligned_cache *cache = side[number].get();
    const NpyArray &array = number ? c.v : c.k;
    int64_t dim = number ? c.valueDim : c.keyDim;
    int64_t strides[4] = {c.kvHeads * c.tokens * dim, c.tokens * dim, dim, 1};
    if (aligned_cache_append(cache, c.at(array, (layer * c.kvHeads * c.tokens + cache->tokens) * dim), tokens - cache->tokens, strides))
      return refuse(aligned_last_error()), false;
  }
  return true;
}
