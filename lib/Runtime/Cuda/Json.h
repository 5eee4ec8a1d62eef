// JSON as a tree, for files that are read whole.
#ifndef ALIGNED_LIB_RUNTIME_CUDA_JSON_H
#define ALIGNED_LIB_RUNTIME_CUDA_JSON_H

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace aligned {

struct Json {
  enum Kind { Null, Boolean, Integer, Number, String, Array, Object };
  Kind kind = Null;
  bool boolean = false;
  int64_t integer = 0; ///< of numbers without fraction that fit
  double number = 0;   ///< of integers, too
  std::string string;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  /// A member of an object, or null.
  const Json *find(const std::string &name) const;
  bool isNumber() const { return kind == Integer || kind == Number; }
  /// What it is, for messages: `"f16"`, `3`, `an array of 2`, ...
  std::string text() const;
};

/// Says in `error` where the text is wrong.
std::optional<Json> parseJson(const std::string &text, std::string &error);
/// With quotes, escaped.
std::string jsonQuoted(const std::string &text);

} // namespace aligned

#endif
