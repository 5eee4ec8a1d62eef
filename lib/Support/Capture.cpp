// See the header.
#include "aligned/Support/Capture.h"

#include "aligned/Support/Json.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>
#include <utility>

using namespace aligned;

//===----------------------------------------------------------------------===//
// Reading
//===----------------------------------------------------------------------===//

namespace {

/// Reads a folder. What is wrong with it is left in `error`.
class Loader {
public:
  Loader(const std::string &folder, std::string &error) : folder(folder), metaPath(folder + "/meta.json"), error(error) {}
  std::optional<Capture> load() { return readArrays() && readMeta() && checkTypes() && checkShapes() && readLayers() ? std::optional(std::move(capture)) : std::nullopt; }

private:
  bool refuse(const std::string &why) {
    error = why;
    return false;
  }
  bool refuseMeta(const std::string &why) { return refuse(metaPath + ": " + why); }

  bool readArrays() {
    for (auto [name, array] : {std::pair("q", &capture.q), std::pair("k", &capture.k), std::pair("v", &capture.v)}) {
      auto read = readNpy(folder + "/" + name + ".npy", error);
      if (!read)
        return false;
      *array = std::move(*read);
      if (array->shape.size() != 4)
        return refuse(folder + "/" + name + ".npy: expected rank 4, got shape " + shapeText(array->shape));
    }
    return true;
  }

  bool readMeta() {
    std::ifstream stream(metaPath, std::ios::binary);
    std::ostringstream text;
    text << stream.rdbuf();
    if (!stream.is_open() || stream.bad())
      return refuseMeta(std::string("expected a readable file, got: ") + std::strerror(errno));
    std::string why;
    auto json = parseJson(text.str(), why);
    if (!json)
      return refuseMeta(why);
    if (!json->is_object())
      return refuseMeta("expected a JSON object, got " + describe(*json));
    meta = std::move(*json);
    const auto given = integerOf(meta["group"]), first = integerOf(meta["first_position"]); // what is missing is null
    const Json &scale = meta["scale"];
    if (!given || *given < 1)
      return refuseMeta("expected a positive integer 'group', the query heads per kv head");
    if (!first || *first < 0)
      return refuseMeta("expected an integer 'first_position' that is not negative, the position of the first step");
    if (!scale.is_number() || !std::isfinite(scale.get<double>()))
      return refuseMeta("expected a number 'scale', the factor of scores");
    group = *given;
    capture.firstPosition = *first;
    capture.scale = scale.get<double>();
    capture.model = textOf("model");
    capture.text = textOf("text");
    return true;
  }

  std::string textOf(const char *name) {
    const Json &text = meta[name];
    return text.is_string() ? text.get<std::string>() : "";
  }

  bool checkTypes() {
    const DType dtype = capture.q.dtype;
    if (dtype == DType::F16)
      capture.element = ALIGNED_ELEMENT_F16;
    else if (dtype == DType::F32)
      capture.element = ALIGNED_ELEMENT_F32;
    else if (dtype == DType::U16 && textOf("dtype") == "bfloat16")
      capture.element = ALIGNED_ELEMENT_BF16;
    else
      return refuse(folder + "/q.npy: expected float16, float32, or uint16 with \"dtype\": \"bfloat16\" in meta.json, got " + name(dtype));
    for (auto [file, array] : {std::pair("k", &capture.k), std::pair("v", &capture.v)})
      if (array->dtype != dtype)
        return refuse(folder + "/" + file + ".npy: expected " + name(dtype) + " as q.npy has, got " + name(array->dtype));
    return true;
  }

  bool checkShapes() {
    const auto &q = capture.q.shape, &k = capture.k.shape, &v = capture.v.shape;
    capture.layers = q[0], capture.queryHeads = q[1], capture.steps = q[2], capture.keyDim = q[3];
    capture.kvHeads = k[1], capture.tokens = k[2], capture.valueDim = v[3];
    if (k[0] != q[0] || v[0] != q[0] || v[1] != k[1] || v[2] != k[2] || k[3] != q[3])
      return refuse(folder + ": expected q, k and v to agree in layers, kv_heads, tokens and head_dim, got " + shapeText(q) + ", " + shapeText(k) + " and " + shapeText(v));
    int64_t heads = 0;
    if (capture.kvHeads < 1 || __builtin_mul_overflow(capture.kvHeads, group, &heads) || capture.queryHeads != heads)
      return refuse(folder + ": expected group * kv_heads = " + std::to_string(group) + " * " + std::to_string(capture.kvHeads) + " query heads in q.npy, got " +
                    std::to_string(capture.queryHeads));
    if (capture.layers < 1 || capture.steps < 1)
      return refuse(folder + "/q.npy: expected at least one layer and one step, got shape " + shapeText(q));
    if (capture.firstPosition > capture.tokens - capture.steps)
      return refuse(folder + ": expected tokens in k.npy for first_position " + std::to_string(capture.firstPosition) + " and " + std::to_string(capture.steps) +
                    " steps, got " + std::to_string(capture.tokens));
    return true;
  }

  bool readLayers() {
    std::vector<int64_t> &numbers = capture.layerNumbers;
    numbers.resize(capture.layers);
    std::iota(numbers.begin(), numbers.end(), 0);
    const Json &said = meta["layers"];
    if (!said.is_array())
      return true;
    capture.partial = true;
    bool rise = said.size() == numbers.size();
    for (size_t i = 0; i < numbers.size() && rise; ++i) {
      numbers[i] = integerOf(said[i]).value_or(-1);
      rise = numbers[i] > (i ? numbers[i - 1] : -1);
    }
    return rise || refuseMeta("expected 'layers' to be " + std::to_string(capture.layers) + " rising numbers, one for each layer of q.npy");
  }

  const std::string folder, metaPath;
  std::string &error;
  Capture capture = {};
  Json meta;
  int64_t group = 0;
};

} // namespace

std::optional<Capture> aligned::loadCapture(const std::string &folder, std::string &error) { return Loader(folder, error).load(); }

//===----------------------------------------------------------------------===//
// Steps
//===----------------------------------------------------------------------===//

std::string Capture::query(int64_t layer, int64_t step) const {
  std::string bytes;
  for (int64_t head = 0; head < queryHeads; ++head)
    bytes.append(at(q, ((layer * queryHeads + head) * steps + step) * keyDim), keyDim * width());
  return bytes;
}

const char *Capture::tokensFrom(const NpyArray &array, int64_t layer, int64_t first, int64_t strides[4]) const {
  const int64_t dim = array.shape[3];
  strides[0] = kvHeads * tokens * dim;
  strides[1] = tokens * dim;
  strides[2] = dim;
  strides[3] = 1;
  return at(array, (layer * kvHeads * tokens + first) * dim);
}

std::vector<double> aligned::widened(const void *values, int64_t count, aligned_element element) {
  std::vector<double> wide(count);
  for (int64_t i = 0; i < count; ++i) {
    if (element == ALIGNED_ELEMENT_F32) {
      float value;
      std::memcpy(&value, static_cast<const char *>(values) + 4 * i, 4);
      wide[i] = value;
    } else {
      uint16_t bits;
      std::memcpy(&bits, static_cast<const char *>(values) + 2 * i, 2);
      wide[i] = widen(bits, element == ALIGNED_ELEMENT_BF16 ? Storage::BFloat16 : Storage::Half);
    }
  }
  return wide;
}

HeadInputs Capture::inputs(const std::string &query, int64_t layer, int64_t head, int64_t tokens) const {
  const int64_t first = (layer * kvHeads + head) * this->tokens;
  return {group(),
          tokens,
          keyDim,
          valueDim,
          widened(query.data() + head * group() * keyDim * width(), group() * keyDim, element),
          widened(at(k, first * keyDim), tokens * keyDim, element),
          widened(at(v, first * valueDim), tokens * valueDim, element),
          static_cast<float>(scale),
          element == ALIGNED_ELEMENT_BF16 ? Storage::BFloat16 : Storage::Half};
}

std::vector<double> Capture::exact(const std::string &query, int64_t layer, int64_t tokens) const {
  std::vector<double> out(queryHeads * valueDim);
  for (int64_t head = 0; head < kvHeads; ++head) {
    const HeadInputs in = inputs(query, layer, head, tokens);
    exactAttention(in.q.data(), in.heads, in.k.data(), in.v.data(), tokens, keyDim, valueDim, in.scale, /*maskedZero=*/false, out.data() + head * in.heads * valueDim);
  }
  return out;
}

double Capture::usualRow(int64_t layer, int64_t head, int64_t tokens) const {
  const std::vector<double> rows = widened(at(v, (layer * kvHeads + head) * this->tokens * valueDim), tokens * valueDim, element);
  double sum = 0;
  for (auto row = rows.begin(); row != rows.end(); row += valueDim)
    sum += std::sqrt(std::inner_product(row, row + valueDim, row, 0.0));
  return sum / tokens;
}
