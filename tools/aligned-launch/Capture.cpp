// See the header.
#include "Capture.h"

#include "aligned/Reference/Attention.h"
#include "aligned/Support/Json.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>
#include <utility>

using namespace aligned;

std::nullopt_t aligned::refuse(const std::string &why) {
  std::fprintf(stderr, "aligned-launch: error: %s\n", why.c_str());
  return std::nullopt;
}

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
  std::ifstream stream(metaPath, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream.is_open() || stream.bad())
    return refuse(metaPath + ": expected a readable file, got: " + std::strerror(errno));
  auto meta = parseJson(text.str(), error);
  if (!meta)
    return refuse(metaPath + ": " + error);
  if (!meta->is_object())
    return refuse(metaPath + ": expected a JSON object, got " + describe(*meta));
  const auto group = integerOf((*meta)["group"]), first = integerOf((*meta)["first_position"]); // what is missing is null
  const Json scale = (*meta)["scale"];
  if (!group || *group < 1)
    return refuse(metaPath + ": expected a positive integer 'group', the query heads per kv head");
  if (!first || *first < 0)
    return refuse(metaPath + ": expected an integer 'first_position' that is not negative, the position of the first step");
  if (!scale.is_number() || !std::isfinite(scale.get<double>()))
    return refuse(metaPath + ": expected a number 'scale', the factor of scores");
  capture.scale = scale.get<double>();
  capture.firstPosition = *first;

  bool bfloat16 = (*meta)["dtype"] == "bfloat16";
  const NpyArray &q = capture.q, &k = capture.k, &v = capture.v;
  if (q.dtype == DType::F16)
    capture.element = ALIGNED_ELEMENT_F16;
  else if (q.dtype == DType::F32)
    capture.element = ALIGNED_ELEMENT_F32;
  else if (q.dtype == DType::U16 && bfloat16)
    capture.element = ALIGNED_ELEMENT_BF16;
  else
    return refuse(folder + "/q.npy: expected float16, float32, or uint16 with \"dtype\": \"bfloat16\" in meta.json, got " +
                  name(q.dtype));
  for (auto [file, array] : {std::pair("k", &k), std::pair("v", &v)})
    if (array->dtype != q.dtype)
      return refuse(folder + "/" + file + ".npy: expected " + name(q.dtype) + " as q.npy has, got " + name(array->dtype));

  capture.layers = q.shape[0], capture.queryHeads = q.shape[1], capture.steps = q.shape[2], capture.keyDim = q.shape[3];
  capture.kvHeads = k.shape[1], capture.tokens = k.shape[2], capture.valueDim = v.shape[3];
  if (k.shape[0] != capture.layers || v.shape[0] != capture.layers || v.shape[1] != capture.kvHeads ||
      v.shape[2] != capture.tokens || k.shape[3] != capture.keyDim)
    return refuse(folder + ": expected q, k and v to agree in layers, kv_heads, tokens and head_dim, got " + shapeText(q.shape) +
                  ", " + shapeText(k.shape) + " and " + shapeText(v.shape));
  int64_t heads = 0;
  if (capture.kvHeads < 1 || __builtin_mul_overflow(capture.kvHeads, *group, &heads) || capture.queryHeads != heads)
    return refuse(folder + ": expected group * kv_heads = " + std::to_string(*group) + " * " +
                  std::to_string(capture.kvHeads) + " query heads in q.npy, got " + std::to_string(capture.queryHeads));
  if (capture.layers < 1 || capture.steps < 1)
    return refuse(folder + "/q.npy: expected at least one layer and one step, got shape " + shapeText(q.shape));
  if (capture.firstPosition > capture.tokens - capture.steps)
    return refuse(folder + ": expected tokens in k.npy for first_position " + std::to_string(capture.firstPosition) + " and " +
                  std::to_string(capture.steps) + " steps, got " + std::to_string(capture.tokens));
  return capture;
}

std::vector<char> Capture::query(int64_t layer, int64_t step) const {
  std::vector<char> bytes;
  for (int64_t head = 0; head < queryHeads; ++head) {
    const char *from = at(q, ((layer * queryHeads + head) * steps + step) * keyDim);
    bytes.insert(bytes.end(), from, from + keyDim * width());
  }
  return bytes;
}

const char *Capture::tokensFrom(const NpyArray &array, int64_t layer, int64_t first, int64_t strides[4]) const {
  int64_t dim = array.shape[3];
  strides[0] = kvHeads * tokens * dim;
  strides[1] = tokens * dim;
  strides[2] = dim;
  strides[3] = 1;
  return at(array, (layer * kvHeads * tokens + first) * dim);
}

namespace {

std::vector<double> widened(const char *from, int64_t count, int32_t element) {
  std::vector<double> wide(count);
  for (int64_t i = 0; i < count; ++i) {
    if (element == ALIGNED_ELEMENT_F32) {
      float value;
      std::memcpy(&value, from + 4 * i, 4);
      wide[i] = value;
    } else {
      uint16_t bits;
      std::memcpy(&bits, from + 2 * i, 2);
      wide[i] = widen(bits, element == ALIGNED_ELEMENT_BF16 ? Storage::BFloat16 : Storage::Half);
    }
  }
  return wide;
}

} // namespace

std::vector<double> Capture::exact(int64_t layer, int64_t step, int64_t count) const {
  std::vector<double> out(queryHeads * valueDim);
  std::vector<char> bytes = query(layer, step);
  for (int64_t head = 0; head < kvHeads; ++head) {
    int64_t first = (layer * kvHeads + head) * tokens;
    std::vector<double> queries = widened(bytes.data() + head * group() * keyDim * width(), group() * keyDim, element);
    std::vector<double> keys = widened(at(k, first * keyDim), count * keyDim, element),
                        values = widened(at(v, first * valueDim), count * valueDim, element);
    exactAttention(queries.data(), group(), keys.data(), values.data(), count, keyDim, valueDim, static_cast<float>(scale),
                   /*maskedZero=*/false, out.data() + head * group() * valueDim);
  }
  return out;
}

std::vector<double> Capture::usualRows(int64_t layer, int64_t count) const {
  std::vector<double> usual(kvHeads);
  for (int64_t head = 0; head < kvHeads; ++head) {
    std::vector<double> values = widened(at(v, (layer * kvHeads + head) * tokens * valueDim), count * valueDim, element);
    for (auto row = values.begin(); row != values.end(); row += valueDim)
      usual[head] += std::sqrt(std::inner_product(row, row + valueDim, row, 0.0)) / count;
  }
  return usual;
}
