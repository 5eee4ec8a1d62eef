// JSON that people may have edited: what is wrong with it, for messages.
#ifndef ALIGNED_SUPPORT_JSON_H
#define ALIGNED_SUPPORT_JSON_H

#include <nlohmann/json.hpp>

#include <limits>
#include <optional>
#include <string>

namespace aligned {

using Json = nlohmann::json;

/// Says in `error` where the text is wrong.
inline std::optional<Json> parseJson(const std::string &text, std::string &error) {
  try {
    return Json::parse(text);
  } catch (const Json::exception &exception) {
    std::string what = exception.what(); // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    size_t start = what.find("] ");
    error = "expected JSON, got " + (start == std::string::npos ? what : what.substr(start + 2));
    return std::nullopt;
  }
}

/// What is no integer, or too large a one, is none.
inline std::optional<int64_t> integerOf(const Json &json) {
  bool fits = json.is_number_integer() && !(json.is_number_unsigned() && json.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max()));
  return fits ? std::optional(json.get<int64_t>()) : std::nullopt;
}

/// `"f16"`, `3`, `an array of 2`, ...
inline std::string describe(const Json &json) {
  if (json.is_array() || json.is_object())
    return (json.is_array() ? "an array of " : "an object of ") + std::to_string(json.size());
  Json shown = json;
  if (constexpr size_t most = 40; json.is_string() && json.get_ref<const std::string &>().size() > most)
    shown = json.get_ref<const std::string &>().substr(0, most) + "...";
  return shown.dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace aligned

#endif
