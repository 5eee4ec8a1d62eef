// Reading trusts nothing: every size is checked against the bytes that are there before memory is taken for it.
#include "aligned/Support/Npy.h"

#include <zip.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

using namespace aligned;

namespace {

struct Kind {
  DType dtype;
  const char *code, *name;
  int64_t width;
};
constexpr Kind kinds[] = {
    {DType::F16, "f2", "float16", 2}, {DType::F32, "f4", "float32", 4}, {DType::F64, "f8", "float64", 8}, {DType::I8, "i1", "int8", 1},
    {DType::I16, "i2", "int16", 2},   {DType::I32, "i4", "int32", 4},   {DType::I64, "i8", "int64", 8},   {DType::U8, "u1", "uint8", 1},
    {DType::U16, "u2", "uint16", 2},  {DType::U32, "u4", "uint32", 4},  {DType::U64, "u8", "uint64", 8},  {DType::Bool, "b1", "bool", 1},
};
const Kind &kindOf(DType dtype) {
  for (const Kind &kind : kinds)
    if (kind.dtype == dtype)
      return kind;
  return kinds[0];
}

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicBytes = 6, kMaxRank = 32;
constexpr uint64_t kMaxEntryBytes = uint64_t(1) << 34; // of an archive; more is no test input but an attack

/// The header's dict: three keys in any order, nothing else.
class HeaderParser {
public:
  HeaderParser(const std::string &text, std::string &why) : text(text), why(why) {}

  bool parse(std::string &descr, bool &fortran, std::vector<int64_t> &shape) {
    bool seen[3] = {};
    if (!expect('{'))
      return false;
    while (!peek('}')) {
      std::string key;
      if (!string(key) || !expect(':'))
        return false;
      int which = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : -1;
      if (which < 0 || seen[which])
        return fail("keys 'descr', 'fortran_order' and 'shape', once each", "'" + key + "'");
      seen[which] = true;
      if (!(which == 0 ? string(descr) : which == 1 ? boolean(fortran) : tuple(shape)))
        return false;
      if (!peek('}') && !expect(','))
        return false;
    }
    if (!expect('}'))
      return false;
    skip();
    if (at < text.size())
      return fail("nothing behind the dict", here());
    return (seen[0] && seen[1] && seen[2]) || fail("keys 'descr', 'fortran_order' and 'shape'", "fewer");
  }

private:
  bool fail(const std::string &expected, const std::string &got) {
    why = "expected " + expected + " in the header, got " + got;
    return false;
  }
  void skip() {
    while (at < text.size() && strchr(" \t\n", text[at]) && text[at])
      ++at;
  }
  bool peek(char c) {
    skip();
    return at < text.size() && text[at] == c;
  }
  std::string here() { return at < text.size() ? "'" + text.substr(at, 12) + "'" : "its end"; }
  bool expect(char c) {
    if (!peek(c))
      return fail(std::string("'") + c + "'", here());
    ++at;
    return true;
  }
  bool string(std::string &value) {
    skip();
    if (!peek('\'') && !peek('"'))
      return fail("a quoted string", here());
    char quote = text[at++];
    size_t end = text.find(quote, at);
    if (end == std::string::npos)
      return fail("a closing quote", "its end");
    value = text.substr(at, end - at);
    at = end + 1;
    return true;
  }
  bool boolean(bool &value) {
    skip();
    for (auto [word, meaning] : {std::pair("True", true), std::pair("False", false)})
      if (text.compare(at, strlen(word), word) == 0) {
        at += strlen(word);
        value = meaning;
        return true;
      }
    return fail("True or False", here());
  }
  bool tuple(std::vector<int64_t> &shape) {
    if (!expect('('))
      return false;
    while (!peek(')')) {
      skip();
      size_t start = at;
      int64_t extent = 0;
      while (at < text.size() && text[at] >= '0' && text[at] <= '9' && at - start < 18)
        extent = extent * 10 + (text[at++] - '0');
      if (at == start || shape.size() == kMaxRank)
        return fail("a tuple of at most 32 extents that are not negative", here());
      shape.push_back(extent);
      if (!peek(')') && !expect(','))
        return false;
    }
    return expect(')');
  }

  const std::string &text;
  std::string &why;
  size_t at = 0;
};

/// Column-major to row-major.
std::vector<char> toCOrder(const std::vector<char> &bytes, const std::vector<int64_t> &shape, int64_t width) {
  std::vector<char> result(bytes.size());
  std::vector<int64_t> index(shape.size(), 0);
  int64_t count = bytes.size() / width;
  for (int64_t number = 0; number < count; ++number) {
    int64_t source = 0, stride = 1;
    for (size_t dim = 0; dim < shape.size(); ++dim) {
      source += index[dim] * stride;
      stride *= shape[dim];
    }
    memcpy(result.data() + number * width, bytes.data() + source * width, width);
    for (size_t dim = shape.size(); dim-- > 0 && ++index[dim] == shape[dim];)
      index[dim] = 0;
  }
  return result;
}

/// `text` is set where the array holds strings, which are no error in an archive.
std::optional<NpyArray> parse(const std::vector<char> &file, const std::string &where, std::string &error, bool *text = nullptr) {
  auto fail = [&](const std::string &why) {
    error = where + ": " + why;
    return std::nullopt;
  };
  if (file.size() < kMagicBytes + 4 || memcmp(file.data(), kMagic, kMagicBytes))
    return fail("expected a .npy file, got no NumPy magic at its start");
  int version = static_cast<unsigned char>(file[6]);
  if (version < 1 || version > 3)
    return fail("expected .npy version 1, 2 or 3, got " + std::to_string(version));
  size_t lengthBytes = version == 1 ? 2 : 4, start = kMagicBytes + 2 + lengthBytes;
  if (file.size() < start)
    return fail("expected a header length, got the end of the file");
  size_t length = 0;
  for (size_t i = 0; i < lengthBytes; ++i)
    length |= static_cast<size_t>(static_cast<unsigned char>(file[kMagicBytes + 2 + i])) << (8 * i);
  if (length > file.size() - start)
    return fail("expected a header of " + std::to_string(length) + " bytes, got " + std::to_string(file.size() - start));

  std::string header(file.data() + start, length), descr, why;
  bool fortran = false;
  NpyArray array;
  if (!HeaderParser(header, why).parse(descr, fortran, array.shape))
    return fail(why);
  const Kind *kind = nullptr;
  for (const Kind &candidate : kinds)
    if (descr.size() == 3 && descr.compare(1, 2, candidate.code) == 0 && (descr[0] == '<' || descr[0] == '|' || (candidate.width == 1 && descr[0] == '>')))
      kind = &candidate;
  if (!kind && text && descr.size() > 1 && (descr[1] == 'U' || descr[1] == 'S'))
    *text = true;
  if (!kind)
    return fail("expected little-endian numbers or booleans, got dtype '" + descr + "'");
  array.dtype = kind->dtype;

  size_t available = file.size() - start - length;
  uint64_t bytes = kind->width;
  bool empty = false;
  for (int64_t extent : array.shape)
    empty |= extent == 0;
  for (int64_t extent : array.shape)
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(empty ? 0 : extent), &bytes))
      return fail("expected a shape that fits the file, got " + shapeText(array.shape));
  if (bytes != available)
    return fail("expected " + std::to_string(bytes) + " bytes for " + kind->name + " " + shapeText(array.shape) + ", got " + std::to_string(available));
  array.bytes.assign(file.begin() + start + length, file.end());
  if (fortran && array.shape.size() > 1)
    array.bytes = toCOrder(array.bytes, array.shape, kind->width);
  return array;
}

struct CloseArchive {
  void operator()(zip_t *archive) const { zip_discard(archive); }
};
struct CloseEntry {
  void operator()(zip_file_t *entry) const { zip_fclose(entry); }
};

} // namespace

int64_t aligned::byteWidth(DType dtype) { return kindOf(dtype).width; }
const char *aligned::name(DType dtype) { return kindOf(dtype).name; }

std::string aligned::shapeText(const std::vector<int64_t> &shape) {
  std::ostringstream text;
  text << "[";
  for (size_t dim = 0; dim < shape.size(); ++dim)
    text << (dim ? ", " : "") << shape[dim];
  text << "]";
  return text.str();
}

std::optional<NpyArray> aligned::readNpy(const std::string &path, std::string &error) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> file;
  char chunk[1 << 16];
  while (stream.read(chunk, sizeof(chunk)) || stream.gcount() > 0)
    file.insert(file.end(), chunk, chunk + stream.gcount());
  if (!stream.is_open() || stream.bad()) {
    error = path + ": expected a readable file, got " + strerror(errno);
    return std::nullopt;
  }
  return parse(file, path, error);
}

std::optional<std::map<std::string, NpyArray>> aligned::readNpz(const std::string &path, std::string &error) {
  int code = 0;
  std::unique_ptr<zip_t, CloseArchive> archive(zip_open(path.c_str(), ZIP_RDONLY, &code));
  if (!archive) {
    zip_error_t reason;
    zip_error_init_with_code(&reason, code);
    error = path + ": expected an .npz archive, got: " + zip_error_strerror(&reason);
    zip_error_fini(&reason);
    return std::nullopt;
  }
  std::map<std::string, NpyArray> arrays;
  zip_int64_t count = zip_get_num_entries(archive.get(), 0);
  for (zip_int64_t number = 0; number < count; ++number) {
    zip_stat_t stat;
    if (zip_stat_index(archive.get(), number, 0, &stat) || !(stat.valid & ZIP_STAT_NAME) || !(stat.valid & ZIP_STAT_SIZE)) {
      error = path + ": expected an entry with name and size, got a damaged archive";
      return std::nullopt;
    }
    std::string entryName = stat.name, where = path + ": " + entryName;
    if (stat.size > kMaxEntryBytes) {
      error = where + ": expected at most " + std::to_string(kMaxEntryBytes) + " bytes, got " + std::to_string(stat.size);
      return std::nullopt;
    }
    std::unique_ptr<zip_file_t, CloseEntry> entry(zip_fopen_index(archive.get(), number, 0));
    // Grow with what is really there: the declared size may be a lie.
    std::vector<char> file;
    char chunk[1 << 16];
    zip_int64_t got = 0;
    while (entry && (got = zip_fread(entry.get(), chunk, sizeof(chunk))) > 0 && file.size() <= stat.size)
      file.insert(file.end(), chunk, chunk + got);
    if (!entry || got < 0 || file.size() != stat.size) {
      error = where + ": expected " + std::to_string(stat.size) + " readable bytes, got " + std::to_string(file.size());
      return std::nullopt;
    }
    bool text = false;
    std::optional<NpyArray> array = parse(file, where, error, &text);
    if (text)
      continue;
    if (!array)
      return std::nullopt;
    if (entryName.size() > 4 && entryName.compare(entryName.size() - 4, 4, ".npy") == 0)
      entryName.resize(entryName.size() - 4);
    arrays[entryName] = std::move(*array);
  }
  return arrays;
}

bool aligned::writeNpy(const std::string &path, const NpyArray &array, std::string &error) {
  const Kind &kind = kindOf(array.dtype);
  if (array.bytes.size() != static_cast<size_t>(array.count() * kind.width)) {
    error = path + ": expected " + std::to_string(array.count() * kind.width) + " bytes for " + kind.name + " " + shapeText(array.shape) + ", got " +
            std::to_string(array.bytes.size());
    return false;
  }
  std::string shape;
  for (int64_t extent : array.shape)
    shape += std::to_string(extent) + ", ";
  std::string header = std::string("{'descr': '") + (kind.width == 1 ? '|' : '<') + kind.code + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  size_t prefix = kMagicBytes + 4;
  header.append(63 - (prefix + header.size()) % 64, ' ');
  header += '\n';
  std::string partial = path + ".partial";
  std::ofstream stream(partial, std::ios::binary);
  stream.write(kMagic, kMagicBytes).put(1).put(0).put(static_cast<char>(header.size() & 255)).put(static_cast<char>(header.size() >> 8));
  stream << header;
  stream.write(array.bytes.data(), array.bytes.size());
  stream.close();
  if (!stream || std::rename(partial.c_str(), path.c_str())) {
    error = path + ": expected a writable file, got " + strerror(errno);
    std::remove(partial.c_str());
    return false;
  }
  return true;
}
