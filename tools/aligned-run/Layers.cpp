// See the header.
#include "Layers.h"

#include <map>

using namespace aligned;

std::optional<Capture> aligned::readCapture(const std::string &folder) {
  std::string error;
  std::optional<Capture> capture = loadCapture(folder, error);
  if (!capture)
    return refuse(error);
  return capture;
}

Bytes aligned::denseOf(const Capture &c, const NpyArray &array, int64_t layer, int64_t count) {
  Bytes bytes;
  const int64_t dim = array.shape[3];
  bytes.reserve(c.kvHeads * count * dim * c.width());
  for (int64_t head = 0; head < c.kvHeads; ++head) {
    const char *start = c.at(array, (layer * c.kvHeads + head) * c.tokens * dim);
    bytes.insert(bytes.end(), start, start + count * dim * c.width());
  }
  return bytes;
}

//===----------------------------------------------------------------------===//
// Kernels and caches
//===----------------------------------------------------------------------===//

/// The result is f32, so that rounding it does not hide errors.
std::string aligned::moduleText(const Capture &c, const std::string &name, const std::string &policies) {
  std::string element = c.elementName();
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
    int64_t strides[4];
    const char *from = c.tokensFrom(number ? c.v : c.k, layer, cache->tokens, strides);
    if (aligned_cache_append(cache, from, tokens - cache->tokens, strides))
      return refuse(aligned_last_error()), false;
  }
  return true;
}
