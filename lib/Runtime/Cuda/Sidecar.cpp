// A reader walks the tree and knows where it is. The first thing that is wrong is kept, and reading goes on with defaults: a
// reader never has to be asked whether all is well, only in the end.
#include "Sidecar.h"

#include "aligned/Support/Json.h"

#include <tuple>

using namespace aligned;
using namespace aligned::cuda;
using namespace aligned::program;

namespace {

struct Width {
  const char *name;
  int64_t bytes;
};
constexpr Width widths[] = {{"i1", 1},  {"i8", 1},  {"u8", 1},  {"i16", 2}, {"u16", 2}, {"f16", 2}, {"bf16", 2},
                            {"i32", 4}, {"u32", 4}, {"f32", 4}, {"i64", 8}, {"u64", 8}, {"f64", 8}};

/// "a, b or c"
std::string anyOf(const std::vector<std::string> &names) {
  std::string all;
  for (size_t i = 0; i < names.size(); ++i)
    all += (!i ? "" : i + 1 == names.size() ? " or " : ", ") + names[i];
  return all;
}

class Reader {
public:
  Reader(const Json &json, std::string path, std::string &error) : json(json), path(std::move(path)), error(error) {}

  void fail(const std::string &expected) const { fail(expected, describe(json)); }
  void fail(const std::string &expected, const std::string &got) const {
    if (error.empty())
      error = "kernels.json: expected " + expected + (path.empty() ? "" : " at " + path) + ", got " + got;
  }

  /// A member; where there is none, one that fails has been told.
  Reader operator[](const char *name) const {
    static const Json nothing;
    if (!json.is_object())
      return fail("an object"), Reader(nothing, path, error);
    auto member = json.find(name);
    Reader inner(member != json.end() ? *member : nothing, path.empty() ? name : path + "." + name, error);
    if (member == json.end())
      inner.fail("a member", "none");
    return inner;
  }

  bool has(const char *name) const { return json.is_object() && json.contains(name); }

  /// The items of an array of `least` to `most`.
  std::vector<Reader> items(size_t least = 0, size_t most = SIZE_MAX) const {
    std::vector<Reader> readers;
    if (!json.is_array() || json.size() < least || json.size() > most)
      fail(most < SIZE_MAX ? "an array of " + std::to_string(least) + " to " + std::to_string(most)
           : least         ? "an array of at least " + std::to_string(least)
                           : "an array");
    for (size_t i = 0; json.is_array() && i < json.size(); ++i)
      readers.emplace_back(json[i], path + "[" + std::to_string(i) + "]", error);
    return readers;
  }

  int64_t integer(int64_t least, int64_t most) const {
    if (auto number = integerOf(json); number && *number >= least && *number <= most)
      return *number;
    fail("an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return least;
  }

  std::string string() const {
    if (json.is_string() && !json.get_ref<const std::string &>().empty())
      return json.get<std::string>();
    fail("a string");
    return "";
  }

  bool flag() const { return json.is_boolean() ? json.get<bool>() : integer(0, 1); }

  template <size_t N> int32_t choice(const char *const (&names)[N]) const {
    std::vector<std::string> all;
    for (size_t i = 0; i < N; ++i) {
      if (json == names[i])
        return static_cast<int32_t>(i);
      all.push_back(describe(names[i]));
    }
    fail(anyOf(all));
    return 0;
  }

  /// Only what keeps its size while caches grow has a shape without `tokens`.
  Extent extent(bool mayGrow = false) const {
    constexpr int64_t most = int64_t(1) << 40;
    std::string names;
    for (size_t i = 0; i < std::size(kSymbols); ++i) {
      if (Symbol(i) == Symbol::Tokens && !mayGrow)
        continue;
      if (json == kSymbols[i])
        return {Symbol(i), 0};
      names += (names.empty() ? "" : ", ") + std::string(kSymbols[i]);
    }
    if (auto number = integerOf(json); number && *number >= 0 && *number <= most)
      return {{}, *number};
    fail("a number or one of " + names);
    return {};
  }

  aligned_format format() const {
    aligned_format format = {};
    format.kind = (*this)["kind"].choice(kFormatKinds);
    format.role = (*this)["role"].choice(kRoles);
    format.element = (*this)["element"].choice(kElements);
    if (format.kind == ALIGNED_FORMAT_DENSE)
      return format;
    Reader list = (*this)["widths"];
    int sum = 0;
    bool whole = true;
    const int most = format.kind == ALIGNED_FORMAT_FIXED ? 8 : 16;
    for (const Reader &item : list.items(1)) {
      int width = static_cast<int>(item.integer(4, most));
      whole &= width % 4 == 0;
      sum += width;
      if (format.planes < ALIGNED_MAX_PLANES)
        format.width[format.planes] = width;
      ++format.planes;
    }
    if (format.planes > ALIGNED_MAX_PLANES || sum != 16 || !whole)
      list.fail("up to 4 multiples of 4 that sum to 16");
    return format;
  }

  const Json &json;
  const std::string path;

private:
  std::string &error;
};

Extent fixed(int64_t number) { return {{}, number}; }

/// What arguments of one kind of entry may be.
struct Known {
  Name name;
  Kind kind;
  std::vector<std::string> types = {};  ///< any if empty
  std::vector<Extent> shape = {};       ///< of the same number of elements; not looked at if empty
  std::vector<Extent> otherShape = {};  ///< in place of it where the argument has as many dimensions
  size_t shared = 0;                    ///< leading dimensions that may be 1
};

void checkShape(const Reader &reader, const Argument &argument, const Known &known) {
  Argument expected = argument;
  expected.shape = argument.shape.size() == known.otherShape.size() ? known.otherShape : known.shape;
  for (size_t i = 0; i < known.shared && i < argument.shape.size(); ++i)
    if (!argument.shape[i].symbol && argument.shape[i].number == 1)
      expected.shape[i] = fixed(1);
  // Sizes that agree for these agree for all.
  for (Symbols sample : {Symbols{3, 5, 7 * 64, 11, 13, 101}, Symbols{2, 17, 19 * 64, 23, 29, 211}})
    if (argument.bytes(sample) != expected.bytes(sample))
      return reader["shape"].fail("as many elements as " + argument.name + " has");
}

Argument readArgument(const Reader &reader, const std::vector<Known> &knowns) {
  Argument argument;
  argument.name = reader["name"].string();
  argument.kind = Kind(reader["kind"].choice(kKinds));
  if (argument.kind != Kind::Cache) {
    Reader type = reader["type"];
    argument.type = type.string();
    for (const Width &width : widths)
      if (argument.type == width.name)
        argument.elementBytes = width.bytes;
    if (!argument.elementBytes)
      type.fail("an element type, such as \"f32\"");
    if (argument.kind != Kind::Scalar)
      for (const Reader &extent : reader["shape"].items())
        argument.shape.push_back(extent.extent(/*mayGrow=*/argument.kind == Kind::Input));
  }
  for (const Known &known : knowns) {
    // A record that later kernels read is scratch memory, there whether or not anybody asks.
    if (argument.name != nameOf(known.name) ||
        (argument.kind != known.kind && !(argument.kind == Kind::Scratch && known.kind == Kind::Record)))
      continue;
    argument.meaning = known.name;
    std::vector<std::string> types;
    bool fits = known.types.empty();
    for (const std::string &type : known.types) {
      fits |= argument.type == type;
      types.push_back(describe(type));
    }
    if (!fits)
      reader["type"].fail(anyOf(types) + " for " + argument.name);
    if (!known.shape.empty())
      checkShape(reader, argument, known);
    return argument;
  }
  if (argument.kind == Kind::Scratch)
    return argument;
  if (argument.kind == Kind::Scalar && (argument.type == "i32" || argument.type == "i64"))
    for (size_t i = 0; i < std::size(kSymbols); ++i)
      if (argument.name == kSymbols[i] && Symbol(i) != Symbol::Tokens) {
        argument.size.symbol = Symbol(i);
        return argument;
      }
  std::string names;
  for (const Known &known : knowns)
    if (known.kind == argument.kind)
      names += (names.empty() ? "" : ", ") + std::string(nameOf(known.name));
  std::string kind = nameOf(argument.kind);
  reader["name"].fail(names.empty() ? "no argument of kind " + kind : "one of " + names + " for " + kind);
  return argument;
}

void readArguments(const Reader &entry, const std::vector<Known> &knowns, const std::vector<Name> &needed,
                   std::vector<Argument> &arguments) {
  Reader list = entry["arguments"];
  for (const Reader &each : list.items(1)) {
    arguments.push_back(readArgument(each, knowns));
    for (size_t i = 0; i + 1 < arguments.size(); ++i)
      if (arguments[i].name == arguments.back().name)
        each["name"].fail("a name that no other argument has");
  }
  for (Name name : needed) {
    bool there = false;
    for (const Argument &argument : arguments)
      there |= argument.meaning == name;
    if (!there)
      list.fail(std::string("an argument ") + nameOf(name), "none");
  }
}

std::vector<Launch> readLaunches(const Reader &list, const std::vector<KernelEntry> &kernels) {
  std::vector<Launch> launches;
  for (const Reader &each : list.items(1)) {
    Launch launch;
    Reader name = each["kernel"];
    std::string wanted = name.string();
    launch.kernel = -1;
    for (size_t i = 0; i < kernels.size(); ++i)
      if (kernels[i].name == wanted)
        launch.kernel = static_cast<int64_t>(i);
    if (launch.kernel < 0)
      name.fail("the name of one of the kernels");
    std::vector<Reader> extents = each["grid"].items(2, kMostGridDimensions);
    for (size_t i = 0; i < extents.size() && i < kMostGridDimensions; ++i)
      launch.grid[i] = extents[i].extent();
    launches.push_back(launch);
  }
  return launches;
}

Site readSite(const Reader &reader, const std::vector<KernelEntry> &kernels) {
  Site site;
  constexpr int64_t mostHeads = 65535, mostDim = 256;
  site.number = reader["site"].integer(0, INT32_MAX);
  site.kvHeads = reader["kv_heads"].integer(1, mostHeads);
  site.heads = reader["heads"].integer(1, mostHeads);
  site.queries = reader["queries"].integer(1, mostHeads);
  if (site.heads % site.queries)
    reader["queries"].fail("a divisor of the " + std::to_string(site.heads) + " query rows");
  site.keyDim = reader["key_dim"].integer(16, mostDim);
  site.valueDim = reader["value_dim"].integer(16, mostDim);
  site.query = reader["query"].choice(kElements);
  site.certified = reader["certified"].flag();
  for (auto [name, format, role] :
       {std::tuple("key", &site.key, ALIGNED_ROLE_KEY), std::tuple("value", &site.value, ALIGNED_ROLE_VALUE)}) {
    *format = reader[name].format();
    if (format->role != role)
      reader[name]["role"].fail(describe(kRoles[role]));
  }
  bool dense = site.isDense();
  if (dense != (site.value.kind == ALIGNED_FORMAT_DENSE))
    reader["value"]["kind"].fail(dense ? "\"dense\" as for the key" : "planes as for the key");
  Extent rows{Symbol::Rows}, batch{Symbol::Batch}, capacity{Symbol::Capacity}, heads = fixed(site.heads),
      queryHeads = fixed(site.kvHeads * site.heads / site.queries);
  std::vector<Known> knowns = {
      {Name::Query, Kind::Input, {kElements[site.query]}, {rows, heads, fixed(site.keyDim)}},
      {Name::SinkLogits, Kind::Input, {"f32"}, {queryHeads}},
      {Name::AttnMask, Kind::Input, {"f32", "f16", "bf16", "i1"}, {batch, queryHeads, fixed(site.queries), {Symbol::Tokens}}, {}, 3},
      {Name::KeyBits, Kind::Record, {"u8"}, {rows, capacity}, {rows, {Symbol::Tiles}, fixed(site.keyDim)}},
      {Name::ValueBits, Kind::Record, {"u8"}, {rows, capacity}},
      {Name::Acc, Kind::Output, {"f32"}, {rows, heads, fixed(site.valueDim)}},
      {Name::Max, Kind::Output, {"f32"}, {rows, heads}},
      {Name::Sum, Kind::Output, {"f32"}, {rows, heads}},
      {Name::Certificate, Kind::Output, {"f32"}, {rows, heads, fixed(kCertificateNumbers)}},
      {Name::Scale, Kind::Scalar, {"f32"}},
      {Name::Finished, Kind::Scalar, {"i32"}},
      {Name::Softcap, Kind::Scalar, {"f32"}},
      {Name::ToleranceFactor, Kind::Scalar, {"f32"}},
      {Name::Window, Kind::Scalar, {"i32"}},
      {Name::Sinks, Kind::Scalar, {"i32"}},
      {Name::Later, Kind::Scalar, {"i32"}}};
  for (auto [name, format, dim] : {std::tuple(Name::Key, &site.key, site.keyDim), std::tuple(Name::Value, &site.value, site.valueDim)})
    knowns.push_back(dense ? Known{name, Kind::Input, {kElements[format->element]}, {rows, capacity, fixed(dim)}}
                           : Known{name, Kind::Cache});
  std::vector<Name> needed = {Name::Query, Name::Key, Name::Value, Name::Acc, Name::Max, Name::Sum, Name::Scale};
  if (dense) {
    knowns.push_back({Name::Lengths, Kind::Input, {"i64"}, {batch}});
    needed.push_back(Name::Lengths);
  }
  if (site.certified)
    needed.push_back(Name::Certificate);
  readArguments(reader, knowns, needed, site.arguments);
  site.launches = readLaunches(reader["launch"], kernels);
  return site;
}

Tuning readTuning(const Reader &reader) {
  Tuning tuning;
  tuning.blocksPerMultiprocessor = reader["blocks_per_multiprocessor"].integer(1, 32);
  tuning.tilesPerSplit = reader["tiles_per_split"].integer(1, 1 << 20);
  tuning.mostSplits = reader["most_splits"].integer(1, 65535);
  tuning.chained = reader["chained"].flag();
  return tuning;
}

Append readAppend(const Reader &reader, const std::vector<KernelEntry> &kernels) {
  Append append;
  append.format = reader["format"].format();
  if (append.format.kind == ALIGNED_FORMAT_DENSE)
    reader["format"]["kind"].fail("\"fixed\" or \"float\"");
  append.headDim = reader["head_dim"].integer(16, 256);
  std::vector<Known> knowns = {{Name::Appended, Kind::Cache},
                               {Name::Data, Kind::Input, {kElements[append.format.element]}},
                               {Name::Counts, Kind::Input, {"i32"}, {{Symbol::Batch}}}};
  std::vector<Name> needed = {Name::Appended, Name::Data, Name::Counts};
  for (Name stride : {Name::Stride0, Name::Stride1, Name::Stride2, Name::Stride3}) {
    knowns.push_back({stride, Kind::Scalar, {"i64"}});
    needed.push_back(stride);
  }
  readArguments(reader, knowns, needed, append.arguments);
  append.launches = readLaunches(reader["launch"], kernels);
  append.drops = readLaunches(reader["drop"], kernels);
  return append;
}

} // namespace

int64_t Extent::at(const Symbols &symbols) const {
  if (!symbol)
    return number;
  switch (*symbol) {
  case Symbol::Rows:
    return symbols.batch * symbols.kvHeads;
  case Symbol::Batch:
    return symbols.batch;
  case Symbol::KvHeads:
    return symbols.kvHeads;
  case Symbol::Capacity:
    return symbols.capacity;
  case Symbol::Tiles:
    return symbols.capacity / ALIGNED_TILE;
  case Symbol::Splits:
    return symbols.splits;
  case Symbol::Touched:
    return symbols.touched;
  case Symbol::Tokens:
    return symbols.tokens;
  }
  return 0;
}

int64_t Argument::bytes(const Symbols &symbols) const {
  int64_t bytes = elementBytes;
  for (const Extent &extent : shape)
    if (__builtin_mul_overflow(bytes, extent.at(symbols), &bytes))
      return -1;
  return bytes;
}

const Argument *Site::find(Name name) const {
  for (const Argument &argument : arguments)
    if (argument.meaning == name)
      return &argument;
  return nullptr;
}

std::optional<Sidecar> cuda::parseSidecar(const std::string &text, std::string &error) {
  std::optional<Json> json = parseJson(text, error);
  if (!json) {
    error = "kernels.json: " + error;
    return std::nullopt;
  }
  error.clear();
  Reader root(*json, "", error);
  root["version"].integer(kVersion, kVersion);
  Sidecar sidecar;
  sidecar.chip = root["chip"].string();
  sidecar.ptx = root["ptx"].integer(10, 999);
  if (root.has("tuning"))
    sidecar.tuning = readTuning(root["tuning"]);
  for (const Reader &each : root["kernels"].items()) {
    constexpr int64_t mostShared = 227 << 10;
    KernelEntry kernel{each["name"].string(), each["threads"].integer(1, 1024), each.has("shared") ? each["shared"].integer(0, mostShared) : 0};
    for (const KernelEntry &other : sidecar.kernels)
      if (other.name == kernel.name)
        each["name"].fail("a name that no other kernel has");
    sidecar.kernels.push_back(kernel);
  }
  for (const Reader &each : root["decode"].items()) {
    Site site = readSite(each, sidecar.kernels);
    for (const Site &other : sidecar.decode)
      if (other.number == site.number)
        each["site"].fail("a number that no other site has");
    sidecar.decode.push_back(std::move(site));
  }
  for (const Reader &each : root["append"].items())
    sidecar.append.push_back(readAppend(each, sidecar.kernels));
  if (!error.empty())
    return std::nullopt;
  return sidecar;
}

bool cuda::sameFormat(const aligned_format &a, const aligned_format &b) {
  if (a.kind != b.kind || a.role != b.role || a.element != b.element || a.planes != b.planes)
    return false;
  for (int p = 0; p < a.planes; ++p)
    if (a.width[p] != b.width[p])
      return false;
  return true;
}

std::string cuda::formatText(const aligned_format &format) {
  std::string role = kRoles[format.role], element = std::string(" of ") + kElements[format.element];
  if (format.kind == ALIGNED_FORMAT_DENSE)
    return "dense " + role + element;
  std::string text = role + " " + kFormatKinds[format.kind] + "<";
  for (int p = 0; p < format.planes; ++p)
    text += (p ? "," : "") + std::to_string(format.width[p]);
  return text + ">" + element;
}
