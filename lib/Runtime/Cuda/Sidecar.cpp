// A reader walks the tree and knows where it is. The first thing that is wrong is kept, and reading goes on with defaults: a
// reader never has to be asked whether all is well, only in the end.
#include "Sidecar.h"

#include "Json.h"

#include <tuple>

using namespace aligned;
using namespace aligned::cuda;

namespace {

const char *const elements[] = {"f16", "bf16", "f32"};
const char *const kinds[] = {"fixed", "float", "dense"};
const char *const roles[] = {"key", "value"};

struct Width {
  const char *name;
  int64_t bytes;
};
constexpr Width widths[] = {{"i8", 1},  {"u8", 1},  {"i16", 2}, {"u16", 2}, {"f16", 2}, {"bf16", 2},
                            {"i32", 4}, {"u32", 4}, {"f32", 4}, {"i64", 8}, {"u64", 8}, {"f64", 8}};

struct SymbolName {
  const char *name;
  Extent::Symbol symbol;
};
constexpr SymbolName symbolNames[] = {{"rows", Extent::Rows},         {"batch", Extent::Batch},   {"kv_heads", Extent::KvHeads},
                                      {"capacity", Extent::Capacity}, {"blocks", Extent::Blocks}, {"splits", Extent::Splits},
                                      {"touched", Extent::Touched}};

class Reader {
public:
  Reader(const Json &json, std::string path, std::string &error) : json(json), path(std::move(path)), error(error) {}

  void fail(const std::string &expected) const { fail(expected, json.text()); }
  void fail(const std::string &expected, const std::string &got) const {
    if (error.empty())
      error = "kernels.json: expected " + expected + (path.empty() ? "" : " at " + path) + ", got " + got;
  }

  /// A member; where there is none, one that fails has been told.
  Reader operator[](const char *name) const {
    static const Json nothing;
    if (json.kind != Json::Object)
      return fail("an object"), Reader(nothing, path, error);
    const Json *member = json.find(name);
    Reader inner(member ? *member : nothing, path.empty() ? name : path + "." + name, error);
    if (!member)
      inner.fail("a member", "none");
    return inner;
  }

  bool has(const char *name) const { return json.find(name); }

  /// The items of an array, at least `least`.
  std::vector<Reader> items(size_t least = 0) const {
    std::vector<Reader> readers;
    if (json.kind != Json::Array || json.items.size() < least)
      fail(least ? "an array of at least " + std::to_string(least) : "an array");
    for (size_t i = 0; i < json.items.size(); ++i)
      readers.emplace_back(json.items[i], path + "[" + std::to_string(i) + "]", error);
    return readers;
  }

  int64_t integer(int64_t least, int64_t most) const {
    if (json.kind == Json::Integer && json.integer >= least && json.integer <= most)
      return json.integer;
    fail("an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return least;
  }

  std::string string() const {
    if (json.kind != Json::String || json.string.empty())
      fail("a string");
    return json.string;
  }

  bool flag() const {
    if (json.kind != Json::Boolean)
      return integer(0, 1);
    return json.boolean;
  }

  template <size_t N> int32_t choice(const char *const (&names)[N]) const {
    std::string all;
    for (size_t i = 0; i < N; ++i) {
      if (json.kind == Json::String && json.string == names[i])
        return i;
      all += (i ? i + 1 == N ? " or " : ", " : "") + jsonQuoted(names[i]);
    }
    fail(all);
    return 0;
  }

  Extent extent() const {
    constexpr int64_t most = int64_t(1) << 40;
    Extent extent;
    if (json.kind == Json::String)
      for (const SymbolName &known : symbolNames)
        if (json.string == known.name)
          extent.symbol = known.symbol;
    if (json.kind == Json::Integer && json.integer >= 0 && json.integer <= most)
      extent.number = json.integer;
    else if (extent.symbol == Extent::None)
      fail("a number or one of rows, batch, kv_heads, capacity, blocks, splits, touched");
    return extent;
  }

  aligned_format format() const {
    aligned_format format = {};
    format.kind = (*this)["kind"].choice(kinds);
    format.role = (*this)["role"].choice(roles);
    format.element = (*this)["element"].choice(elements);
    if (format.kind == ALIGNED_FORMAT_DENSE)
      return format;
    Reader list = (*this)["widths"];
    int sum = 0;
    bool whole = true;
    for (const Reader &item : list.items(1)) {
      int width = static_cast<int>(item.integer(4, 16));
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

/// What arguments of one kind of site may be.
struct Known {
  const char *name;
  Argument::Kind kind;
  Argument::Meaning meaning;
  std::string type;          ///< any if empty
  std::vector<Extent> shape; ///< of the same number of elements; not looked at if empty
  int stride = 0;
};

Extent fixed(int64_t number) { return {Extent::None, number}; }
Extent symbol(Extent::Symbol symbol) { return {symbol, 0}; }

Argument readArgument(const Reader &reader, const std::vector<Known> &knowns) {
  static const char *const argumentKinds[] = {"input", "cache", "scratch", "record", "output", "scalar"};
  Argument argument;
  argument.name = reader["name"].string();
  argument.kind = static_cast<Argument::Kind>(reader["kind"].choice(argumentKinds));
  if (argument.kind != Argument::Cache) {
    Reader type = reader["type"];
    argument.type = type.string();
    for (const Width &width : widths)
      if (argument.type == width.name)
        argument.elementBytes = width.bytes;
    if (!argument.elementBytes)
      type.fail("an element type, such as \"f32\"");
    if (argument.kind != Argument::Scalar)
      for (const Reader &extent : reader["shape"].items())
        argument.shape.push_back(extent.extent());
  }
  for (const Known &known : knowns) {
    // A record that later kernels read is scratch memory, there whether or not anybody asks.
    if (argument.name != known.name ||
        (argument.kind != known.kind && !(argument.kind == Argument::Scratch && known.kind == Argument::Record)))
      continue;
    argument.meaning = known.meaning;
    argument.stride = known.stride;
    if (!known.type.empty() && argument.type != known.type)
      reader["type"].fail(jsonQuoted(known.type) + " for " + argument.name);
    if (!known.shape.empty()) {
      // Sizes that agree for these agree for all.
      Argument expected = argument;
      expected.shape = known.shape;
      for (Symbols sample : {Symbols{3, 5, 7 * 64, 11, 13}, Symbols{2, 17, 19 * 64, 23, 29}})
        if (argument.bytes(sample) != expected.bytes(sample))
          return reader["shape"].fail("as many elements as " + argument.name + " has"), argument;
    }
    return argument;
  }
  if (argument.kind == Argument::Scratch)
    return argument;
  if (argument.kind == Argument::Scalar)
    for (const SymbolName &size : symbolNames)
      if (argument.name == size.name && (argument.type == "i32" || argument.type == "i64")) {
        argument.meaning = Argument::Size;
        argument.size.symbol = size.symbol;
        return argument;
      }
  std::string names;
  for (const Known &known : knowns)
    if (known.kind == argument.kind)
      names += (names.empty() ? "" : ", ") + std::string(known.name);
  std::string kind = argumentKinds[argument.kind];
  reader["name"].fail(names.empty() ? "no argument of kind " + kind : "one of " + names + " for " + kind);
  return argument;
}

void readArguments(const Reader &site, const std::vector<Known> &knowns, const std::vector<Argument::Meaning> &needed,
                   std::vector<Argument> &arguments) {
  Reader list = site["arguments"];
  for (const Reader &each : list.items(1)) {
    arguments.push_back(readArgument(each, knowns));
    for (size_t i = 0; i + 1 < arguments.size(); ++i)
      if (arguments[i].name == arguments.back().name)
        each["name"].fail("a name that no other argument has");
  }
  for (const Known &known : knowns)
    for (Argument::Meaning meaning : needed) {
      bool there = known.meaning != meaning;
      for (const Argument &argument : arguments)
        there |= argument.name == known.name;
      if (!there)
        list.fail(std::string("an argument ") + known.name, "none");
    }
}

void readLaunches(const Reader &site, const std::vector<KernelEntry> &kernels, std::vector<Launch> &launches) {
  for (const Reader &each : site["launch"].items(1)) {
    Launch launch;
    Reader name = each["kernel"];
    std::string wanted = name.string();
    launch.kernel = -1;
    for (size_t i = 0; i < kernels.size(); ++i)
      if (kernels[i].name == wanted)
        launch.kernel = i;
    if (launch.kernel < 0)
      name.fail("the name of one of the kernels");
    Reader grid = each["grid"];
    std::vector<Reader> extents = grid.items();
    if (extents.size() != 2)
      grid.fail("an array of 2");
    for (size_t i = 0; i < 2 && i < extents.size(); ++i)
      launch.grid[i] = extents[i].extent();
    launches.push_back(launch);
  }
}

Site readSite(const Reader &reader, const std::vector<KernelEntry> &kernels) {
  Site site;
  constexpr int64_t mostHeads = 65535, mostDim = 256;
  site.number = reader["site"].integer(0, INT32_MAX);
  site.kvHeads = reader["kv_heads"].integer(1, mostHeads);
  site.heads = reader["heads"].integer(1, mostHeads);
  site.keyDim = reader["key_dim"].integer(16, mostDim);
  site.valueDim = reader["value_dim"].integer(16, mostDim);
  site.query = reader["query"].choice(elements);
  site.certified = reader["certified"].flag();
  for (auto [name, format, role] :
       {std::tuple("key", &site.key, ALIGNED_ROLE_KEY), std::tuple("value", &site.value, ALIGNED_ROLE_VALUE)}) {
    *format = reader[name].format();
    if (format->role != role)
      reader[name]["role"].fail(jsonQuoted(roles[role]));
  }
  bool dense = site.isDense();
  if (dense != (site.value.kind == ALIGNED_FORMAT_DENSE))
    reader["value"]["kind"].fail(dense ? jsonQuoted(kinds[ALIGNED_FORMAT_DENSE]) + " as for the key" : "planes as for the key");
  site.unitChannels = site.key.kind == ALIGNED_FORMAT_FIXED ? 4 : 1;
  Extent rows = symbol(Extent::Rows), heads = fixed(site.heads), blocks = symbol(Extent::Blocks);
  std::vector<Known> knowns = {
      {"query", Argument::Input, Argument::Query, elements[site.query], {rows, heads, fixed(site.keyDim)}},
      {"key_layers", Argument::Record, Argument::KeyLayers, "i8", {rows, blocks, fixed(site.keyDim / site.unitChannels)}},
      {"value_layers", Argument::Record, Argument::ValueLayers, "i8", {rows, symbol(Extent::Capacity)}},
      {"acc", Argument::Output, Argument::Acc, "f32", {rows, heads, fixed(site.valueDim)}},
      {"max", Argument::Output, Argument::Max, "f32", {rows, heads}},
      {"sum", Argument::Output, Argument::Sum, "f32", {rows, heads}},
      {"certificate", Argument::Output, Argument::Certificate, "f32", {rows, heads, fixed(kCertificate)}},
      {"scale", Argument::Scalar, Argument::Scale, "f32", {}}};
  for (auto [name, meaning, format, dim] : {std::tuple("key", Argument::Key, &site.key, site.keyDim),
                                            std::tuple("value", Argument::Value, &site.value, site.valueDim)})
    knowns.push_back(
        dense ? Known{name, Argument::Input, meaning, elements[format->element], {rows, symbol(Extent::Capacity), fixed(dim)}}
              : Known{name, Argument::Cache, meaning, "", {}});
  std::vector<Argument::Meaning> needed = {Argument::Query, Argument::Key, Argument::Value, Argument::Acc,
                                           Argument::Max,   Argument::Sum, Argument::Scale};
  if (dense) {
    knowns.push_back({"lengths", Argument::Input, Argument::Lengths, "i64", {symbol(Extent::Batch)}});
    needed.push_back(Argument::Lengths);
  }
  if (site.certified)
    needed.push_back(Argument::Certificate);
  readArguments(reader, knowns, needed, site.arguments);
  readLaunches(reader, kernels, site.launches);
  return site;
}

Tuning readTuning(const Reader &reader) {
  Tuning tuning;
  tuning.blocksPerMultiprocessor = reader["blocks_per_multiprocessor"].integer(1, 32);
  tuning.blocksPerSplit = reader["blocks_per_split"].integer(1, 1 << 20);
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
  std::vector<Known> knowns = {{"cache", Argument::Cache, Argument::Appended, "", {}},
                               {"data", Argument::Input, Argument::Data, elements[append.format.element], {}},
                               {"counts", Argument::Input, Argument::Counts, "i32", {symbol(Extent::Batch)}}};
  const char *const strides[] = {"stride0", "stride1", "stride2", "stride3"};
  for (int i = 0; i < 4; ++i)
    knowns.push_back({strides[i], Argument::Scalar, Argument::Stride, "i64", {}, i});
  readArguments(reader, knowns, {Argument::Appended, Argument::Data, Argument::Counts, Argument::Stride}, append.arguments);
  readLaunches(reader, kernels, append.launches);
  return append;
}

} // namespace

int64_t Extent::at(const Symbols &symbols) const {
  switch (symbol) {
  case None:
    return number;
  case Rows:
    return symbols.batch * symbols.kvHeads;
  case Batch:
    return symbols.batch;
  case KvHeads:
    return symbols.kvHeads;
  case Capacity:
    return symbols.capacity;
  case Blocks:
    return symbols.capacity / ALIGNED_BLOCK;
  case Splits:
    return symbols.splits;
  case Touched:
    return symbols.touched;
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

std::optional<Sidecar> cuda::parseSidecar(const std::string &text, std::string &error) {
  std::optional<Json> json = parseJson(text, error);
  if (!json) {
    error = "kernels.json: " + error;
    return std::nullopt;
  }
  error.clear();
  Reader root(*json, "", error);
  if (json->kind != Json::Object)
    root.fail("an object");
  root["version"].integer(1, 1);
  Sidecar sidecar;
  sidecar.chip = root["chip"].string();
  sidecar.ptx = root["ptx"].integer(10, 999);
  if (root.has("tuning"))
    sidecar.tuning = readTuning(root["tuning"]);
  for (const Reader &each : root["kernels"].items()) {
    KernelEntry kernel{each["name"].string(), each["threads"].integer(1, 1024)};
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

const char *cuda::elementText(int32_t element) { return element >= 0 && element < 3 ? elements[element] : "?"; }

std::string cuda::formatText(const aligned_format &format) {
  std::string role = roles[format.role == ALIGNED_ROLE_VALUE];
  if (format.kind == ALIGNED_FORMAT_DENSE)
    return "dense " + role + " of " + elementText(format.element);
  std::string text = role + " " + kinds[format.kind == ALIGNED_FORMAT_FLOAT] + "<";
  for (int p = 0; p < format.planes && p < ALIGNED_MAX_PLANES; ++p)
    text += (p ? "," : "") + std::to_string(format.width[p]);
  return text + "> of " + elementText(format.element);
}
