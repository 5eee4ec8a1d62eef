// The one place that sees the JSON library.
#include "Json.h"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <limits>

using namespace aligned;

namespace {

/// Builds the tree from the parser's events; nothing is thrown.
class Builder : public nlohmann::json_sax<nlohmann::json> {
public:
  Json root;
  std::string error;

  bool null() override { return add(Json::Null), true; }
  bool boolean(bool value) override { return add(Json::Boolean).boolean = value, true; }
  bool number_integer(number_integer_t value) override { return addInteger(value), true; }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<number_unsigned_t>(std::numeric_limits<int64_t>::max()))
      addInteger(static_cast<int64_t>(value));
    else
      add(Json::Number).number = static_cast<double>(value);
    return true;
  }
  bool number_float(number_float_t value, const string_t &) override { return add(Json::Number).number = value, true; }
  bool string(string_t &value) override { return add(Json::String).string = std::move(value), true; }
  bool binary(binary_t &) override { return false; }
  bool start_object(std::size_t) override { return open(Json::Object); }
  bool key(string_t &value) override {
    for (const auto &member : around.back()->members)
      if (member.first == value) {
        error = "each name once, got " + jsonQuoted(value) + " twice";
        return false;
      }
    around.back()->members.emplace_back(std::move(value), Json());
    return true;
  }
  bool end_object() override { return around.pop_back(), true; }
  bool start_array(std::size_t) override { return open(Json::Array); }
  bool end_array() override { return around.pop_back(), true; }
  bool parse_error(std::size_t position, const std::string &, const nlohmann::detail::exception &exception) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    std::string what = exception.what();
    size_t start = what.find("] ");
    error = "JSON, got " + (start == std::string::npos ? what : what.substr(start + 2));
    return false;
  }

private:
  Json &add(Json::Kind kind) {
    Json *place = &root;
    if (!around.empty() && around.back()->kind == Json::Array)
      place = &around.back()->items.emplace_back();
    else if (!around.empty())
      place = &around.back()->members.back().second;
    place->kind = kind;
    return *place;
  }
  void addInteger(int64_t value) {
    Json &json = add(Json::Integer);
    json.integer = value;
    json.number = static_cast<double>(value);
  }
  bool open(Json::Kind kind) {
    constexpr size_t deepest = 64;
    if (around.size() == deepest) {
      error = "at most " + std::to_string(deepest) + " levels, got more";
      return false;
    }
    around.push_back(&add(kind)); // stays where it is while it is open: only what is inside it grows
    return true;
  }

  std::vector<Json *> around;
};

} // namespace

const Json *Json::find(const std::string &name) const {
  for (const auto &member : members)
    if (member.first == name)
      return &member.second;
  return nullptr;
}

std::string Json::text() const {
  switch (kind) {
  case Null:
    return "null";
  case Boolean:
    return boolean ? "true" : "false";
  case Integer:
    return std::to_string(integer);
  case Number: {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", number);
    return digits;
  }
  case String:
    return jsonQuoted(string.size() > 40 ? string.substr(0, 40) + "..." : string);
  case Array:
    return "an array of " + std::to_string(items.size());
  case Object:
    return "an object of " + std::to_string(members.size());
  }
  return "nothing";
}

std::optional<Json> aligned::parseJson(const std::string &text, std::string &error) {
  Builder builder;
  if (nlohmann::json::sax_parse(text, &builder))
    return std::move(builder.root);
  error = "expected " + builder.error;
  return std::nullopt;
}

std::string aligned::jsonQuoted(const std::string &text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}
